// Package chain makes one block device of the links of a VMDK disk.
//
// Responsible for: opening and validating a chain (content IDs, capacities, loops, depth); reading through it;
// copy-on-write into the head; discard and zeroing; the order of writes that makes a flush a promise; take-over from a
// dead process; maps; and, while the disk is in use, growth, snapshots, and merges of neighbours in both directions.
// What of it is permanent is decided by the caller's Commit, which writes a manifest.
//
// Invariants (DESIGN rules 1 to 4, 6 and 7):
//   - Data before pointer: a table sector is written only after a sync that followed the writes of every grain it names.
//   - Before a write that changed a table in memory is acknowledged, the change is in Pending; it leaves Pending only
//     after the table is durable. With Pending in memory that outlives the process, acknowledged writes do too.
//   - uncleanShutdown=1 and a new content ID are durable before the first write of an open.
//   - A freed grain is reused only after the change that freed it is durable and every request that began earlier
//     is over, and it reads as zeros then.
//   - Parents are opened read-only and never written, except one by a merge, and one that is mended.
//   - Whatever a merge is doing, each link of the chain with those below it reads as before, the lower one of a merge down
//     excepted, and the head as the disk. A grain is gone from a drained head only where it is durable below.
//   - Whenever links change, Pending is empty, and everything is durable.
//   - A content ID that a child records does not change: the head begins before it gets a child.
//   - After a sync failed nothing is read or written any more: fault.Poisoned.
//
// Locks, outermost first:
//   - changeMu: one growth, snapshot or merge at a time. Close waits for it, having cancelled what holds it.
//   - gate: held shared by every request and by each piece that a merge copies, exclusively for the moment when grains are
//     reclaimed, the disk grows, links change, or the disk closes. Links and merging are read under it.
//   - stripes, then lowerStripes: one per 64 KiB or grain (hashed), held while a grain gets its place or loses it, in ascending
//     order. Overwriting an allocated grain takes none, except in a head that is being drained.
//   - commitMu: shared while an entry goes into Pending and the table; exclusive while the changes of a flush are frozen.
//   - flushMu, startMu, linksMu and the locks of package vmdk: leaves.
//
// A flush holds commitMu for the freeze only, and never the gate or a stripe, so a request that meets a full Pending
// can commit in its own context. Concurrent flushes share one commit, and a commit that others wait for freezes theirs before its
// own last sync.
//
// Where files can share blocks (XFS, btrfs) a merge down, ShareTo and ShareFrom copy no data.
//
// Goroutines: none are started, but what context.AfterFunc runs for a moment when the chain is closed during a change.
//
// Floor 2: it imports pkg/vmdk, pkg/block, internal/fsx and pkg/fault. No Kubernetes, gRPC or klog.
package chain
