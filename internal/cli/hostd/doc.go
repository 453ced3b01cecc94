// Package hostd is what the program vmdk-hostd is made of: its command line, the wiring of the local host to the
// supervisor of workers, its socket, the take-over from a predecessor, health and metrics.
//
// Start: the state files, the supervisor, the datastores (one that is missing is tried again), the disks of a predecessor
// (one at a time, each served here before the next is asked for), the socket, which takes the predecessor's name, then
// /readyz. Stop, on SIGTERM: the socket (calls that run may finish), then the workers, whose disks whoever holds their
// descriptors brings to the next hostd. Every goroutine belongs to one errgroup that Run waits for.
//
// Top floor: it is imported by cmd alone and imports adapters.
package hostd
