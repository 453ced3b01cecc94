package block

import "io"

// Device is a disk of Size bytes that is read and written at byte offsets.
//
// Offsets and lengths may have any alignment; implementations serve unaligned requests, more slowly. A request that
// does not lie wholly inside [0, Size()) fails with an error that Is(fault.OutOfRange) and transfers nothing.
// All methods may be called concurrently. Overlapping concurrent writes leave, sector by sector, the bytes of one of
// them. A write is visible to every read that starts after WriteAt returned; it is durable (survives the machine's
// death) when a Flush that started after WriteAt returned has returned nil. After a Flush failed every later call
// fails with an error that Is(fault.Poisoned): the state of the medium is unknown until it was reopened and checked.
type Device interface {
	io.ReaderAt
	io.WriterAt
	// Flush makes every write, discard and zeroing acknowledged before the call durable.
	Flush() error
	// Discard gives the space of the range back where that is cheap. Afterwards the range reads as zeros
	// (never as a parent's content). Kind: Unsupported (what holds the data cannot give space back; nothing changed).
	Discard(off, n int64) error
	// WriteZeroes makes the range read as zeros.
	WriteZeroes(off, n int64) error
	// Size is the capacity in bytes. It changes only by growth of the disk.
	Size() int64
}
