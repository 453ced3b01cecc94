// Package host is the port between those who want disks (the CSI controller and node services, the command line) and
// those who keep them (a datastore host).
//
// The port is cut by who uses it:
//
//	Disks       the controller: create, delete, get, list, expand. Idempotent by name and id.
//	Snapshots   the controller: points in a disk's past, from which disks are made. Idempotent by name and id.
//	Claims      the controller: which node may attach a disk (ControllerPublish).
//	Datastores  the controller: where disks can live, and how much room there is.
//	Attacher    the node service: open a disk for a kernel device on this node, and let it go.
//	Keeper      the node service: hold the descriptors of attached disks for each other, so that no single process's
//	            death loses one.
//
// Adapters: host/local (calls pkg/volume in this process), host/lun (the same for LUNs, of which another host may have the files), host/wire (the same, in hostd, over a unix socket with
// descriptors), host/kube (intent and status in Kubernetes objects). host/hosttest is the conformance suite that all
// of them pass, with an in-memory implementation.
//
// Floor 2 (the port; adapters are floor 5). It imports pkg/fault, internal/sys and the standard library only. Failures are faults
// with the kinds that each method names; everything else is fault.Internal or fault.Unavailable.
package host
