package vmdk

import (
	"bytes"
	"compress/zlib"
	"context"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
)

const (
	streamGrain   = 16
	streamSectors = 9<<11 + 5
)

// streamImage is a compressed disk made by hand: with the tables in front, as vmware-vdiskmanager makes it, or behind the
// grains with a footer, as vSphere exports it. Table 1 has no grains.
func streamImage(t *testing.T, footer bool) *image {
	t.Helper()
	h := layout(streamSectors, streamGrain, embeddedDescSectors)
	h.version, h.flags, h.compression = 3, flagNewLine|flagCompressed|flagMarkers, 1
	h.place(embeddedDescSectors)
	text := fmt.Sprintf("# Disk DescriptorFile\nversion=1\nCID=8f67ca74\nparentCID=ffffffff\ncreateType=\"streamOptimized\"\n"+
		"# Extent description\nRDONLY %d SPARSE \"call-me-stream.vmdk\"\n#DDB\nddb.longContentID = \"4b98b55ba6a6bc2e8fd6eb368f67ca74\"\n", streamSectors)
	b := make([]byte, h.overHead*SectorSize)
	copy(b[SectorSize:], text)
	le := binary.LittleEndian
	sector := func() uint32 { return uint32(len(b) / SectorSize) }
	marker := func(val uint64, kind uint32) {
		m := make([]byte, SectorSize)
		le.PutUint64(m, val)
		le.PutUint32(m[12:], kind)
		b = append(b, m...)
	}
	tables := make([][]uint32, h.numGTs())
	gd := make([]uint32, h.numGTs())
	rnd := rand.New(rand.NewPCG(1, 7))
	last := int64(streamSectors-1) / streamGrain
	for i := range tables {
		if i == 1 {
			continue
		}
		tables[i] = make([]uint32, 512)
		for _, g := range []int64{0, 1, 2, 5, 9, last - 1024} {
			n := min(streamGrain, streamSectors-(int64(i)*512+g)*streamGrain) * SectorSize
			if i == 0 && g == last-1024 || n <= 0 {
				continue
			}
			data := make([]byte, n)
			for k := 0; k+8 <= len(data); k += 8 {
				le.PutUint64(data[k:], rnd.Uint64N(1000)|1)
			}
			tables[i][g] = sector()
			b = append(b, streamRecordOf((int64(i)*512+g)*streamGrain, data)...)
		}
		if footer {
			marker(4, markerTable)
			gd[i] = sector()
			b = append(b, encodeEntries(tables[i])...)
		}
	}
	if footer {
		marker(1, markerDir)
		h.gdOff = uint64(sector())
		b = append(b, append(encodeEntries(gd), make([]byte, SectorSize-len(gd)*4)...)...)
		marker(1, markerFooter)
		b = append(b, h.encode()...)
		h.gdOff = gdAtEnd
	} else {
		copy(b[h.gdOff*SectorSize:], h.directory(h.gdOff))
		for i, gt := range tables {
			if gt != nil {
				copy(b[(int64(h.gdOff)+1+int64(i)*4)*SectorSize:], encodeEntries(gt))
			}
		}
	}
	marker(0, markerEnd)
	copy(b, h.encode())
	im := &image{t: t, embedded: true, step: streamGrain * SectorSize, reader: readStreamCells, files: map[string][]byte{imageName: b}}
	im.content = im.read(im.dir())
	return im
}

func streamRecordOf(lba int64, data []byte) []byte {
	var z bytes.Buffer
	z.Write(make([]byte, 12))
	w := zlib.NewWriter(&z)
	_, _ = w.Write(data)
	_ = w.Close()
	r := z.Bytes()
	binary.LittleEndian.PutUint64(r, uint64(lba))
	binary.LittleEndian.PutUint32(r[8:], uint32(len(r)-12))
	return append(r, make([]byte, roundUp(int64(len(r)), SectorSize)-int64(len(r)))...)
}

// readStreamCells reads a compressed disk by its tables, without the package's help.
func readStreamCells(im *image, d fsx.Dir) []cell {
	b := slurp(im.t, d, imageName)
	le := binary.LittleEndian
	gd := le.Uint64(b[56:])
	if gd == 0 {
		return nil
	}
	if gd == gdAtEnd {
		foot := bytes.TrimRight(b, "\x00")
		foot = b[:min(int64(len(b)), roundUp(int64(len(foot)), SectorSize))]
		if len(foot) < 2048 || le.Uint32(foot[len(foot)-SectorSize:]) != magicKDMV {
			return nil
		}
		gd = le.Uint64(foot[len(foot)-SectorSize+56:])
	}
	if gd*SectorSize+SectorSize > uint64(len(b)) {
		return nil
	}
	var out []cell
	for g := int64(0); g*streamGrain < streamSectors; g++ {
		c := cell{off: g * streamGrain * SectorSize, n: min(streamGrain, streamSectors-g*streamGrain) * SectorSize}
		at := int64(le.Uint32(b[int64(gd)*SectorSize+g/512*4:])) * SectorSize
		if at+2048 > int64(len(b)) {
			c.err = io.ErrUnexpectedEOF
		} else if at != 0 {
			at = int64(le.Uint32(b[at+g%512*4:])) * SectorSize
		}
		switch {
		case c.err != nil || at == 0:
		case at+12 > int64(len(b)) || le.Uint32(b[at+8:]) > 2*streamGrain*SectorSize+64 || le.Uint64(b[at:]) != uint64(g*streamGrain):
			c.err = fmt.Errorf("no record")
		default:
			var p []byte
			z, err := zlib.NewReader(bytes.NewReader(b[at+12 : min(int64(len(b)), at+12+int64(le.Uint32(b[at+8:])))]))
			if err == nil {
				p, err = io.ReadAll(z)
			}
			if err == nil && len(p) > streamGrain*SectorSize {
				err = fmt.Errorf("too long")
			}
			if c.err = err; err == nil {
				h := fnv.New64a()
				h.Write(p)
				c.hash = h.Sum64()
			}
		}
		out = append(out, c)
	}
	return out
}

