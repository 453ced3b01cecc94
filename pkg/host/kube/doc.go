// Package kube is the host port over Kubernetes objects (pkg/api/v1alpha1): intent in spec, facts in status.
//
//	Client  host.Disks, host.Snapshots, host.Claims and host.Datastores for the CSI controller. It writes intent, picks
//	        hosts, and waits by watch for the status that answers, until shortly before the caller's deadline.
//	Agent   runs in the node plugin: does what the objects addressed to its node ask for by calling hostd, and writes
//	        status and events; also the node service's Recorder.
//
// Invariants:
//
//  1. Idempotency is "API create plus resourceVersion", never process memory: any number of controllers may serve.
//     Every read of the Client goes through the API server, not a cache.
//  2. A change of intent raises the object's generation; a status answers the generation it names. A repeated request
//     after a failure raises spec.attempt, so that it gets a fresh answer and not the old one.
//  3. A disk whose status has a uuid was made: no host makes it again, and no failed create removes it. When its files
//     are missing, the disk says so.
//     A snapshot whose status has a CID was made, and is never made again: a point in time cannot come back.
//  4. An object is removed after its files: the finalizer is taken away by the host that deleted them. A disk that is
//     deleted while it has snapshots keeps its object, in phase Retired, until the last of them is deleted.
//  5. A host writes status by server-side apply: the facts of the disk under one manager (whichever host works takes
//     them over whole), its own entry in attachments and hosts under a manager of its own.
//  6. A host takes its entry in attachments away when its hostd has released the disk, not when hostd does not know it.
//  7. A snapshot, and a disk with a source, is made by the host that has the source's disk open, if one has; else, for
//     scope node, by the node of its files; else by any that can.
//  8. A file system that is stopped for a snapshot goes on at its deadline, whatever becomes of this process (Freezer).
//     A freeze that fails never fails the snapshot: the status says what was reached, an event says why.
//     What reaches a disk on a node, and why what was asked for before it does not, is in the node's entry of attachments; an
//     event tells each change against that entry, so that a restart tells nothing twice.
//  9. No decision is made on a time that another machine wrote. Whether a host is alive is the Node object's word; a disk on a LUN is
//     taken from a node that is down by that word alone (evict.go), never because the node is silent.
//
// Goroutines: the Client has none. Agent.Run owns all of the Agent's (informer, workers, datastore loop, recorder) and
// returns after they ended. The Agent's maps are guarded by the mutexes beside them; no lock is held over a call to the
// API or to hostd.
//
// Floor 5. It must not import pkg/vmdk, pkg/datastore, pkg/volume, internal/fsx or gRPC.
package kube
