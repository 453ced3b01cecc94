package vmdk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"slices"
	"strings"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Check examines the structure of one link without changing it: descriptor, headers, directories, every grain table and
// its copy. Defects are in the report; the error is for what kept it from looking (fault.NotFound, I/O errors, ctx).
// On a link that is being written it can see states in between.
func Check(ctx context.Context, d fsx.Dir, name string) (Report, error) {
	c := &checker{ctx: ctx, d: d, name: name}
	err := c.link()
	return c.r, fault.Wrap(err, "check %s", name)
}

type checker struct {
	ctx  context.Context
	d    fsx.Dir
	name string
	r    Report
}

func (c *checker) add(code Code, sev Severity, file string, off, n int64, remedy, format string, args ...any) {
	c.r.Add(Problem{Code: code, Severity: sev, File: file, Off: off, Len: n, Message: fmt.Sprintf(format, args...), Remedy: remedy})
}

// finding turns an error about content into a problem; other errors stay errors.
func (c *checker) finding(err error, code Code, file string) error {
	switch k := fault.KindOf(err); k {
	case "":
		return nil
	case fault.Damaged, fault.Invalid, fault.Unsupported:
		if k == fault.Unsupported {
			code = NotOpenable
		}
		f := fault.From(err)
		c.add(code, Fatal, file, 0, 0, f.Remedy, "%s", f.Message)
		return nil
	}
	return err
}

func (c *checker) link() error {
	f, err := c.d.Open(c.name, fsx.ReadOnly)
	if err != nil {
		return err
	}
	text, embedded, err := readDescriptorText(f)
	lost := !embedded && embeddedText(f) != nil
	if err = errors.Join(err, f.Close()); err != nil || lost {
		if lost && (err == nil || fault.KindOf(err) == fault.Damaged) {
			c.add(ExtentDamaged, Fatal, c.name, 0, 0, "Run vmdkctl repair: the header can be rebuilt if the tables are where they always are",
				"sector 0 is not a sparse header, but a descriptor follows it: the header is lost")
			return nil
		}
		if k := fault.KindOf(err); embedded && (k == fault.Damaged || k == fault.Unsupported) { // say what is wrong with the header, in the catalogue's words
			if err := c.extent(ExtentLine{Name: c.name, Type: "SPARSE", Sectors: -1}, 0); err != nil || len(c.r.Problems) > 0 {
				return err
			}
		}
		return c.finding(err, DescriptorDamaged, c.name)
	}
	desc, err := ParseDescriptor(text)
	if err != nil {
		return c.finding(err, DescriptorDamaged, c.name)
	}
	l := &Link{Name: c.name, dir: c.d, embedded: embedded}
	l.desc.Store(desc)
	if err := l.checkOpenable(); err != nil {
		return c.finding(err, NotOpenable, c.name)
	}
	if idsDiffer(desc) {
		long := desc.LongContentID()
		c.add(ContentIDsDiffer, Note, c.name, 0, 0, "The next write sets both",
			"CID is %s, longContentID ends in %s", desc.CID(), long[max(0, len(long)-8):])
	}
	var start int64
	used := usedFiles{}
	if !embedded {
		used[c.name] = []span{{0, math.MaxInt64}}
	}
	for _, x := range desc.Extents() {
		if embedded {
			x.Name = c.name
		}
		if used.take(x) != nil {
			c.add(DescriptorDamaged, Fatal, c.name, start, x.Sectors*SectorSize, "", "two extents name %q", clip(x.Name))
			return nil
		}
		if err := c.extent(x, start); err != nil {
			return err
		}
		start += x.Sectors * SectorSize
	}
	return nil
}

