package vmdk

import (
	"errors"
	"io"
	"sync/atomic"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Extent is an open extent: Len bytes of the disk from Start on.
type Extent struct {
	Index      int
	Kind       ExtentKind
	Name       string // file name; "" for Zero
	Start, Len int64  // bytes of the disk

	data     fsx.File // guest data, direct if asked
	base     int64    // Flat: byte of the file where the extent begins
	sp       *sparse  // Sparse only
	ro       readMap  // Stream and SESparse only
	access   string   // of its line, as read
	writable bool
	again    bool        // an earlier extent of the link has the same file, and its locks
	unsynced atomic.Bool // data was written since the last SyncData
	solid    atomic.Bool // the file system refused to punch
}

// Solid tells that the extent's file cannot be punched, as far as was tried: grains that are given up stay lost until the
// disk is compacted, so they should not be given up.
func (e *Extent) Solid() bool { return e.solid.Load() }

// WriteErr is why nothing can be written into the extent, by its line; nil if the link's mode decides.
func (e *Extent) WriteErr() error {
	switch {
	case e.access == "NOACCESS":
		return fault.New(fault.ReadOnly, "write elsewhere, or convert the disk", "bytes %d..%d of the disk are a NOACCESS extent", e.Start, e.End()-1)
	case e.Kind == Zero:
		return fault.New(fault.ReadOnly, "write elsewhere, or convert the disk", "bytes %d..%d of the disk are a ZERO extent", e.Start, e.End()-1)
	case e.access == "RDONLY":
		return fault.New(fault.ReadOnly, "write elsewhere, or convert the disk", "bytes %d..%d of the disk are a RDONLY extent", e.Start, e.End()-1)
	}
	return nil
}

// End is the first byte of the disk behind the extent.
func (e *Extent) End() int64 { return e.Start + e.Len }

// State is what a link knows about a range.
type State int

// States. A Flat extent is always Allocated; its holes are the file's.
const (
	Unallocated State = iota // look into the parent; zeros in a base
	Allocated                // here, at Run.Offset of the extent's file
	Zeroed                   // zeros, whatever the parent has
)

// Run is a piece of an extent of one state and, when allocated and not packed, contiguous in the file.
type Run struct {
	State  State
	Packed bool  // allocated, but compressed: there is no byte of the file to be read
	Offset int64 // byte in the extent's file; Allocated and not Packed only
	Len    int64 // bytes
}

// readMap is how the grains of an extent that is only read are found. All of it may be called at once.
type readMap interface {
	// run describes the piece at off, at most n bytes.
	run(off, n int64) (Run, error)
	// read reads allocated bytes from off on.
	read(p []byte, off int64) error
	grainBytes() int64
	close() error
}

// Run describes the piece at off (bytes from the extent's start), at most n bytes long.
func (e *Extent) Run(off, n int64) (Run, error) {
	switch e.Kind {
	case Flat:
		return Run{State: Allocated, Offset: e.base + off, Len: n}, nil
	case Zero:
		return Run{State: Zeroed, Len: n}, nil
	case Stream, SESparse:
		return e.ro.run(off, n)
	}
	return e.sp.run(off, n)
}

// ReadRun reads the allocated bytes from off (bytes from the extent's start) on that are the beginning of r.
func (e *Extent) ReadRun(p []byte, off int64, r Run) error {
	if e.ro != nil {
		return fault.Wrap(e.ro.read(p, off), "extent %s", e.Name)
	}
	return e.ReadFile(p, r.Offset)
}

// ReadFile reads guest data at a byte offset of the extent's file, as Run gave it. A file that ends inside its last
// grain is valid and reads as zeros there; one that ends before the range is damaged.
func (e *Extent) ReadFile(p []byte, fileOff int64) error {
	n, err := e.data.ReadAt(p, fileOff)
	if err == nil || n == len(p) {
		return nil
	}
	if !errors.Is(err, io.EOF) {
		return fault.Wrap(err, "extent %s: read %d bytes at %d", e.Name, len(p), fileOff)
	}
	if gb := e.GrainBytes(); e.Kind == Flat || n == 0 && fileOff%gb == 0 || int64(len(p)-n) >= gb {
		return fault.New(fault.Damaged, "restore the file, it was cut off", "extent %s ends before byte %d", e.Name, fileOff+int64(n)+1)
	}
	clear(p[n:])
	return nil
}

// WriteFile writes guest data at a byte offset of the extent's file.
func (e *Extent) WriteFile(p []byte, fileOff int64) error {
	_, err := e.data.WriteAt(p, fileOff)
	e.unsynced.Store(true) // after the write: a sync that starts later must see it; after a failure too, part may be there
	if err != nil {
		return fault.Wrap(err, "extent %s: write %d bytes at %d", e.Name, len(p), fileOff)
	}
	return nil
}

// ShareFile lets this extent's file share n bytes at fileOff with those at from of src's file, both as Run gave them. Kind: Unsupported (the
// file system or the offsets do not allow it; nothing was changed).
func (e *Extent) ShareFile(src *Extent, from, fileOff, n int64) error {
	if e.data == nil || src.data == nil || (from|fileOff|n)%pageSize != 0 {
		return fault.New(fault.Unsupported, "", "extents %s and %s cannot share these bytes", e.Name, src.Name)
	}
	err := fsx.Reflink(e.data, src.data, from, fileOff, n)
	if fault.KindOf(err) == fault.Unsupported {
		return err
	}
	e.unsynced.Store(true)
	return fault.Wrap(err, "extent %s: share %d bytes with %s", e.Name, n, src.Name)
}

// ShareWith lets dst share n bytes with those at from of this extent's file, as Run gave it. Kind: Unsupported (as ShareFile's).
func (e *Extent) ShareWith(dst fsx.File, from, off, n int64) error {
	if e.data == nil || (from|off|n)%pageSize != 0 {
		return fault.New(fault.Unsupported, "", "extent %s cannot share these bytes", e.Name)
	}
	return fsx.Reflink(dst, e.data, from, off, n)
}

// ZeroFile makes a range of the file read as zeros; punch also gives the space back. Kinds: Unsupported (the file system
// cannot punch, and nothing was changed).
func (e *Extent) ZeroFile(fileOff, n int64, punch bool) error {
	var err error
	if punch {
		if err = e.data.Punch(fileOff, n); fault.KindOf(err) == fault.Unsupported {
			e.solid.Store(true)
			return err
		}
	} else {
		err = e.data.Zero(fileOff, n)
	}
	e.unsynced.Store(true)
	return fault.Wrap(err, "extent %s: zero %d bytes at %d", e.Name, n, fileOff)
}

// SeekData is the first data of a Flat extent at or after off, in bytes of the extent: [start, end). io.EOF if the
// rest is a hole.
func (e *Extent) SeekData(off int64) (start, end int64, err error) {
	start, end, err = e.data.SeekData(e.base + off)
	if err != nil {
		return 0, 0, err
	}
	start, end = max(start-e.base, off), min(end-e.base, e.Len)
	if start >= e.Len {
		return 0, 0, io.EOF
	}
	return start, end, nil
}

// SyncData makes guest data durable if any was written since the last call.
func (e *Extent) SyncData() error {
	if e.data == nil || !e.writable || !e.unsynced.Swap(false) {
		return nil
	}
	return fault.Wrap(e.data.Datasync(), "extent %s: sync", e.Name)
}

// GrainBytes is the grain size; 0 for kinds without grains.
func (e *Extent) GrainBytes() int64 {
	if e.ro != nil {
		return e.ro.grainBytes()
	}
	if e.sp == nil {
		return 0
	}
	return e.sp.grain * SectorSize
}

// inode identifies the extent's file.
func (e *Extent) inode() (fsx.Info, error) {
	if e.data == nil {
		return fsx.Info{}, nil
	}
	return e.data.Stat()
}

func (e *Extent) lock(m fsx.LockMode) error {
	if e.data == nil || e.again {
		return nil
	}
	err := e.data.Lock(m)
	if errors.Is(err, fault.Unsupported) {
		return nil // no locks on this file system: the owner epoch of the manifest is what excludes others
	}
	return fault.Wrap(err, "extent %s: lock", e.Name)
}

func (e *Extent) close() error {
	var errs []error
	if e.data != nil {
		errs = append(errs, e.data.Close())
	}
	if e.sp != nil && e.sp.file != nil {
		errs = append(errs, e.sp.file.Close())
	}
	if e.ro != nil {
		errs = append(errs, e.ro.close())
	}
	return errors.Join(errs...)
}
