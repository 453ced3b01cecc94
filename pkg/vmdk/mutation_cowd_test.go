package vmdk

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"strconv"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
)

// cowdImage is an ESXi delta made by hand: 9000 sectors, so three tables, of which the second is missing.
func cowdImage(t *testing.T, grain int64, child bool) *image {
	t.Helper()
	const sectors = 9000
	tables := ceilDiv(sectors, cowdEntries*grain)
	next := cowdDirectory + gdSectors(tables)
	b := make([]byte, next*SectorSize)
	le := binary.LittleEndian
	put := func(at int64, v int64) { le.PutUint32(b[at:], uint32(v)) }
	for _, v := range [][2]int64{{0, magicCOWD}, {4, 1}, {8, 3}, {12, sectors}, {16, grain}, {20, cowdDirectory}, {24, tables}} {
		put(v[0], v[1])
	}
	grow := func(n int64) int64 {
		at := next
		next += n
		b = append(b, make([]byte, n*SectorSize)...)
		return at
	}
	rnd := rand.New(rand.NewPCG(uint64(grain), 8))
	for _, g := range []int64{0, 1, 2, 5, 7, 9, 100, ceilDiv(sectors, grain) - 1} {
		gde := cowdDirectory*SectorSize + g/cowdEntries*4
		if le.Uint32(b[gde:]) == 0 {
			at := grow(cowdTableSectors)
			put(gde, at)
		}
		at := grow(grain)
		put(int64(le.Uint32(b[gde:]))*SectorSize+g%cowdEntries*4, at)
		for i := at * SectorSize; i < int64(len(b)); i += 8 {
			le.PutUint64(b[i:], rnd.Uint64()|1)
		}
	}
	put(cowdOffFree, next)
	parent := "ffffffff"
	if child {
		parent = "00001234"
	}
	text := fmt.Sprintf("# Disk DescriptorFile\nversion=1\nencoding=\"UTF-8\"\nCID=8f67ca74\nparentCID=%s\ncreateType=\"vmfsSparse\"\n"+
		"parentFileNameHint=\"base.vmdk\"\n# Extent description\nRW %d VMFSSPARSE \"disk-delta.vmdk\"\n\n# The Disk Data Base \n#DDB\n\n"+
		"ddb.longContentID = \"4b98b55ba6a6bc2e8fd6eb368f67ca74\"\n", parent, sectors)
	im := &image{t: t, child: child, step: grain * SectorSize, reader: readCOWDCells, files: map[string][]byte{imageName: []byte(text), "disk-delta.vmdk": b}}
	im.content = im.read(im.dir())
	return im
}

// readCOWDCells reads a delta without the package's help, as the format says.
func readCOWDCells(im *image, d fsx.Dir) []cell {
	b := slurp(im.t, d, "disk-delta.vmdk")
	le := binary.LittleEndian
	if len(b) < 2048 || le.Uint32(b) != magicCOWD {
		return nil
	}
	capacity, grain, dir := int64(le.Uint32(b[12:])), int64(le.Uint32(b[16:])), int64(le.Uint32(b[20:]))
	if capacity != 9000 || grain == 0 || dir > int64(len(b))/SectorSize-1 {
		return nil
	}
	var out []cell
	for g := int64(0); g*grain < capacity; g++ {
		c := cell{off: g * grain * SectorSize, n: min(grain, capacity-g*grain) * SectorSize}
		v := int64(0)
		if t := int64(le.Uint32(b[dir*SectorSize+g/4096*4:])); t != 0 {
			if at := t*SectorSize + g%4096*4; at+4 <= int64(len(b)) {
				v = int64(le.Uint32(b[at:]))
			} else {
				c.err = fmt.Errorf("no table")
			}
		}
		switch {
		case v == 0 && im.child:
			c.hash = 1
		case v != 0 && v*SectorSize >= int64(len(b)):
			c.err = fmt.Errorf("no grain")
		case v != 0:
			p := make([]byte, c.n)
			copy(p, b[v*SectorSize:])
			if bytes.ContainsFunc(p, func(r rune) bool { return r != 0 }) {
				h := fnv.New64a()
				h.Write(p)
				c.hash = h.Sum64()
			}
		}
		out = append(out, c)
	}
	return out
}

type cowdAt struct {
	b    []byte
	f    *image
	gran int64
}

func (x cowdAt) put(off int64, v uint32) {
	binary.LittleEndian.PutUint32(x.f.files["disk-delta.vmdk"][off:], v)
}
func (x cowdAt) get(off int64) uint32 { return binary.LittleEndian.Uint32(x.b[off:]) }
func (x cowdAt) gde(i int64) int64    { return cowdDirectory*SectorSize + i*4 }
func (x cowdAt) gte(g int64) int64 {
	return int64(x.get(x.gde(g/cowdEntries)))*SectorSize + g%cowdEntries*4
}

