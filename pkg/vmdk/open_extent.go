package vmdk

import (
	"errors"
	"io/fs"
	"math"
	"slices"
	"strings"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

func (l *Link) openExtents() error {
	lines := l.desc.Load().Extents()
	if err := l.checkNames(lines); err != nil {
		return err
	}
	var start int64
	for i, x := range lines {
		if l.embedded {
			x.Name = l.Name // renamed and streamed images carry stale names
		}
		e := &Extent{Index: i, Name: x.Name, Start: start, Len: x.Sectors * SectorSize}
		e.again = slices.ContainsFunc(l.extents, func(o *Extent) bool { return o.Name == e.Name && o.data != nil })
		start = e.End()
		l.extents = append(l.extents, e)
		if err := l.openExtent(e, x); err != nil {
			return fault.Wrap(err, "extent %d", i)
		}
	}
	if start == 0 {
		return fault.New(fault.Damaged, "", "the extents are empty")
	}
	if t := l.desc.Load().Type(); t == StreamOptimized && l.extents[0].Kind != Stream {
		return fault.New(fault.Damaged, "restore the file", "a disk of type %s has an extent of kind %s", t, l.extents[0].Kind)
	}
	return l.checkWritable()
}

// checkNames compares the extents' names with each other and with what a manifest knows.
func (l *Link) checkNames(lines []ExtentLine) error {
	if l.embedded && len(lines) != 1 {
		return fault.New(fault.Damaged, "", "an embedded descriptor names %d extents, not 1", len(lines))
	}
	want := l.o.ExtentNames
	if n := len(want); l.o.MoreExtents && n > 0 && n < len(lines) {
		want = append([]string(nil), want...)
		stem := strings.TrimSuffix(l.Name, ".vmdk")
		for _, x := range extentLines(stem, l.Name, l.desc.Load().Type(), n, int64(len(lines)-n), 1) {
			want = append(want, x.Name)
		}
	}
	if want != nil && len(want) != len(lines) {
		return fault.New(fault.Damaged, "restore the descriptor", "it names %d extents, its manifest %d", len(lines), len(want))
	}
	used := usedFiles{l.Name: {{0, math.MaxInt64}}}
	for i, x := range lines {
		if l.embedded {
			x.Name = l.Name
		} else if err := used.take(x); err != nil {
			return fault.Wrap(err, "extent %d", i)
		}
		if want != nil && x.Name != want[i] {
			return fault.New(fault.Damaged, "restore the descriptor", "extent %d is named %q, its manifest says %q", i, clip(x.Name), want[i])
		}
	}
	return nil
}

// usedFiles are the ranges of files that extents have, in sectors. The parts of a partitioned device, and flat extents of
// a custom disk, may share a file.
type usedFiles map[string][]span

func (u usedFiles) take(x ExtentLine) error {
	if x.Name == "" {
		return nil
	}
	s := span{x.Offset, x.Offset + x.Sectors}
	if !flatType(x.Type) {
		s = span{0, math.MaxInt64}
	}
	for _, o := range u[x.Name] {
		if s.from < o.to && o.from < s.to {
			return fault.New(fault.Damaged, "", "it names %q, which is in use already", clip(x.Name))
		}
	}
	u[x.Name] = append(u[x.Name], s)
	return nil
}

// flatType tells that extents of this type are found by an offset in their file.
func flatType(t string) bool { return t == "FLAT" || t == "VMFS" || t == "VMFSRDM" || t == "VMFSRAW" }

// Writable tells why no extent of the link can be written once it is opened for that; nil if one can.
func (l *Link) Writable() error {
	for _, e := range l.extents {
		if e.Kind == Stream || e.Kind == SESparse || e.Kind == Zero || e.access == "RDONLY" || e.access == "NOACCESS" {
			return fault.New(fault.Unsupported, "Convert it.", "%s of %s is not written in place", e.Name, l.Name)
		}
	}
	return nil
}

// checkWritable refuses to open a disk for writing that has no place to write: an exported image, say.
func (l *Link) checkWritable() error {
	if !l.o.ReadWrite {
		return nil
	}
	var err error
	for _, e := range l.extents {
		if e.writable {
			return nil
		}
		if e.access == "RDONLY" {
			err = fault.New(fault.ReadOnly, "open it read-only, or convert it", "%q is marked RDONLY", clip(e.Name))
		}
	}
	return err
}

func (l *Link) openExtent(e *Extent, x ExtentLine) error {
	e.access = x.Access
	switch {
	case x.Access == "NOACCESS" || x.Type == "ZERO":
		e.Kind = Zero
		return nil
	case flatType(x.Type):
		e.Kind = Flat
	case x.Type == "SPARSE" || x.Type == "VMFSSPARSE":
		e.Kind = Sparse
	case x.Type == "SESPARSE":
		e.Kind = SESparse
	default:
		return unsupportedType("extent type", x.Type)
	}
	if e.Kind == Flat && l.desc.Load().IsChild() {
		return fault.New(fault.Damaged, "", "a child link has a flat extent")
	}
	if path, ok := l.o.Devices[x.Name]; ok && x.Name != "" {
		return l.openDevice(e, x, path)
	}
	if l.desc.Load().Type().device() && strings.ContainsAny(x.Name, `/\`) {
		return fault.New(fault.Unsupported, "name the device explicitly, if the disk is to be trusted", "%q is not a file name of the descriptor's directory", clip(x.Name))
	}
	if !l.desc.Load().plainName(x.Name) {
		return fault.New(fault.Invalid, "put the extent beside its descriptor and correct the name", "%q is not a file name of the descriptor's directory", clip(x.Name))
	}
	e.writable = l.o.ReadWrite && x.Access == "RW"
	e.unsynced.Store(true) // what an earlier process wrote may not be durable yet
	if err := l.openData(e, x.Name); err != nil {
		return err
	}
	info, err := e.data.Stat()
	if err != nil {
		return err
	}
	switch e.Kind {
	case Flat:
		return e.placeFlat(x, info.Size)
	case SESparse:
		return e.openSESparse(l.dir, x, info.Size)
	}
	return e.openTables(l.dir, x, info.Size)
}

// twoBytes are the encodings in which a backslash may be the second byte of a character.
var twoBytes = map[string]bool{"gbk": true, "gb18030": true, "gb2312": true, "big5": true, "shift_jis": true, "shift-jis": true,
	"windows-932": true, "windows-936": true, "windows-949": true, "windows-950": true, "euc-kr": true}

// plainName tells that an extent's name is one of the descriptor's directory.
func (d *Descriptor) plainName(name string) bool {
	encoding, ok := d.Get("encoding")
	if !ok {
		encoding, _ = d.Get("ddb.encoding")
	}
	two := twoBytes[strings.ToLower(encoding)]
	for i := 0; i < len(name); i++ {
		switch {
		case name[i] == '/' || name[i] == '\\':
			return false
		case two && name[i] >= 0x81 && i+1 < len(name) && name[i+1] != '/':
			i++
		}
	}
	return name != "" && name != "." && name != ".."
}

// openDevice opens what the caller gave for an extent.
func (l *Link) openDevice(e *Extent, x ExtentLine, path string) (err error) {
	if e.Kind != Flat {
		return fault.New(fault.Invalid, "", "%q is given as a device, but is a %s extent", clip(x.Name), x.Type)
	}
	e.writable = l.o.ReadWrite && x.Access == "RW"
	e.unsynced.Store(true)
	flag := fsx.ReadOnly
	if e.writable {
		flag = fsx.ReadWrite
	}
	if l.o.ReadWrite && !e.again {
		flag |= fsx.Exclusive
	}
	if e.data, err = fsx.OpenDevice(path, flag); err != nil {
		return err
	}
	info, err := e.data.Stat()
	if err != nil {
		return err
	}
	return e.placeFlat(x, info.Size)
}

// openData opens the extent's file for guest data and locks it.
func (l *Link) openData(e *Extent, name string) (err error) {
	flag, mode := fsx.ReadOnly, fsx.LockRead
	write := e.writable
	for _, x := range l.desc.Load().Extents() { // the first extent of a file holds the lock for all
		write = write || l.o.ReadWrite && x.Access == "RW" && x.Name == name
	}
	if write {
		flag, mode = fsx.ReadWrite, fsx.LockWrite
	}
	if l.o.Direct {
		flag |= fsx.Direct
	}
	if e.data, err = l.dir.Open(name, flag); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fault.New(fault.Damaged, "restore the file", "%s is missing: %w", name, err)
		}
		return err
	}
	if !l.o.Lock {
		return nil
	}
	return e.lock(mode)
}

// placeFlat finds the extent's bytes in a file of this size.
func (e *Extent) placeFlat(x ExtentLine, size int64) error {
	e.base = x.Offset * SectorSize
	switch need := e.base + e.Len; {
	case size >= need:
		return nil
	case strings.HasPrefix(x.Type, "VMFSR"):
		return fault.New(fault.Unsupported, "name the device that has the content, or clone the disk to a vmfs disk with vSphere",
			"%s is a mapping of a LUN, without its content", x.Name)
	default:
		return fault.New(fault.Damaged, "restore the file, it was cut off", "%s has %d bytes, its descriptor needs %d", x.Name, size, need)
	}
}

func (e *Extent) openSESparse(d fsx.Dir, x ExtentLine, size int64) error {
	if e.writable {
		return fault.New(fault.Unsupported, "convert it, or make a child of it", "%s is an SESparse extent, which can only be read here", x.Name)
	}
	f, err := d.Open(x.Name, fsx.ReadOnly)
	if err != nil {
		return err
	}
	m, err := openSESparse(x.Name, f, x, size)
	if err != nil {
		return fault.Wrap(errors.Join(err, f.Close()), "%s", x.Name)
	}
	e.ro = m
	return nil
}

func (e *Extent) openTables(d fsx.Dir, x ExtentLine, size int64) error {
	flag := fsx.ReadOnly
	if e.writable {
		flag = fsx.ReadWrite
	}
	f, err := d.Open(x.Name, flag)
	if err != nil {
		return err
	}
	ok := false
	defer func() {
		if !ok {
			_ = f.Close() // the first error is the one to report
		}
	}()
	h, err := readHeader(f)
	if err != nil {
		return fault.Wrap(err, "%s: header", x.Name)
	}
	if h.cowd != nil && x.Type != "VMFSSPARSE" {
		return fault.New(fault.Damaged, "correct the extent's type to VMFSSPARSE", "%s is a COWD extent, its descriptor says %s", x.Name, x.Type)
	}
	if ds := h.defects(size); len(ds) > 0 {
		return fault.Wrap(ds[0].err, "%s", x.Name)
	}
	if h.stream() {
		if e.writable {
			return fault.New(fault.Unsupported, "convert it, or make a child of it", "%s has compressed grains, which are written once", x.Name)
		}
		m, err := openStream(x.Name, f, h, x.Sectors, size)
		if err != nil {
			return fault.Wrap(err, "%s", x.Name)
		}
		e.Kind, e.ro, ok = Stream, m, true
		return nil
	}
	// A header that promises more than the line is a growth that was cut off before the descriptor: the line rules.
	if int64(h.capacity) < x.Sectors {
		return fault.New(fault.Damaged, "run vmdkctl check", "%s maps %d sectors, its descriptor says %d", x.Name, h.capacity, x.Sectors)
	}
	e.sp, err = openSparse(x.Name, f, h, x.Sectors, size, e.writable)
	ok = err == nil
	return err
}