// streamAt edits a compressed disk; gd is the sector of its directory.
type streamAt struct {
	im     *image
	b      []byte
	gd     int64
	footer bool
}

func (x *streamAt) put(off int64, b ...byte) { copy(x.im.files[imageName][off:], b) }
func (x *streamAt) gte(g int64) int64 {
	return int64(binary.LittleEndian.Uint32(x.b[x.gd*SectorSize+g/512*4:]))*SectorSize + g%512*4
}

// rec is the byte of the file where the record of a grain is.
func (x *streamAt) rec(g int64) int64 {
	return int64(binary.LittleEndian.Uint32(x.b[x.gte(g):])) * SectorSize
}
func (x *streamAt) cut(n int64) { x.im.files[imageName] = x.im.files[imageName][:n] }

var streamMutations = []struct {
	mutation
	on func(x *streamAt)
}{
	{mutation{24, "record of another grain", StreamGrainDamaged, Error, 1, true, false, nil}, func(x *streamAt) { x.put(x.rec(1), u64(5000)...) }},
	{mutation{24, "entry of another grain", StreamGrainDamaged, Error, 1, true, true, nil}, func(x *streamAt) { x.put(x.gte(1), x.b[x.gte(2):x.gte(2)+4]...) }},
	{mutation{24, "entry missing", StreamTablesDiffer, Error, 1, true, true, nil}, func(x *streamAt) { x.put(x.gte(1), u32(0)...) }},
	{mutation{24, "entry beyond the end", StreamGrainDamaged, Error, 1, true, true, nil}, func(x *streamAt) { x.put(x.gte(1), u32(0x1000000)...) }},
	{mutation{24, "no zlib", StreamGrainDamaged, Error, 2, true, false, nil}, func(x *streamAt) { x.put(x.rec(2)+12, 0, 0) }},
	{mutation{24, "wrong data", StreamGrainDamaged, Error, 2, true, false, nil}, func(x *streamAt) { x.put(x.rec(2)+40, 0xff, 0xff, 0xff) }},
	{mutation{24, "record too large", StreamGrainDamaged, Error, 2, true, false, nil}, func(x *streamAt) { x.put(x.rec(2)+8, u32(1<<30)...) }},
	{mutation{24, "record of no bytes", StreamGrainDamaged, Error, 5, true, false, nil}, func(x *streamAt) { x.put(x.rec(5)+8, u32(0)...) }},
	{mutation{24, "inflates to more", StreamGrainDamaged, Error, 1, true, false, nil}, func(x *streamAt) {
		r := streamRecordOf(streamGrain, make([]byte, 1<<20)) // a bomb
		x.put(x.rec(1), r[:min(int64(len(r)), x.rec(2)-x.rec(1))]...)
	}},
	{mutation{24, "table missing", StreamTablesDiffer, Error, 1, true, true, nil}, func(x *streamAt) { x.put(x.gd*SectorSize, u32(0)...) }},
	{mutation{7, "table beyond the end", TableBeyondEnd, Fatal, 1, true, true, nil}, func(x *streamAt) { x.put(x.gd*SectorSize, u32(0xffffff)...) }},
	{mutation{7, "directory beyond the end", DirectoryBeyondEnd, Fatal, -1, true, true, nil}, func(x *streamAt) {
		x.put(56, u64(99999999)...)
		if x.footer {
			x.put(56, u64(gdAtEnd)...)
			x.put(int64(len(x.b))-2*SectorSize+56, u64(99999999)...)
		}
	}},
	{mutation{9, "text transfer", TextTransfer, Fatal, -1, true, true, nil}, func(x *streamAt) { x.put(73, '\n', ' ', '\n', '\n') }},
	{mutation{10, "unknown flag", UnknownFlags, Fatal, -1, false, false, nil}, func(x *streamAt) { x.put(10, 0x13) }},
	{mutation{11, "grain size", BadGrainSize, Fatal, -1, false, false, nil}, func(x *streamAt) { x.put(20, u64(100)...) }},
	{mutation{27, "no header", ExtentDamaged, Fatal, -1, true, true, nil}, func(x *streamAt) { x.put(0, make([]byte, SectorSize)...) }},
	{mutation{15, "capacity", BadCapacity, Fatal, -1, false, false, nil}, func(x *streamAt) { x.put(12, u64(1<<40)...) }},
}

