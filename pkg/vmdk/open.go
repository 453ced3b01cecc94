package vmdk

import (
	"errors"
	"sort"
	"strings"
	"sync/atomic"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Options of Open. The zero value reads, without locks, through the page cache.
type Options struct {
	ReadWrite bool
	// Direct opens guest data past the page cache.
	Direct bool
	// Devices lets extents be something else than a file beside the descriptor: a path for each such name of an extent. It is for
	// raw devices and mappings of LUNs, and for nobody but an administrator: a name that is not in it is never followed.
	Devices map[string]string
	// Lock takes byte locks on every extent: LockWrite if ReadWrite, else LockRead; fault.InUse if somebody else holds them.
	Lock bool
	// Type, if set, is what the link must be; a manifest knows it. fault.Damaged otherwise.
	Type Type
	// ExtentNames, if set, are the names the extents must have; a manifest knows them.
	ExtentNames []string
	// MoreExtents allows further extents behind ExtentNames if they are named as a growth names them.
	MoreExtents bool
}

// Link is an open link. Its content belongs to package chain; the methods here change structure.
type Link struct {
	Name string

	dir      fsx.Dir
	desc     atomic.Pointer[Descriptor] // replaced, never changed
	extents  []*Extent
	o        Options
	embedded bool
	begun    bool
	unsure   error // which descriptor is on disk is unknown: nothing may be built on either
}

// Open opens the link whose descriptor is name. It is a descriptor text, or a sparse extent with an embedded descriptor
// if and only if it begins with the sparse magic, which a guest cannot write; a flat file is never opened as one.
// Extents are opened by the names in the descriptor, as single path elements of d.
func Open(d fsx.Dir, name string, o Options) (*Link, error) {
	desc, embedded, err := readDescriptor(d, name)
	if err != nil {
		return nil, err
	}
	l := &Link{Name: name, dir: d, o: o, embedded: embedded}
	l.desc.Store(desc)
	if err := l.checkOpenable(); err != nil {
		return nil, fault.Wrap(err, "%s", name)
	}
	if err := l.openExtents(); err != nil {
		return nil, errors.Join(fault.Wrap(err, "%s", name), l.closeFiles())
	}
	return l, nil
}

// readDescriptor reads the text of a link, stand-alone or embedded.
func readDescriptor(d fsx.Dir, name string) (desc *Descriptor, embedded bool, err error) {
	f, err := d.Open(name, fsx.ReadOnly)
	if err != nil {
		return nil, false, fault.Wrap(err, "descriptor %s", name)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	text, embedded, err := readDescriptorText(f)
	if err != nil {
		return nil, false, fault.Wrap(err, "%s", name)
	}
	desc, err = ParseDescriptor(text)
	return desc, embedded, fault.Wrap(err, "%s", name)
}

func readDescriptorText(f fsx.File) ([]byte, bool, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, false, err
	}
	head := make([]byte, min(info.Size, SectorSize))
	if err := readFull(f, head, 0); err != nil {
		return nil, false, err
	}
	switch magicOf(head) {
	case magicCOWD:
		return nil, true, fault.New(fault.Invalid, "open the descriptor file that names it", "it is an extent (COWD), which has no descriptor inside")
	case magicSESparse:
		_, err := decodeHeader(head)
		return nil, true, err
	case magicKDMV:
		h, err := decodeHeader(head)
		if err != nil {
			return nil, true, err
		}
		if ds := h.defects(info.Size); len(ds) > 0 {
			return nil, true, ds[0].err
		}
		if h.descOff == 0 || h.descSize == 0 {
			return nil, true, fault.New(fault.Invalid, "open the descriptor file that names it", "it is an extent without a descriptor")
		}
		b := make([]byte, h.descSize*SectorSize)
		if err := readFull(f, b, int64(h.descOff)*SectorSize); err != nil {
			return nil, true, err
		}
		text, _, _ := strings.Cut(string(b), "\x00")
		return []byte(text), true, nil
	}
	if info.Size > maxDescriptorBytes {
		return nil, false, fault.New(fault.Damaged, "name the descriptor, not its data file", "%d bytes are too long for a descriptor, and it is no sparse extent", info.Size)
	}
	b := make([]byte, info.Size)
	return b, false, readFull(f, b, 0)
}

func magicOf(b []byte) uint32 {
	if len(b) < SectorSize {
		return 0
	}
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
}

// checkOpenable refuses what cannot be read or must not be written.
func (l *Link) checkOpenable() error {
	t := l.desc.Load().Type()
	if err := t.refusal(); err != nil {
		return err
	}
	if l.o.ReadWrite && (t == StreamOptimized || t == SESparseType) {
		return fault.New(fault.Unsupported, "convert it, or make a child of it", "a disk of type %s can only be read here", t)
	}
	if l.o.Type != "" && t != l.o.Type {
		return fault.New(fault.Damaged, "restore the descriptor", "its type is %s, its manifest says %s", t, l.o.Type)
	}
	for _, k := range []string{"encryptionKeys", "encryption.keySafe", "encryption.data"} {
		if _, ok := l.desc.Load().Get(k); ok {
			return fault.New(fault.Unsupported, "decrypt the disk with the product that made it", "the disk is encrypted (%s)", k)
		}
	}
	if v, _ := l.desc.Load().Get("ddb.iofilters"); strings.Contains(strings.ToLower(v), "vmcrypt") {
		return fault.New(fault.Unsupported, "decrypt the disk with vSphere", "the disk is encrypted (ddb.iofilters %s)", clip(v))
	}
	if v, _ := l.desc.Load().Get("isNativeSnapshot"); strings.EqualFold(v, "yes") {
		return fault.New(fault.Unsupported, "delete the snapshot with vSphere, or clone the disk there",
			"it is a native snapshot: the array that holds it knows its content, not this file")
	}
	if !l.o.ReadWrite {
		return nil
	}
	for _, k := range []string{"digestFilename", "objectParentUri", "nativeDeltaBytes"} {
		if _, ok := l.desc.Load().Get(k); ok {
			return fault.New(fault.Unsupported, "open it read-only, or convert it", "a write would invalidate its %s", k)
		}
	}
	return nil
}

// Close closes the files. Dirty tables are lost: CloseClean first.
func (l *Link) Close() error { return l.closeFiles() }

func (l *Link) closeFiles() error {
	var errs []error
	for _, e := range l.extents {
		errs = append(errs, e.close())
	}
	return fault.Wrap(errors.Join(errs...), "close %s", l.Name)
}

// Descriptor is a copy of the link's descriptor.
func (l *Link) Descriptor() *Descriptor { return l.desc.Load().Clone() }

// Extents are the open extents in the order of the disk.
func (l *Link) Extents() []*Extent { return l.extents }

// Size is the capacity in bytes.
func (l *Link) Size() int64 { return l.extents[len(l.extents)-1].End() }

// At is the extent that holds byte off of the disk, 0 <= off < Size.
func (l *Link) At(off int64) *Extent {
	return l.extents[sort.Search(len(l.extents), func(i int) bool { return off < l.extents[i].End() })]
}

// Embedded tells that descriptor and extent are one file.
func (l *Link) Embedded() bool { return l.embedded }

// Unclean tells that some extent was not closed cleanly by whoever wrote it last.
func (l *Link) Unclean() bool {
	for _, e := range l.extents {
		if e.sp != nil && e.sp.h.unclean {
			return true
		}
	}
	return false
}

// Inodes identify the files of the link: the extents, each once, and the descriptor if it stands alone.
func (l *Link) Inodes() ([]fsx.Info, error) {
	var out []fsx.Info
	if !l.embedded {
		i, err := l.dir.Stat(l.Name)
		if err != nil {
			return nil, err
		}
		out = append(out, i)
	}
	for _, e := range l.extents {
		if e.data == nil || e.again {
			continue
		}
		i, err := e.inode()
		if err != nil {
			return nil, err
		}
		out = append(out, i)
	}
	return out, nil
}
