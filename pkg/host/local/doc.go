// Package local implements the port pkg/host in this process: pkg/volume for what is on the datastores, a supervisor of
// workers for what is attached, a transport for the way between. hostd serves it with host/wire.
//
// Invariants:
//   - A disk is in Host.attached from before its worker starts until its release is committed: an attach, detach,
//     expand or delete of it always meets what an earlier one left.
//   - The manifest has the last word about who may write. What a holder brings back (Sync, Handover) is served only under
//     the epoch that the manifest still gives to this host and this start of the machine.
//   - A datastore that is missing does not stop the others; it is tried again at every request that needs it. Who searches
//     asks all at once and goes on with the first that has it; who knows the datastore, or is told (host.WithDatastore), asks
//     only that one.
//   - Links that nobody needs are merged in the background, one merge at a time per datastore. Whatever else is done with the
//     disk has the merge give way first, and it goes on afterwards: nothing waits for it but its own stop.
//   - A disk may be lent to other hosts (Lend): it is open in this process, as attached as any, but no attachment of this node.
//   - A disk that is attached read-only gets a redo log that is thrown away: its device can be written, its files are not.
//
// Claims are intent, kept in a JSON file in the state directory with the identity of every datastore that was seen.
// They are read from the file by each operation, so that a successor process sees its predecessor's.
//
// Goroutines and locks: Host.busy is the lock of operations on one disk, taken without waiting (InProgress); Handover and
// Sync wait for it with their deadline. Host.mu guards the map of attached disks and is never held during I/O. claims.mu
// and store.mu are held during small file operations. background.mu guards what is known of merges, and is never held during
// I/O. Sync starts goroutines that it waits for, Consolidate one per datastore; questions to datastores that nobody waits for
// any more are waited for by Close.
//
// Floor 5. It must not import pkg/worker, an exporter or another adapter: Workers is the interface to what cmd wires in.
package local
