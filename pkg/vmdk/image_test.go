package vmdk

import (
	"bytes"
	"context"
	"encoding/binary"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx/sim"
)

// image is a healthy disk of one link in memory, and what a guest reads from it.
type image struct {
	t        *testing.T
	files    map[string][]byte
	child    bool
	embedded bool
	step     int64                             // bytes of a cell; 0: a grain
	reader   func(im *image, d fsx.Dir) []cell // nil: by Open
	content  []cell
}

// cell is what a grain (of a flat extent: 64 KiB) reads as.
type cell struct {
	off, n int64
	hash   uint64 // of the bytes; 1: the parent's
	err    error
}

// format is a kind of healthy disk; every mutation that applies to its extents is tried on it.
type format struct {
	name string
	p    CreateParams
}

// Capacities are no multiples of the grain, so that the last one is cut.
var formats = []format{
	{"monolithicSparse", CreateParams{Type: MonolithicSparse, Capacity: 70<<20 + 2560}},
	{"twoGbMaxExtentSparse", CreateParams{Type: TwoGbMaxExtentSparse, GrainSectors: 16, Capacity: 9<<20 + 2560, ExtentSize: 5 << 20}},
	{"child", CreateParams{Type: MonolithicSparse, GrainSectors: 16, Capacity: 9<<20 + 2560, Parent: &Parent{Hint: "base.vmdk", CID: 0x1234}}},
	{"split child", CreateParams{Type: TwoGbMaxExtentSparse, GrainSectors: 16, Capacity: 9<<20 + 2560, ExtentSize: 5 << 20, Parent: &Parent{Hint: "base.vmdk", CID: 0x1234}}},
	{"small grains", CreateParams{Type: TwoGbMaxExtentSparse, Capacity: 5<<20 + 1536, GrainSectors: 8}},
	{"one table", CreateParams{Type: MonolithicSparse, Capacity: 8 << 20}},
	{"monolithicFlat", CreateParams{Type: MonolithicFlat, Capacity: 1<<20 + 512}},
	{"twoGbMaxExtentFlat", CreateParams{Type: TwoGbMaxExtentFlat, Capacity: 3<<20 + 512, ExtentSize: 2 << 20}},
}

const imageName = "disk.vmdk"

func newImage(t *testing.T, f format) *image {
	t.Helper()
	d := sim.New(sim.Options{}).Root()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_, err := Create(context.Background(), d, imageName, f.p)
	must(err)
	l, err := Open(d, imageName, Options{ReadWrite: true})
	must(err)
	must(l.Begin())
	for _, e := range l.Extents() {
		fillExtent(t, e)
	}
	must(l.CloseClean())
	im := &image{t: t, files: map[string][]byte{}, child: f.p.Parent != nil, embedded: f.p.Type.Embedded()}
	names, err := d.List()
	must(err)
	for _, n := range names {
		im.files[n] = slurp(t, d, n)
	}
	im.content = im.read(im.dir())
	return im
}

// fillExtent stores some grains, each with bytes of its own, the last one cut by the capacity among them.
func fillExtent(t *testing.T, e *Extent) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	if e.Kind == Flat {
		for off := int64(0); off < e.Len; off += 128 << 10 {
			must(e.WriteFile(pattern(e, off, min(64<<10, e.Len-off)), e.base+off))
		}
		must(e.SyncData())
		return
	}
	must(e.Begin())
	gb := e.GrainBytes()
	last := (e.Len - 1) / gb
	for _, g := range []int64{0, 1, 2, 5, 9, last/2 + 1, last} {
		at, _, err := e.Alloc(1)
		must(err)
		must(e.WriteFile(pattern(e, g*gb, gb), at*SectorSize))
		must(e.Prepare(g, 1))
		must(e.Set(g, 1, uint32(at)))
	}
	f := e.Freeze()
	must(e.SyncData())
	must(f.WriteTables())
	_, err := f.SyncTables()
	must(err)
	f.Thaw()
}

func pattern(e *Extent, off, n int64) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(uint64(e.Start), uint64(off)))
	for i := 0; i+8 <= len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], r.Uint64()|1)
	}
	return b
}

