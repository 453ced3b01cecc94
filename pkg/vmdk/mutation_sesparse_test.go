package vmdk

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
)

const (
	seFile    = "disk-sesparse.vmdk"
	seSectors = 3*seTableEntries*seGrainSectors + 8*5 + 3
)

// The layout of seImage: the regions in the order of seRegions.
var seLayout = [8]span{{1, 2}, {2, 4}, {64, 64 + 4*seSlotSectors}, {256, 264}, {320, 320 + 8*seTableSectors}, {1024, 1040}, {1088, 1152}, {1280, 1280 + 4096}}

// seImage is an SESparse delta made by hand: tables 0 and 3, grains of both in the order in which they were written, a zeroed
// and an unmapped one.
func seImage(t *testing.T) *image {
	t.Helper()
	b := make([]byte, seLayout[seGrains].from*SectorSize)
	le := binary.LittleEndian
	put := func(at int64, v uint64) { le.PutUint64(b[at:], v) }
	for i, v := range []uint64{magicSESparse, seVersion, seSectors, seGrainSectors, seTableSectors} {
		put(int64(i)*8, v)
	}
	for i, r := range seRegions {
		put(int64(r.at), uint64(seLayout[i].from))
		put(int64(r.at)+8, uint64(seLayout[i].to-seLayout[i].from))
	}
	put(SectorSize, seVolatileMagic)
	put(SectorSize+8, 2)
	put(SectorSize+16, 5)
	put(2*SectorSize, 0xdeafc0de)
	x := seAt{b: b}
	put(x.gde(0), 0x10000000<<32)
	put(x.gde(3), 0x10000000<<32|1)
	next := uint64(0)
	for _, g := range []int64{7, 0, 1, 100, 3*seTableEntries + 2, 3*seTableEntries + 5} {
		x.b = b
		put(x.gte(g), 3<<60|rotate(next))
		put(seLayout[seBackmap].from*SectorSize+int64(next)*8, 1<<60|rotate(uint64(g)))
		b[seLayout[seBitmap].from*SectorSize+int64(next/8)] |= 1 << (next % 8)
		b = append(b, bytes.Repeat([]byte{byte(g) + 1}, seGrainSectors*SectorSize)...)
		next++
	}
	x.b = b
	put(x.gte(3), 2<<60)
	put(x.gte(4), 1<<60|rotate(3))
	text := fmt.Sprintf("# Disk DescriptorFile\nversion=1\nCID=8f67ca74\nparentCID=00001234\ncreateType=\"seSparse\"\nparentFileNameHint=\"base.vmdk\"\n"+
		"# Extent description\nRW %d SESPARSE \"%s\"\n#DDB\nddb.grain = \"8\"\n", seSectors, seFile)
	return &image{t: t, child: true, files: map[string][]byte{imageName: []byte(text), seFile: b},
		reader: func(*image, fsx.Dir) []cell { return nil }}
}

type seAt struct {
	b  []byte // as it was
	im *image
}

func (x seAt) gde(i int64) int64 { return seLayout[seDirectory].from*SectorSize + i*8 }
func (x seAt) gte(g int64) int64 {
	index := int64(binary.LittleEndian.Uint32(x.b[x.gde(g/seTableEntries):]))
	return (seLayout[seTables].from+index*seTableSectors)*SectorSize + g%seTableEntries*8
}
func (x seAt) put(off int64, v uint64) { binary.LittleEndian.PutUint64(x.im.files[seFile][off:], v) }
func (x seAt) get(off int64) uint64    { return binary.LittleEndian.Uint64(x.b[off:]) }
func (x seAt) back(index int64) int64  { return seLayout[seBackmap].from*SectorSize + index*8 }
func (x seAt) slot(k int64) int64      { return (seLayout[seJournal].from + k*seSlotSectors) * SectorSize }
func (x seAt) pending()                { x.put(SectorSize+24, 1) }
func (x seAt) sector(at int64) []byte {
	return bytes.Clone(x.b[at/SectorSize*SectorSize:][:SectorSize])
}
func (x seAt) clearSector(at int64) {
	clear(x.im.files[seFile][at/SectorSize*SectorSize:][:SectorSize])
}

// transaction puts one into the journal: sector images for the places that hold the bytes.
func (x seAt) transaction(k int64, seq uint64, at []int64, images [][]byte) {
	s := x.slot(k)
	x.put(s, seSlotMagic)
	x.put(s+8, 1)
	x.put(s+16, uint64(k))
	x.put(s+24, uint64(len(at)+1))
	x.put(s+40, seq)
	for i := range at {
		x.put(s+0x80+int64(i)*16, uint64(at[i]/SectorSize))
		x.put(s+0x80+int64(i)*16+8, 1)
		copy(x.im.files[seFile][s+int64(1+i)*SectorSize:], images[i])
	}
}

