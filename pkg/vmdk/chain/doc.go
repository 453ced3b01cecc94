// Package chain makes one block device of the links of a VMDK disk.
//
// Responsible for: opening and validating a chain (content IDs, capacities, loops, depth); reading through it;
// copy-on-write into the head; discard and zeroing; the order of writes that makes a flush a promise; take-over from a
// dead process; maps; growth while in use.
//
// Invariants (DESIGN rules 3, 4 and 6):
//   - Data before pointer: a table sector is written only after a sync that followed the writes of every grain it names.
//   - Before a write that changed a table in memory is acknowledged, the change is in Pending; it leaves Pending only
//     after the table is durable. With Pending in memory that outlives the process, acknowledged writes do too.
//   - uncleanShutdown=1 and a new content ID are durable before the first write of an open.
//   - A freed grain is reused only after the change that freed it is durable and every request that began earlier
//     is over, and it reads as zeros then.
//   - Parents are opened read-only and never written.
//   - After a sync failed nothing is read or written any more: fault.Poisoned.
//
// Locks, outermost first:
//   - gate: held shared by every request, exclusively for the moment when grains are reclaimed, the disk grows, or closes.
//   - stripes: one per grain (hashed), held while a grain gets its place or loses it, in ascending order. Overwriting an
//     allocated grain takes none.
//   - commitMu: shared while an entry goes into Pending and the table; exclusive while the changes of a flush are frozen.
//   - flushMu, startMu and the locks of package vmdk: leaves.
//
// A flush holds commitMu for the freeze only, and never the gate or a stripe, so a request that meets a full Pending
// can commit in its own context. Concurrent flushes share one commit.
//
// Goroutines: none are started.
//
// Floor 2: it imports pkg/vmdk, pkg/block, internal/fsx and pkg/fault. No Kubernetes, gRPC or klog.
package chain