func slurp(t *testing.T, d fsx.Dir, name string) []byte {
	t.Helper()
	f, err := d.Open(name, fsx.ReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, info.Size)
	if err := readFull(f, b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

// dir is a fresh file system with the files of the image.
func (im *image) dir() fsx.Dir {
	im.t.Helper()
	return im.fs().Root()
}

func (im *image) fs() *sim.FS {
	im.t.Helper()
	s := sim.New(sim.Options{})
	for n, b := range im.files {
		if err := writeFile(s.Root(), n, b); err != nil {
			im.t.Fatal(err)
		}
	}
	return s
}

// clone is an image that can be changed.
func (im *image) clone() *image {
	c := *im
	c.files = map[string][]byte{}
	for n, b := range im.files {
		c.files[n] = bytes.Clone(b)
	}
	return &c
}

// read gives the content of a disk cell by cell; nil if it does not open.
func (im *image) read(d fsx.Dir) []cell {
	im.t.Helper()
	if im.reader != nil {
		return im.reader(im, d)
	}
	return im.open(d)
}

// open reads a disk by Open.
func (im *image) open(d fsx.Dir) []cell {
	im.t.Helper()
	l, err := Open(d, imageName, Options{})
	if err != nil {
		return nil
	}
	defer l.Close()
	var out []cell
	buffer := make([]byte, maxGrainSectors*SectorSize)
	for _, e := range l.Extents() {
		step := e.GrainBytes()
		if step == 0 {
			step = 64 << 10
		}
		if im.step != 0 {
			step = im.step
		}
		for off := int64(0); off < e.Len; off += step {
			n := min(step, e.Len-off)
			c := cell{off: e.Start + off, n: n}
			b := buffer[:n]
			r, err := e.Run(off, n)
			switch {
			case err == nil && r.State == Allocated:
				err = e.ReadRun(b, off, r)
			case err == nil && r.State == Unallocated && im.child:
				c.hash = 1
			}
			if c.err = err; c.hash == 0 && r.State == Allocated && slices.ContainsFunc(b, func(x byte) bool { return x != 0 }) {
				h := fnv.New64a()
				h.Write(b)
				c.hash = h.Sum64()
			}
			out = append(out, c)
		}
	}
	return out
}

// extentFiles are the names of the extents, in order.
func (im *image) extentFiles() []string {
	d, _, err := readDescriptor(im.dir(), imageName)
	if err != nil {
		im.t.Fatal(err)
	}
	var out []string
	for _, x := range d.Extents() {
		out = append(out, x.Name)
	}
	return out
}

// sparseAt edits one sparse extent of an image; b is the extent as it was.
type sparseAt struct {
	im   *image
	name string
	b    []byte
	h    *header
}

// at is extent i; nil if it is not sparse or there is none.
func (im *image) at(i int) *sparseAt {
	names := im.extentFiles()
	if i >= len(names) || magicOf(im.files[names[i]]) != magicKDMV {
		return nil
	}
	b := im.files[names[i]]
	h, err := decodeHeader(b)
	if err != nil {
		im.t.Fatal(err)
	}
	return &sparseAt{im, names[i], bytes.Clone(b), h}
}

func (x *sparseAt) put(off int64, b ...byte) {
	if need := off + int64(len(b)); need > int64(len(x.im.files[x.name])) {
		x.im.files[x.name] = append(x.im.files[x.name], make([]byte, need-int64(len(x.im.files[x.name])))...)
	}
	copy(x.im.files[x.name][off:], b)
}

// gte and rgte are the bytes of the file where the entries of a grain are.
func (x *sparseAt) gte(g int64) int64  { return x.entryAt(x.h.gdOff, g) }
func (x *sparseAt) rgte(g int64) int64 { return x.entryAt(x.h.rgdOff, g) }

func (x *sparseAt) entryAt(dir uint64, g int64) int64 {
	per := int64(x.h.gtes)
	return int64(binary.LittleEndian.Uint32(x.b[int64(dir)*SectorSize+g/per*4:]))*SectorSize + g%per*4
}

// gde is the byte of the file where the directory entry of a table is.
func (x *sparseAt) gde(i int64) int64  { return int64(x.h.gdOff)*SectorSize + i*4 }
func (x *sparseAt) rgde(i int64) int64 { return int64(x.h.rgdOff)*SectorSize + i*4 }

func (x *sparseAt) get(off int64) uint32 { return binary.LittleEndian.Uint32(x.b[off:]) }

// both writes an entry in both copies.
func (x *sparseAt) both(g int64, v uint32) {
	x.put(x.gte(g), u32(v)...)
	x.put(x.rgte(g), u32(v)...)
}

func (x *sparseAt) end() int64 { return int64(len(x.im.files[x.name])) }
