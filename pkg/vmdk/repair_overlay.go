package vmdk

import (
	"errors"
	"io"
	"sort"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// overlay is a directory as it would be after changes that are only noted. A repair is planned on it, and what it would
// leave is checked on it; then the log is carried out, or thrown away.
type overlay struct {
	fsx.Dir // for what changes nothing
	files   map[string]*overlayNode
	log     []change
	noted   int // bytes of the log, about
}

// maxNoted bounds the memory of a plan. The tables of a full disk of 1 TiB have 64 MiB, and are noted twice.
const maxNoted = 192 << 20

// note adds to the log.
func (o *overlay) note(c change) error {
	if o.noted += 128 + len(c.data); o.noted > maxNoted {
		return fault.New(fault.Exhausted, "convert the disk", "nothing was changed: the repair would change more than %d MiB of metadata", maxNoted>>20)
	}
	o.log = append(o.log, c)
	return nil
}

// change is one noted operation, in the order in which it must happen.
type change struct {
	kind   changeKind
	file   string
	at, n  int64  // bytes; truncate: n is the size
	data   []byte // write, replace
	source int64  // copy: byte of the same file
}

type changeKind int

const (
	changeWrite changeKind = iota
	changeCopy
	changeTruncate
	changeSync
	changeReplace // the whole file, by rename
)

type overlayNode struct {
	name    string
	base    fsx.File
	old     int64 // size of base
	size    int64
	sectors map[int64][]byte   // changed ones
	copies  []change           // behind the old end
	text    []byte             // after a replace
	whole   bool               // text is the file
	hashes  map[int64][]string // of every content that a sector gets; of the whole file under 0 after a replace
}

var errOverlay = fault.New(fault.Unsupported, "", "not part of a repair")

func newOverlay(d fsx.Dir) *overlay { return &overlay{Dir: d, files: map[string]*overlayNode{}} }

// Close closes the files, not the directory.
func (o *overlay) Close() error {
	var errs []error
	for _, n := range o.files {
		errs = append(errs, n.base.Close())
	}
	return errors.Join(errs...)
}

func (o *overlay) node(name string) (*overlayNode, error) {
	if n := o.files[name]; n != nil {
		return n, nil
	}
	f, err := o.Dir.Open(name, fsx.ReadOnly)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	n := &overlayNode{name: name, base: f, old: info.Size, size: info.Size, sectors: map[int64][]byte{}, hashes: map[int64][]string{}}
	o.files[name] = n
	return n, nil
}

// Open opens a file that is there.
func (o *overlay) Open(name string, flag fsx.Flag) (fsx.File, error) {
	if flag&fsx.Create != 0 {
		return nil, errOverlay
	}
	n, err := o.node(name)
	if err != nil {
		return nil, err
	}
	return &overlayFile{o: o, n: n, writable: flag&fsx.ReadWrite != 0}, nil
}

// Rename, Remove, LinkFrom and Mkdir have no place in a repair.
func (o *overlay) Rename(string, string) error            { return errOverlay }
func (o *overlay) Remove(string) error                    { return errOverlay }
func (o *overlay) Mkdir(string) error                     { return errOverlay }
func (o *overlay) LinkFrom(fsx.Dir, string, string) error { return errOverlay }

// replace notes that a small file gets a new content as a whole.
func (o *overlay) replace(name string, text []byte) error {
	n, err := o.node(name)
	if err != nil {
		return err
	}
	n.hashes[0] = append(n.hashes[0], hashOf(text))
	n.text, n.whole, n.size = append([]byte(nil), text...), true, int64(len(text))
	return o.note(change{kind: changeReplace, file: name, data: n.text})
}

type overlayFile struct {
	o        *overlay
	n        *overlayNode
	writable bool
}

func (f *overlayFile) ReadAt(p []byte, off int64) (int, error) {
	n := f.n
	if off >= n.size {
		return 0, io.EOF
	}
	got := int(min(int64(len(p)), n.size-off))
	q := p[:got]
	if n.whole {
		copy(q, n.text[off:])
	} else if err := n.read(q, off); err != nil {
		return 0, err
	}
	if got < len(p) {
		return got, io.EOF
	}
	return got, nil
}

func (n *overlayNode) read(q []byte, off int64) error {
	clear(q)
	if off < n.old {
		part := q[:min(int64(len(q)), n.old-off)]
		if _, err := n.base.ReadAt(part, off); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
	}
	end := off + int64(len(q))
	i := sort.Search(len(n.copies), func(i int) bool { return n.copies[i].at+n.copies[i].n > off })
	for ; i < len(n.copies) && n.copies[i].at < end; i++ {
		c := n.copies[i]
		lo, hi := max(off, c.at), min(end, c.at+c.n)
		if _, err := n.base.ReadAt(q[lo-off:hi-off], c.source+lo-c.at); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
	}
	for s := off / SectorSize; s*SectorSize < end && len(n.sectors) > 0; s++ {
		if b := n.sectors[s]; b != nil {
			lo, hi := max(off, s*SectorSize), min(end, (s+1)*SectorSize)
			copy(q[lo-off:hi-off], b[lo-s*SectorSize:])
		}
	}
	return nil
}

func (f *overlayFile) WriteAt(p []byte, off int64) (int, error) {
	if !f.writable || f.n.whole {
		return 0, errOverlay
	}
	n, end := f.n, off+int64(len(p))
	for s := off / SectorSize; s*SectorSize < end; s++ {
		b := n.sectors[s]
		if b == nil {
			b = make([]byte, SectorSize)
			if err := n.read(b, s*SectorSize); err != nil {
				return 0, err
			}
			n.sectors[s] = b
		}
		lo, hi := max(off, s*SectorSize), min(end, (s+1)*SectorSize)
		copy(b[lo-s*SectorSize:], p[lo-off:hi-off])
		n.hashes[s] = append(n.hashes[s], hashOf(b))
	}
	n.size = max(n.size, end)
	return len(p), f.o.note(change{kind: changeWrite, file: n.name, at: off, n: int64(len(p)), data: append([]byte(nil), p...)})
}

// Clone copies a range of the same file behind its old end, and behind earlier copies.
func (f *overlayFile) Clone(src fsx.File, srcOff, dstOff, length int64) error {
	s, ok := src.(*overlayFile)
	n := f.n
	if !ok || !f.writable || s.n != n || dstOff < n.old || srcOff >= n.old {
		return errOverlay
	}
	if k := len(n.copies); k > 0 && dstOff < n.copies[k-1].at+n.copies[k-1].n {
		return errOverlay
	}
	c := change{kind: changeCopy, file: n.name, at: dstOff, n: length, source: srcOff}
	n.copies = append(n.copies, c)
	n.size = max(n.size, dstOff+length)
	return f.o.note(c)
}

func (f *overlayFile) Truncate(size int64) error {
	if !f.writable || f.n.whole || size < f.n.old {
		return errOverlay // a repair cuts nothing off
	}
	f.n.size = size
	return f.o.note(change{kind: changeTruncate, file: f.n.name, n: size})
}

func (f *overlayFile) Datasync() error {
	if k := len(f.o.log); k > 0 && f.writable && f.o.log[k-1].kind != changeSync {
		return f.o.note(change{kind: changeSync, file: f.n.name})
	}
	return nil
}

func (f *overlayFile) SeekData(off int64) (start, end int64, err error) {
	n := f.n
	if off < n.old && !n.whole {
		if start, end, err = n.base.SeekData(off); !errors.Is(err, io.EOF) {
			return start, end, err
		}
	}
	if start = max(off, n.old); start < n.size {
		return start, n.size, nil
	}
	return 0, 0, io.EOF
}

func (f *overlayFile) Stat() (fsx.Info, error) {
	i, err := f.n.base.Stat()
	i.Size = f.n.size
	return i, err
}

func (f *overlayFile) Close() error                { return nil }
func (f *overlayFile) Lock(fsx.LockMode) error     { return nil }
func (f *overlayFile) Allocate(int64, int64) error { return errOverlay }
func (f *overlayFile) Punch(int64, int64) error    { return errOverlay }
func (f *overlayFile) Zero(int64, int64) error     { return errOverlay }