var footerMutations = []struct {
	mutation
	on func(x *streamAt)
}{
	{mutation{24, "no footer", StreamFooterDamaged, Error, -1, true, true, nil}, func(x *streamAt) {
		n := int64(len(x.b))
		x.put(n-3*SectorSize, make([]byte, 2*SectorSize)...)
	}},
	{mutation{24, "cut in the footer", StreamFooterDamaged, Error, -1, true, true, nil}, func(x *streamAt) { x.cut(int64(len(x.b)) - 2*SectorSize) }},
	{mutation{24, "cut in the directory", StreamFooterDamaged, Error, -1, true, true, nil}, func(x *streamAt) { x.cut(x.gd*SectorSize - 100) }},
	{mutation{24, "cut in the last record", StreamFooterDamaged, Error, -1, true, false, nil}, func(x *streamAt) { x.cut(x.rec(1024+9) + 300) }},
	{mutation{24, "footer says something else", StreamFooterDamaged, Error, -1, true, true, nil}, func(x *streamAt) { x.put(int64(len(x.b))-2*SectorSize+12, u64(77)...) }},
}

func newStreamAt(im *image, footer bool) *streamAt {
	x := &streamAt{im: im, b: bytes.Clone(im.files[imageName]), footer: footer}
	x.gd = int64(binary.LittleEndian.Uint64(x.b[56:]))
	if footer {
		x.gd = int64(binary.LittleEndian.Uint64(x.b[len(x.b)-2*SectorSize+56:]))
	}
	return x
}

// TestStreamMutations is TestMutations for compressed disks, whose content is read by the test itself.
func TestStreamMutations(t *testing.T) {
	for _, footer := range []bool{false, true} {
		healthy := streamImage(t, footer)
		rep, err := Check(context.Background(), healthy.dir(), imageName)
		if err != nil || len(rep.Problems) > 0 {
			t.Fatalf("footer %v: healthy, but %v %v", footer, rep.Problems, err)
		}
		all := slices.Clone(streamMutations)
		if footer {
			all = append(all, footerMutations...)
		}
		for _, m := range all {
			t.Run(fmt.Sprintf("footer %v/%d %s", footer, m.number, m.name), func(t *testing.T) {
				im := healthy.clone()
				im.t = t
				m.on(newStreamAt(im, footer))
				im.mutated(t, m.mutation, healthy.content, streamGrain*SectorSize)
			})
		}
	}
}

// TestQemuStreamMutations: qemu's compressed disks have redundant tables, and no end marker.
func TestQemuStreamMutations(t *testing.T) {
	path := t.TempDir()
	raw := make([]byte, 5<<20+512)
	for i := 1 << 20; i < 2<<20; i++ {
		raw[i] = byte(i * i >> 8)
	}
	raw[len(raw)-1] = 1
	if err := os.WriteFile(filepath.Join(path, "raw"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", "raw", imageName)
	cmd.Dir = path
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	b, err := os.ReadFile(filepath.Join(path, imageName))
	if err != nil {
		t.Fatal(err)
	}
	healthy := &image{t: t, embedded: true, files: map[string][]byte{imageName: b}}
	healthy.content = healthy.read(healthy.dir())
	for _, m := range []mutation{
		{1, "entry missing in the copy", TableCopiesDiffer, Error, 16, true, true, func(x *sparseAt) { x.put(x.rgte(16), u32(0)...) }},
		{1, "entry missing in the table", TableCopiesDiffer, Error, 16, true, true, func(x *sparseAt) { x.put(x.gte(16), u32(0)...) }},
		{24, "entry missing in both", StreamTablesDiffer, Error, 16, true, true, func(x *sparseAt) { x.both(16, 0) }},
		{24, "entry of another in both", StreamGrainDamaged, Error, 16, true, true, func(x *sparseAt) { x.both(16, x.get(x.gte(17))) }},
		{27, "no header", ExtentDamaged, Fatal, -1, true, true, func(x *sparseAt) { x.put(0, make([]byte, SectorSize)...) }},
		{24, "no zlib", StreamGrainDamaged, Error, 16, true, false, func(x *sparseAt) { x.put(int64(x.get(x.gte(16)))*SectorSize+12, 0, 0) }},
	} {
		if raceDetector && m.number != 1 {
			continue
		}
		t.Run(m.name, func(t *testing.T) {
			im := healthy.clone()
			im.t = t
			m.do(im.at(0))
			im.mutated(t, m, healthy.content, 64<<10)
		})
	}
}

func worstOf(all []Problem) (w Severity) {
	for _, p := range all {
		w = max(w, p.Severity)
	}
	return w
}