var cowdMutations = []struct {
	mutation
	on func(x cowdAt)
}{
	{mutation{2, "shared", GrainShared, Error, 1, true, false, nil}, func(x cowdAt) { x.put(x.gte(1), x.get(x.gte(0))) }},
	{mutation{3, "inside the metadata", GrainInMetadata, Error, 2, true, false, nil}, func(x cowdAt) { x.put(x.gte(2), 3) }},
	{mutation{3, "inside a table", GrainInMetadata, Error, 2, true, false, nil}, func(x cowdAt) { x.put(x.gte(2), x.get(x.gde(0))) }},
	{mutation{3, "behind the capacity", GrainBeyondCapacity, Error, -1, true, true, nil}, func(x cowdAt) {
		last := ceilDiv(9000, x.gran)
		x.put(x.gte(last), x.get(cowdOffFree)-1)
	}},
	{mutation{5, "cut off", GrainCutOff, Warning, -1, true, true, nil}, func(x cowdAt) {
		f := x.f.files["disk-delta.vmdk"]
		clear(f[len(f)-100:])
		x.f.files["disk-delta.vmdk"] = f[:len(f)-100]
	}},
	{mutation{6, "beyond the end", GrainBeyondEnd, Error, 0, true, false, nil}, func(x cowdAt) { x.put(x.gte(0), 0x1000000) }},
	{mutation{7, "directory beyond the end", DirectoryBeyondEnd, Fatal, -1, true, true, nil}, func(x cowdAt) { x.put(20, 99999999) }},
	{mutation{7, "directory too short", DirectoryBeyondEnd, Fatal, -1, true, true, nil}, func(x cowdAt) { x.put(24, 0) }},
	{mutation{11, "grain size 3", BadGrainSize, Fatal, -1, true, true, nil}, func(x cowdAt) { x.put(16, 3) }},
	{mutation{7, "table beyond the end", TableBeyondEnd, Fatal, 0, true, false, nil}, func(x cowdAt) { x.put(x.gde(0), 0xffffff) }},
	{mutation{7, "table on the header", MetadataOverlaps, Error, 0, true, false, nil}, func(x cowdAt) { x.put(x.gde(0), 2) }},
	{mutation{8, "unclean", UncleanShutdown, Warning, 0, true, true, nil}, func(x cowdAt) { x.put(cowdOffUnclean, 1) }},
	{mutation{11, "grain size 0", BadGrainSize, Fatal, -1, true, true, nil}, func(x cowdAt) { x.put(16, 0) }},
	{mutation{13, "version", BadVersion, Fatal, -1, false, false, nil}, func(x cowdAt) { x.put(4, 2) }},
	{mutation{15, "no capacity", BadCapacity, Fatal, -1, true, true, nil}, func(x cowdAt) { x.put(12, 0) }},
	{mutation{19, "header behind the line", CapacityDiffers, Fatal, -1, true, true, nil}, func(x cowdAt) { x.put(12, 300) }},
	{mutation{19, "header ahead of the line", CapacityDiffers, Warning, -1, true, true, nil}, func(x cowdAt) { x.put(12, 9001) }},
	{mutation{20, "missing", ExtentMissing, Fatal, -1, false, false, nil}, func(x cowdAt) { delete(x.f.files, "disk-delta.vmdk") }},
	{mutation{25, "free sector too low", FreeSectorLow, Error, -1, true, true, nil}, func(x cowdAt) { x.put(cowdOffFree, x.get(cowdOffFree)-1) }},
	{mutation{25, "free sector far too low", FreeSectorLow, Error, -1, true, true, nil}, func(x cowdAt) { x.put(cowdOffFree, 5) }},
	{mutation{27, "no header", ExtentDamaged, Fatal, -1, true, true, nil}, func(x cowdAt) {
		clear(x.f.files["disk-delta.vmdk"][:SectorSize])
	}},
}

// TestCOWDMutations is TestMutations for ESXi's deltas, whose content is read by the test itself.
func TestCOWDMutations(t *testing.T) {
	for _, grain := range []int64{1, 8} {
		for _, child := range []bool{true, false} {
			healthy := cowdImage(t, grain, child)
			rep, err := Check(context.Background(), healthy.dir(), imageName)
			if err != nil || len(rep.Problems) > 0 {
				t.Fatalf("healthy, but %v %v", rep.Problems, err)
			}
			for _, m := range cowdMutations {
				t.Run(fmt.Sprintf("%d/%v/%s %s", grain, child, strconv.Itoa(m.number), m.name), func(t *testing.T) {
					im := healthy.clone()
					im.t = t
					m.on(cowdAt{bytes.Clone(healthy.files["disk-delta.vmdk"]), im, grain})
					want := healthy.content
					if m.number == 5 {
						want = im.read(im.dir())
					}
					if m.number == 20 {
						im.reader = func(*image, fsx.Dir) []cell { return nil }
					}
					im.mutated(t, m.mutation, want, grain*SectorSize)
				})
			}
		}
	}
}
