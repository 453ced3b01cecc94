package chain

import "errors"

// ErrPendingFull is what Append returns when the entries do not fit; nothing was stored.
var ErrPendingFull = errors.New("pending table is full")

// Pending keeps grain-table changes that were acknowledged to the guest but are not on disk yet where they survive the
// death of this process (rule: acknowledged means it survives any process's death). The worker's implementation is a
// table in a memfd that two other processes hold; a nil Pending is for tools that hold the disk in one process.
//
// Life of an entry: Append before the write is answered; the entry is current until a Retire whose Mark was taken
// after it. A successor calls Load before it serves anything and applies the entries, in order, over the tables that
// it reads from disk; applying an entry that is on disk already changes nothing.
//
// Methods may be called concurrently.
type Pending interface {
	// Append stores entries, all or none. ErrPendingFull: commit (data sync, tables, sync), Retire, and try again.
	Append(entries ...PendingEntry) error
	// Mark is a position behind everything appended so far.
	Mark() uint64
	// Retire drops what was appended before the mark: it is durable in the grain tables now.
	Retire(mark uint64)
	// Load returns the current entries, oldest first.
	Load() []PendingEntry
}

// PendingEntry is one grain-table change of the head, or of the link below it while the head is drained into it: 16 bytes in
// the shared table. At every change of links the table is empty, so that a link's number means the same to whoever opens
// the chain next.
type PendingEntry struct {
	Extent uint16 // index of the extent in the link's descriptor
	Link   uint16 // number of the link in the chain, base 0: an entry of any other link is an error
	Sector uint32 // new grain-table entry: first sector of the grain in the extent file, 0 unallocated, 1 zeroed
	Grain  uint64 // grain number inside the extent
}
