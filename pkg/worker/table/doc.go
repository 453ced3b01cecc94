// Package table is the hand-over table of one attached disk: a memfd that the worker, its supervisor and the node
// service hold, so that what a worker acknowledged survives the death of any of them (rule: acknowledged means it
// survives any process's death). It keeps the pending grain-table entries (it implements chain.Pending), the saved state
// of the export session, and whether the disk is poisoned.
//
// Invariants: an entry is stored before the head counter that makes it current, and a state before the length that makes
// it valid, each published by one atomic store; so a process killed between any two instructions leaves a table that is
// valid, and lacks only what was not acknowledged. Counters only grow; tail <= head <= tail+Slots. The file's size is
// sealed. One process writes at a time: the one whose Claim returned, which is when its predecessor is certainly dead.
//
// Locks: one mutex orders Append, Retire and Load of this process; it is never held across a system call. No goroutines.
//
// It must not import anything of the module but pkg/vmdk/chain, pkg/fault and internal/sys.
package table