func (c *checker) extent(x ExtentLine, start int64) (err error) {
	size := max(x.Sectors, 0) * SectorSize
	switch {
	case x.Access == "NOACCESS" || x.Type == "ZERO":
		return nil
	case !flatType(x.Type) && !slices.Contains([]string{"SPARSE", "VMFSSPARSE", "SESPARSE"}, x.Type):
		c.add(NotOpenable, Fatal, c.name, start, size, "", "extent type %s is not supported", clip(x.Type))
		return nil
	}
	if flatType(x.Type) && strings.HasPrefix(x.Name, "/") {
		c.add(DeviceExtent, Note, c.name, start, size, "", "%s is a device: raw content has nothing to be checked", clip(x.Name))
		return nil
	}
	f, err := c.d.Open(x.Name, fsx.ReadOnly)
	if errors.Is(err, fs.ErrNotExist) {
		c.add(ExtentMissing, Fatal, x.Name, start, size, "Restore the file", "the extent is missing")
		return nil
	}
	if err != nil {
		return c.finding(err, ExtentDamaged, x.Name)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if x.Type == "SESPARSE" {
		return c.sesparse(f, x, start, info.Size)
	}
	if x.Type == "VMFSSPARSE" {
		head := make([]byte, SectorSize)
		if n, _ := f.ReadAt(head, 0); n < len(head) || magicOf(head) != magicKDMV { // old ESX images call hosted extents so
			return c.cowd(f, x, start, info.Size)
		}
		x.Type = "SPARSE"
	}
	if x.Type != "SPARSE" {
		c.r.Allocated += min(info.Allocated, size)
		if need := x.Offset*SectorSize + size; info.Size < need {
			c.add(ExtentShort, Fatal, x.Name, start+max(0, info.Size-x.Offset*SectorSize), need-info.Size,
				"Restore the file, or extend it if the rest was never written",
				"the file has %d bytes, the descriptor needs %d", info.Size, need)
		}
		return nil
	}
	return c.sparse(f, x, start, info.Size)
}

func (c *checker) sparse(f fsx.File, x ExtentLine, start, size int64) error {
	sector := make([]byte, SectorSize)
	if err := readFull(f, sector, 0); err != nil {
		return c.finding(err, ExtentDamaged, x.Name)
	}
	h, err := decodeHeader(sector)
	if err != nil {
		return c.finding(err, ExtentDamaged, x.Name)
	}
	if h.flags&flagCompressed != 0 && h.compression == 1 {
		return c.stream(f, h, x, start, size)
	}
	if ds := h.defects(size); len(ds) > 0 {
		for _, d := range ds {
			c.add(d.code, Fatal, x.Name, start, max(x.Sectors, 0)*SectorSize, d.err.Remedy, "%s", d.err.Message)
		}
		return nil
	}
	if x.Sectors < 0 {
		return nil
	}
	switch {
	case int64(h.capacity) < x.Sectors:
		c.add(CapacityDiffers, Fatal, x.Name, start, x.Sectors*SectorSize, "Correct the extent line",
			"the header maps %d sectors, the descriptor says %d", h.capacity, x.Sectors)
		return nil
	case int64(h.capacity) > x.Sectors:
		c.add(CapacityDiffers, Warning, x.Name, start, x.Sectors*SectorSize, "Repeat the growth that was cut off",
			"the header maps %d sectors, the descriptor says %d", h.capacity, x.Sectors)
	}
	if h.unclean {
		c.add(UncleanShutdown, Warning, x.Name, start, x.Sectors*SectorSize, "Attach it once: it is recovered when it is opened for writing",
			"the extent is open for writing, or was not closed")
	}
	s := &sparse{name: x.Name, file: f, h: h, grain: int64(h.grain), sectors: x.Sectors}
	s.alloc.init(s, size)
	return c.directories(s, start, size)
}

// directories examines both grain directories, then all tables.
func (c *checker) directories(s *sparse, start, size int64) error {
	var err error
	if s.gd, err = c.directory(s, s.h.gdOff, size, start); err != nil {
		return err
	}
	if s.h.redundant() {
		if s.rgd, err = c.directory(s, s.h.rgdOff, size, start); err != nil {
			return err
		}
	}
	t := newTableChecker(c, s, start, size)
	t.overlaps()
	missing := 0
	for i := range s.gd {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		if s.gd[i] == 0 || s.rgd != nil && s.rgd[i] == 0 {
			missing++
		}
		if err := t.table(int64(i)); err != nil {
			return err
		}
	}
	if missing > 0 {
		c.add(TablesMissing, Warning, s.name, 0, 0, "They are made when they are written; vmdkctl repair makes them all",
			"%d of %d grain tables are missing or have no copy, which VMware does not expect", missing, len(s.gd))
	}
	if err := t.shared(); err != nil {
		return err
	}
	return t.leaks()
}

func newTableChecker(c *checker, s *sparse, start, size int64) *tableChecker {
	return &tableChecker{c: c, s: s, start: start, size: size, meta: newMetadata(s), used: newGrainSet(s), collided: map[uint32]struct{}{}}
}

// directory reads one directory; entries outside the file are reported and then treated as missing.
func (c *checker) directory(s *sparse, at uint64, size, start int64) ([]uint32, error) {
	b := make([]byte, s.h.numGTs()*4)
	if err := readFull(s.file, b, int64(at)*SectorSize); err != nil {
		return nil, c.finding(err, DirectoryBeyondEnd, s.name)
	}
	d := decodeEntries(b)
	cover := s.h.coverage() * SectorSize
	for i, v := range d {
		if v == 0 || v == 1 && s.h.flags&flagZeroGrain != 0 {
			continue
		}
		if v == 1 || (int64(v)+s.h.gtSectors())*SectorSize > roundUp(size, SectorSize) {
			c.add(TableBeyondEnd, Fatal, s.name, start+int64(i)*cover, min(cover, s.sectors*SectorSize-int64(i)*cover), "Restore the extent",
				"grain table %d is said to be at sector %d", i, v)
			d[i] = 0
		}
	}
	return d, nil
}

// embeddedText is the descriptor that begins in sector 1, where every writer puts it; nil if there is none.
func embeddedText(f fsx.File) []byte {
	b := make([]byte, 64<<10)
	n, err := f.ReadAt(b, SectorSize)
	if err != nil && !errors.Is(err, io.EOF) || n == 0 || b[0] != '#' {
		return nil
	}
	text, _, _ := bytes.Cut(b[:n], []byte{0})
	if d, err := ParseDescriptor(text); err != nil || len(d.Extents()) != 1 || d.Extents()[0].Type != "SPARSE" {
		return nil
	}
	return text
}

// idsDiffer tells that the CID is not the low half of the long content ID.
func idsDiffer(d *Descriptor) bool {
	long, cid := d.LongContentID(), d.CID()
	return long != "" && !cid.Weak() && (len(long) < 8 || long[len(long)-8:] != cid.String())
}
