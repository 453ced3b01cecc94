// Package worker runs one process per attached disk, and keeps it running.
//
// Main is that process: it opens the disk's chain, serves the kernel through an export.Server, and answers its supervisor
// on a control socket. A Supervisor lives in hostd: it starts workers, restarts one that died, and takes over workers of a
// hostd that died.
//
// # Take-over
//
// A worker may be killed between any two instructions and the user of the disk notices a pause. What makes that true:
//
//  1. The session's descriptor and the hand-over table (pkg/worker/table) outlive it in the supervisor and in the node
//     service.
//  2. A successor first claims the table. The claim is the kernel's proof that no thread of the predecessor is left, so no
//     request of the predecessor is still on its way to a file. On file systems whose direct writes can outlive a killed
//     process (NFS waits killably, fs/nfs/direct.c), it then touches every file through the page cache, which waits for
//     them. Who opens the disk afresh for writing does so too: the predecessor may have died with everybody who knew it.
//  3. It opens the chain as a take-over (no check of an unclean disk), and the chain applies the pending entries.
//  4. It asks the kernel for every unanswered request again, and serves.
//
// A crash in 2-4 is a death like any other. A worker that died before it had opened the disk for the first time has served
// nothing: the next one opens afresh, with the check. A failed sync poisons the table: from then on every worker answers
// every request with an error until the disk is detached and attached again.
//
// A worker dies with its supervisor: PR_SET_PDEATHSIG, set by a thread that lives as long as the Supervisor, because the
// signal comes when the creating thread ends, not the process (prctl(2)).
//
// # Changes of the links
//
// A snapshot or merge is made by the worker, which has the chain open, and made permanent by its supervisor, which owns the
// manifest: when everything is prepared the worker closes the gate and asks, the supervisor commits, notes what a successor is
// to open, and answers; then the gate opens. Nothing is pending in the table at that moment, so its entries fit the links on
// both sides. A worker that dies before it asked has changed nothing that counts; behind the commit its successor opens the
// new links, after it has made the descriptors say what a merge had still to write.
//
// A read-only disk may have a redo log (block.Overlay) in a file that is kept like the table: what its user wrote survives
// the worker, and nothing reaches the datastore.
//
// # Remote disks
//
// A worker with Spec.Remote serves a disk that another host has open (pkg/remote): it has no directory and no links, changes between
// SAN and NBD by itself, and tells its supervisor each time. A successor opens the disk anew: what was acknowledged is at the server or on
// the LUN. Handle.SetRemote tells of other servers and another certificate. Its walls leave it the files of its LUNs, and connections.
//
// # Goroutines and locks
//
// A Supervisor owns one locked thread that forks; each Handle owns one goroutine that runs its processes one after the
// other, and one per process that reads its socket; Close and Stop wait for them. Handle.mu guards the state and the table
// of waiting calls and is never held across a wait.
//
// Floor 5. It must not import an exporter, a format or Kubernetes: cmd hands Main what opens a chain and what serves it.
package worker
