// Package local implements the port pkg/host in this process: pkg/volume for what is on the datastores, a supervisor of
// workers for what is attached, a transport for the way between. hostd serves it with host/wire.
//
// Invariants:
//   - A disk is in Host.attached from before its worker starts until its release is committed: an attach, detach,
//     expand or delete of it always meets what an earlier one left.
//   - The manifest has the last word about who may write. What a holder brings back (Sync, Handover) is served only under
//     the epoch that the manifest still gives to this host and this start of the machine.
//   - A datastore that is missing does not stop the others; it is tried again at every request that needs it.
//
// Claims are intent, kept in a JSON file in the state directory with the identity of every datastore that was seen.
// They are read from the file by each operation, so that a successor process sees its predecessor's.
//
// Goroutines and locks: Host.busy is the lock of operations on one disk, taken without waiting (InProgress); Handover and
// Sync wait for it with their deadline. Host.mu guards the map of attached disks and is never held during I/O. claims.mu
// and store.mu are held during small file operations. Sync starts goroutines that it waits for.
//
// Floor 5. It must not import pkg/worker, an exporter or another adapter: Workers is the interface to what cmd wires in.
package local
