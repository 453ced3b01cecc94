// Package csi is what the programs vmdk-csi-node and vmdk-csi-controller are made of: their command lines, the wiring of
// ports to adapters, the kernel's devices, the registration with the kubelet, health and metrics, and the order in which
// everything starts and stops.
//
// Start: hostd's and the API's clients (neither is waited for), the holder of descriptors, the gRPC servers, the
// registration. Stop, on SIGTERM: registration and servers first (calls that run may finish), then the node waits until
// hostd holds every disk, then the rest. Every goroutine belongs to one errgroup that Run waits for.
//
// Top floor: it is imported by cmd alone and may import adapters. klog is the log of both programs; what takes a
// *slog.Logger gets klog's through logr.
package csi