var seMutations = []struct {
	mutation
	on func(x seAt)
}{
	{mutation{26, "entry that means nothing", EntryUnknown, Error, 7, false, false, nil}, func(x seAt) { x.put(x.gte(7), 5<<60) }},
	{mutation{26, "unallocated with a number", EntryUnknown, Error, 7, false, false, nil}, func(x seAt) { x.put(x.gte(7), 5) }},
	{mutation{26, "directory entry that means nothing", EntryUnknown, Error, 0, false, false, nil}, func(x seAt) { x.put(x.gde(0), 0x20000000<<32) }},
	{mutation{26, "table outside its area", TableBeyondEnd, Fatal, 0, false, false, nil}, func(x seAt) { x.put(x.gde(0), 0x10000000<<32|100) }},
	{mutation{26, "one table twice", MetadataOverlaps, Error, 3 * seTableEntries, false, false, nil}, func(x seAt) { x.put(x.gde(3), x.get(x.gde(0))) }},
	{mutation{26, "free table too low", FreeTableLow, Error, 3 * seTableEntries, false, false, nil}, func(x seAt) { x.put(SectorSize+8, 1) }},
	{mutation{26, "shared", GrainShared, Error, 1, false, false, nil}, func(x seAt) { x.put(x.gte(1), x.get(x.gte(0))) }},
	{mutation{26, "outside the area of grains", GrainBeyondEnd, Error, 1, false, false, nil}, func(x seAt) { x.put(x.gte(1), 3<<60|rotate(1<<30)) }},
	{mutation{26, "behind the capacity", GrainBeyondCapacity, Error, -1, false, false, nil}, func(x seAt) { x.put(x.gte(3*seTableEntries+7), 3<<60|rotate(9)) }},
	{mutation{26, "free in the bitmap", BitmapDiffers, Error, -1, false, false, nil}, func(x seAt) { x.im.files[seFile][seLayout[seBitmap].from*SectorSize] &^= 4 }},
	{mutation{26, "backmap names another", BackmapDiffers, Error, 7, false, false, nil}, func(x seAt) { x.put(x.back(0), 1<<60|rotate(8)) }},
	{mutation{26, "backmap empty", BackmapDiffers, Error, 7, false, false, nil}, func(x seAt) { x.put(x.back(0), 0) }},
	{mutation{26, "pending journal", JournalPending, Warning, -1, false, false, nil}, func(x seAt) { x.pending() }},
	{mutation{26, "pending journal that completes the tables", JournalPending, Warning, -1, false, false, nil}, func(x seAt) {
		x.pending()
		at := []int64{x.gte(0), x.back(0)}
		good := [][]byte{x.sector(at[0]), x.sector(at[1])}
		bad := [][]byte{bytes.Repeat([]byte{0x55}, SectorSize), good[1]}
		x.transaction(1, 7, at, good)
		x.transaction(0, 6, at, bad) // older
		for _, a := range at {
			x.clearSector(a)
		}
	}},
	{mutation{26, "transaction that aims elsewhere", JournalPending, Warning, -1, false, false, nil}, func(x seAt) {
		x.pending()
		x.transaction(0, 6, []int64{0}, [][]byte{make([]byte, SectorSize)})
	}},
	{mutation{5, "cut off", GrainCutOff, Warning, 3*seTableEntries + 5, false, false, nil}, func(x seAt) {
		x.im.files[seFile] = x.im.files[seFile][:len(x.b)-seGrainSectors*SectorSize+SectorSize]
	}},
	{mutation{7, "directory beyond the end", DirectoryBeyondEnd, Fatal, -1, false, false, nil}, func(x seAt) { x.put(128, 1<<50) }},
	{mutation{7, "regions overlap", MetadataOverlaps, Fatal, -1, false, false, nil}, func(x seAt) { x.put(160, 330) }},
	{mutation{11, "grain size", BadGrainSize, Fatal, -1, false, false, nil}, func(x seAt) { x.put(24, 128) }},
	{mutation{12, "table size", BadTableSize, Fatal, -1, false, false, nil}, func(x seAt) { x.put(32, 4) }},
	{mutation{13, "version", BadVersion, Fatal, -1, false, false, nil}, func(x seAt) { x.put(8, 3) }},
	{mutation{15, "capacity", BadCapacity, Fatal, -1, false, false, nil}, func(x seAt) { x.put(16, 1<<60) }},
	{mutation{19, "header behind the line", CapacityDiffers, Fatal, -1, false, false, nil}, func(x seAt) { x.put(16, seSectors-1) }},
	{mutation{27, "no header", ExtentDamaged, Fatal, -1, false, false, nil}, func(x seAt) { clear(x.im.files[seFile][:SectorSize]) }},
	{mutation{27, "no volatile header", ExtentDamaged, Fatal, -1, false, false, nil}, func(x seAt) { x.clearSector(SectorSize) }},
}

// TestSESparseMutations: what is wrong with an SESparse extent is found; nothing is repaired in it, because nobody but ESXi
// may write it.
func TestSESparseMutations(t *testing.T) {
	healthy := seImage(t)
	rep, err := Check(context.Background(), healthy.dir(), imageName)
	if err != nil || len(rep.Problems) > 0 || rep.Allocated != 6*seGrainSectors*SectorSize {
		t.Fatalf("healthy, but %v %v, %d allocated", rep.Problems, err, rep.Allocated)
	}
	for _, m := range seMutations {
		t.Run(fmt.Sprintf("%d %s", m.number, m.name), func(t *testing.T) {
			im := healthy.clone()
			im.t = t
			m.on(seAt{bytes.Clone(healthy.files[seFile]), im})
			rep, err := Check(context.Background(), im.dir(), imageName)
			if err != nil {
				t.Fatal(err)
			}
			if m.code == JournalPending && len(rep.Problems) != 1 {
				t.Errorf("with the journal applied it is healthy, but %v", rep.Problems)
			}
			im.mutated(t, m.mutation, nil, seGrainSectors*SectorSize)
		})
	}
}
