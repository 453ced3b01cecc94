package vmdk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// mutation is one defect of the catalogue (docs/format.md) and how to make it.
type mutation struct {
	number int
	name   string
	code   Code
	sev    Severity
	grain  int64 // of extent 0 whose range the problem must have; -1: none in particular
	// fixed: Repair takes the problem away. lossless: what the guest reads is then what it was before the mutation.
	fixed, lossless bool
	do              func(x *sparseAt)
}

var sparseMutations = []mutation{
	{1, "entry missing in the copy", TableCopiesDiffer, Error, 1, true, true, func(x *sparseAt) { x.put(x.rgte(1), u32(0)...) }},
	{1, "entry missing in the table", TableCopiesDiffer, Error, 1, true, true, func(x *sparseAt) { x.put(x.gte(1), u32(0)...) }},
	{1, "copy names another place", TableCopiesDiffer, Error, 5, true, true, func(x *sparseAt) { x.put(x.rgte(5), u32(x.get(x.gte(9)))...) }},
	{2, "shared in the table", GrainShared, Error, 1, true, true, func(x *sparseAt) { x.put(x.gte(1), u32(x.get(x.gte(0)))...) }},
	{2, "shared in the table, the other", GrainShared, Error, 0, true, true, func(x *sparseAt) { x.put(x.gte(0), u32(x.get(x.gte(1)))...) }},
	{2, "shared", GrainShared, Error, 1, true, false, func(x *sparseAt) { x.both(1, x.get(x.gte(0))) }},
	{2, "overlap", GrainShared, Error, 2, true, false, func(x *sparseAt) { x.both(2, x.get(x.gte(0))+1) }},
	{3, "inside the metadata", GrainInMetadata, Error, 2, true, true, func(x *sparseAt) { x.put(x.gte(2), u32(3)...) }},
	{3, "inside the metadata, in both", GrainInMetadata, Error, 2, true, false, func(x *sparseAt) { x.both(2, 3) }},
	{4, "unaligned", GrainUnaligned, Warning, 5, true, true, func(x *sparseAt) { x.unalign(5) }},
	{5, "cut off", GrainCutOff, Warning, -1, true, true, func(x *sparseAt) { x.cut() }},
	{6, "beyond the end", GrainBeyondEnd, Error, 0, true, true, func(x *sparseAt) { x.put(x.gte(0), u32(0x1000000)...) }},
	{6, "beyond the end, in both", GrainBeyondEnd, Error, 0, true, false, func(x *sparseAt) { x.both(0, 0x1000000) }},
	{7, "directory beyond the end", DirectoryBeyondEnd, Fatal, -1, true, true, func(x *sparseAt) { x.put(56, u64(99999999)...) }},
	{7, "copy of the directory beyond the end", DirectoryBeyondEnd, Fatal, -1, true, true, func(x *sparseAt) { x.put(48, u64(99999999)...) }},
	{7, "both directories beyond the end", DirectoryBeyondEnd, Fatal, -1, true, true, func(x *sparseAt) {
		x.put(48, u64(99999999)...)
		x.put(56, u64(99999999)...)
	}},
	{7, "table beyond the end", TableBeyondEnd, Fatal, 0, true, true, func(x *sparseAt) { x.put(x.gde(0), u32(0xffffff)...) }},
	{7, "copy of a table beyond the end", TableBeyondEnd, Fatal, 0, true, true, func(x *sparseAt) { x.put(x.rgde(0), u32(0xffffff)...) }},
	{7, "both tables beyond the end", TableBeyondEnd, Fatal, 0, true, true, func(x *sparseAt) {
		x.put(x.gde(0), u32(0xffffff)...)
		x.put(x.rgde(0), u32(0xffffff)...)
	}},
	{7, "table on the header", MetadataOverlaps, Error, 0, true, true, func(x *sparseAt) { x.put(x.gde(0), u32(2)...); x.put(x.rgde(0), u32(2)...) }},
	{8, "unclean", UncleanShutdown, Warning, 0, true, true, func(x *sparseAt) { x.put(offUnclean, 1) }},
	{9, "text transfer", TextTransfer, Fatal, -1, true, true, func(x *sparseAt) { x.put(73, '\n', ' ', '\n', '\n') }},
	{10, "unknown flag", UnknownFlags, Fatal, -1, false, false, func(x *sparseAt) { x.put(10, 0x10) }},
	{11, "grain size", BadGrainSize, Fatal, -1, true, true, func(x *sparseAt) { x.put(20, u64(100)...) }},
	{11, "grain size 0", BadGrainSize, Fatal, -1, true, true, func(x *sparseAt) { x.put(20, u64(0)...) }},
	{12, "table size", BadTableSize, Fatal, -1, true, true, func(x *sparseAt) { x.put(44, u32(100)...) }},
	{12, "table size of a page more", MetadataOverlaps, Error, -1, false, false, func(x *sparseAt) {
		if x.h.numGTs() == 1 { // else two tables are one, which is as good
			x.put(44, u32(1024)...)
		}
	}},
	{13, "version 0", BadVersion, Fatal, -1, false, false, func(x *sparseAt) { x.put(4, u32(0)...) }},
	{13, "version 4", BadVersion, Fatal, -1, false, false, func(x *sparseAt) { x.put(4, u32(4)...) }},
	{14, "offset that wraps", DirectoryBeyondEnd, Fatal, -1, true, true, func(x *sparseAt) { x.put(56, u64(1<<55)...) }},
	{14, "offset that wraps as an int", DirectoryBeyondEnd, Fatal, -1, true, true, func(x *sparseAt) { x.put(48, u64(1<<63+1)...) }},
	{15, "huge capacity", BadCapacity, Fatal, -1, true, true, func(x *sparseAt) { x.put(12, u64(1<<40)...) }},
	{18, "long content ID", ContentIDsDiffer, Note, -1, true, true, func(x *sparseAt) { x.im.edit("ddb.longContentID", "00112233445566778899aabbccddeeff") }},
	{19, "header behind the line", CapacityDiffers, Fatal, -1, true, true, func(x *sparseAt) { x.put(12, u64(300)...) }},
	{19, "header ahead of the line", CapacityDiffers, Warning, -1, true, true, func(x *sparseAt) { x.put(12, u64(x.h.capacity+5)...) }},
	{21, "leak", GrainsLeaked, Note, -1, false, true, func(x *sparseAt) {
		x.put(roundUp(x.end(), int64(x.h.grain)*SectorSize), bytes.Repeat([]byte{7}, int(x.h.grain)*SectorSize)...)
	}},
	{22, "zeros without the flag", ZeroEntryNoFlag, Error, 2, true, true, func(x *sparseAt) { x.put(x.gte(2), u32(1)...) }},
	{22, "zeros without the flag, in both", ZeroEntryNoFlag, Error, 2, true, false, func(x *sparseAt) { x.both(2, 1) }},
	{23, "table missing, its copy there", TablesMissing, Warning, -1, true, true, func(x *sparseAt) { x.put(x.gde(0), u32(0)...) }},
	{23, "copy of a table missing", TablesMissing, Warning, -1, true, true, func(x *sparseAt) { x.put(x.rgde(0), u32(0)...) }},
	{27, "no header", ExtentDamaged, Fatal, -1, true, true, func(x *sparseAt) { x.put(0, make([]byte, SectorSize)...) }},
	{3, "behind the capacity", GrainBeyondCapacity, Error, -1, true, true, func(x *sparseAt) {
		at := uint32(roundUp(x.end(), int64(x.h.grain)*SectorSize) / SectorSize)
		x.put(int64(at)*SectorSize, bytes.Repeat([]byte{9}, int(x.h.grain)*SectorSize)...)
		last := ceilDiv(int64(x.h.capacity), int64(x.h.grain))
		x.both(last, at)
	}},
}

// unalign moves a grain by one sector, to the end of the file.
func (x *sparseAt) unalign(g int64) {
	n := int64(x.h.grain) * SectorSize
	at := roundUp(x.end(), n) + SectorSize
	old := int64(x.get(x.gte(g))) * SectorSize
	data := bytes.Clone(x.b[old : old+n])
	x.put(at, data...)
	x.both(g, uint32(at/SectorSize))
}

// cut cuts the file inside its last grain, where the grain holds zeros.
func (x *sparseAt) cut() {
	last := int64(x.h.capacity-1) / int64(x.h.grain)
	at := int64(x.get(x.gte(last))) * SectorSize
	f := x.im.files[x.name]
	half := at + SectorSize // less than the capacity needs of it
	clear(f[half:])
	x.im.files[x.name] = f[:half]
	x.im.content = nil // of the image as it is now: see sparse tests
}

func (im *image) edit(key, value string) {
	file, at := im.files[imageName], 0
	if im.embedded {
		at = SectorSize
	}
	d, err := ParseDescriptor(file[at:])
	if err == nil {
		err = d.Set(key, value)
	}
	if err != nil {
		im.t.Fatal(err)
	}
	if !im.embedded {
		im.files[imageName] = d.Text()
		return
	}
	text := make([]byte, embeddedDescSectors*SectorSize)
	copy(file[at:], append(d.Text(), text[len(d.Text()):]...))
}

var flatMutations = []struct {
	number int
	name   string
	code   Code
	sev    Severity
	fixed  bool
	do     func(im *image, file string)
}{
	{20, "missing", ExtentMissing, Fatal, false, func(im *image, f string) { delete(im.files, f) }},
	{20, "short", ExtentShort, Fatal, true, func(im *image, f string) { im.files[f] = im.files[f][:1000] }},
	{18, "long content ID", ContentIDsDiffer, Note, true, func(im *image, _ string) { im.edit("ddb.longContentID", "00112233445566778899aabbccddeeff") }},
}

func rounds(t *testing.T) (rnd *rand.Rand) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 15))
}

// TestMutations: every defect of the catalogue is found on every format, with its severity and its place; a repair that is
// asked for takes it away, and never what the guest could read.
func TestMutations(t *testing.T) {
	for _, f := range formats {
		healthy := newImage(t, f)
		if rep, err := Check(context.Background(), healthy.dir(), imageName); err != nil || len(rep.Problems) > 0 {
			t.Fatalf("%s: healthy, but %v %v", f.name, rep.Problems, err)
		}
		if healthy.at(0) == nil {
			continue
		}
		for _, m := range sparseMutations {
			im := healthy.clone()
			im.t = t
			x := im.at(0)
			if m.do(x); m.number == 12 && bytes.Equal(x.b, im.files[x.name]) {
				continue // no defect here
			}
			t.Run(f.name+"/"+strconv.Itoa(m.number)+" "+m.name, func(t *testing.T) {
				im.t = t
				want := healthy.content
				if m.number == 5 {
					want = im.read(im.dir())
				}
				im.mutated(t, m, want, int64(x.h.grain)*SectorSize)
			})
		}
	}
}

// mutated checks and repairs an image with one defect.
func (im *image) mutated(t *testing.T, m mutation, want []cell, grain int64) {
	t.Helper()
	rep, err := Check(context.Background(), im.dir(), imageName)
	if err != nil {
		t.Fatal(err)
	}
	found := slices.ContainsFunc(rep.Problems, func(p Problem) bool {
		return p.Code == m.code && p.Severity == m.sev && p.File != "" && p.Message != "" && (m.grain < 0 || p.Off <= m.grain*grain && p.Off+p.Len > m.grain*grain)
	})
	if !found {
		t.Errorf("not found: %v", rep.Problems)
	}
	if w, _ := rep.Worst(); w > max(m.sev, Error) {
		t.Errorf("exaggerated: %v", rep.Problems)
	}
	after := tryRepair(t, im, want)
	if has(after, m.code) == m.fixed {
		t.Errorf("fixed %v: %v", !m.fixed, after.Problems)
	}
	if m.fixed && !after.Sound() {
		t.Errorf("not sound: %v", after.Problems)
	}
	if m.lossless {
		same(t, want, im.read(im.dir()), nil)
	}
}

func has(r *Report, c Code) bool {
	return slices.ContainsFunc(r.Problems, func(p Problem) bool { return p.Code == c })
}

// same compares cells; those in the ranges may differ.
func same(t *testing.T, want, got []cell, but []Problem) {
	t.Helper()
	for i, w := range want {
		if slices.ContainsFunc(but, func(p Problem) bool { return p.Off < w.off+w.n && p.Off+p.Len > w.off }) {
			continue
		}
		if i >= len(got) {
			t.Errorf("the disk ends before %d", w.off)
			return
		}
		if g := got[i]; g.off != w.off || g.err != nil || g.hash != w.hash {
			t.Errorf("guest bytes %d..%d changed: %v", w.off, w.off+w.n-1, g.err)
			return
		}
	}
}

// tryRepair repairs everything that can be repaired in im, and checks what must be true whatever was wrong: a dry run and a
// repair of something else change nothing; what the guest could read rightly it reads as before; what it could not, it reads
// rightly or is told that it is lost; undo brings every file back.
func tryRepair(t *testing.T, im *image, want []cell) *Report {
	t.Helper()
	ctx := context.Background()
	before := im.read(im.dir())
	s := im.fs()
	d := s.Root()
	s.Record()
	for _, p := range []RepairParams{{}, {Fix: Repairable, Loss: true, DryRun: true}} {
		r, err := Repair(ctx, d, imageName, p)
		if errors.Is(err, fault.Precondition) { // the plan was worse than the disk
			rep, err := Check(ctx, d, imageName)
			if err != nil || len(s.Log()) > 0 {
				t.Errorf("%v, %v", err, s.Log())
			}
			return &rep
		}
		if err != nil || r.Undo != "" {
			t.Fatalf("%+v: %+v %v", p, r, err)
		}
	}
	if ops := s.Log(); len(ops) > 0 {
		t.Fatalf("a dry run wrote: %v", ops)
	}
	r, err := Repair(ctx, d, imageName, RepairParams{Fix: Repairable, Loss: true})
	if err != nil {
		t.Fatal(err)
	}
	repaired := im.clone()
	repaired.files = map[string][]byte{}
	for n := range im.files {
		repaired.files[n] = slurp(t, d, n)
	}
	got := repaired.read(repaired.dir())
	if engine := repaired.open(repaired.dir()); im.reader != nil && r.After.Sound() && got != nil {
		if engine == nil {
			t.Errorf("it does not open, but it is sound: %v", r.After.Problems)
		}
		same(t, got, engine, nil)
	}
	checkContent(t, r, want, before, got)
	if r.Undo != "" {
		if err := UndoRepair(d, r.Undo); err != nil {
			t.Fatal(err)
		}
	}
	names, err := d.List()
	if err != nil || len(names) != len(im.files) {
		t.Errorf("files %v %v", names, err)
	}
	for n, b := range im.files {
		if !bytes.Equal(slurp(t, d, n), b) {
			t.Errorf("undo left %s changed", n)
		}
	}
	im.files = repaired.files
	return &r.After
}

// checkContent: what could be read rightly reads as before; the rest reads rightly, or is told.
func checkContent(t *testing.T, r *RepairResult, want, before, got []cell) {
	t.Helper()
	if before != nil && got == nil {
		t.Errorf("it opened before the repair: %+v", r)
	}
	if fatal := slices.ContainsFunc(r.After.Problems, func(p Problem) bool { return p.Severity == Fatal }); got != nil && !fatal {
		told := r.Lost
		for _, p := range r.After.Problems {
			if p.Severity >= Error {
				told = append(told, p)
			}
		}
		same(t, want, got, told)
		if len(before) == len(want) {
			for i, b := range before {
				if b.err == nil && b.hash == want[i].hash && (i >= len(got) || got[i].err != nil || got[i].hash != b.hash) {
					t.Errorf("intact guest bytes %d..%d are lost", b.off, b.off+b.n-1)
				}
			}
		}
	}
}

func TestFlatMutations(t *testing.T) {
	for _, f := range formats {
		healthy := newImage(t, f)
		if healthy.at(0) != nil {
			continue
		}
		for _, m := range flatMutations {
			for i, file := range healthy.extentFiles() {
				t.Run(fmt.Sprintf("%s/%d %s %d", f.name, m.number, m.name, i), func(t *testing.T) {
					im := healthy.clone()
					im.t = t
					m.do(im, file)
					rep, err := Check(context.Background(), im.dir(), imageName)
					if err != nil || !slices.ContainsFunc(rep.Problems, func(p Problem) bool { return p.Code == m.code && p.Severity == m.sev }) {
						t.Errorf("not found: %v %v", rep.Problems, err)
					}
					if after := tryRepair(t, im, healthy.content); has(after, m.code) == m.fixed {
						t.Errorf("fixed %v: %v", !m.fixed, after.Problems)
					}
				})
			}
		}
	}
}

// overlap tells that two mutations change the same words of four bytes.
func overlap(healthy *image, a, b mutation) bool {
	one, two := healthy.clone(), healthy.clone()
	a.do(one.at(0))
	b.do(two.at(0))
	for n, h := range healthy.files {
		x, y := one.files[n], two.files[n]
		for i := 0; i+4 <= min(len(x), len(y), len(h)); i += 4 {
			if !bytes.Equal(x[i:i+4], h[i:i+4]) && !bytes.Equal(y[i:i+4], h[i:i+4]) {
				return true
			}
		}
	}
	return false
}

// TestMutationPairs: two defects at once, in one extent or in two. Both are found, or a fatal one that hides the other;
// then the repair of one shows the other.
func TestMutationPairs(t *testing.T) {
	rnd := rounds(t)
	n := 40
	if s, err := strconv.Atoi(os.Getenv("PAIRS")); err == nil {
		n = s
	}
	for _, f := range formats {
		healthy := newImage(t, f)
		if healthy.at(0) == nil {
			continue
		}
		for pairs, tries := 0, 0; pairs < n; tries++ {
			if tries == 100*n {
				t.Fatalf("%s: only %d pairs in %d tries", f.name, pairs, tries)
			}
			a, b := sparseMutations[rnd.IntN(len(sparseMutations))], sparseMutations[rnd.IntN(len(sparseMutations))]
			second := rnd.IntN(len(healthy.extentFiles()))
			if a.number == 5 || b.number == 5 || second == 0 && a.grain >= 0 && (a.grain == b.grain || a.code == b.code || max(a.grain, b.grain) < 2) ||
				second == 0 && (a.code == CapacityDiffers && b.code == GrainBeyondCapacity || b.code == CapacityDiffers && a.code == GrainBeyondCapacity) {
				continue // what is cut off is not what another one made; two that swap, hide or excuse the same entries are one defect
			}
			im := healthy.clone()
			im.t = t
			x, y := im.at(0), im.at(second)
			if a.do(x); a.number == 12 && bytes.Equal(x.b, im.files[x.name]) {
				continue // no defect here
			}
			if b.do(y); b.number == 12 && y.h.numGTs() > 1 {
				continue // no defect here
			}
			if second == 0 && overlap(healthy, a, b) {
				continue // the second undoes the first
			}
			pairs++
			t.Run(fmt.Sprintf("%s/%s and %s in %d", f.name, a.name, b.name, second), func(t *testing.T) {
				im.t = t
				rep, err := Check(context.Background(), im.dir(), imageName)
				if err != nil {
					t.Fatal(err)
				}
				hidden := has(&rep, TablesMissing) || has(&rep, MetadataOverlaps) || second == 0 && a.grain >= 0 && b.grain >= 0 && !rep.Sound() ||
					slices.ContainsFunc(rep.Problems, func(p Problem) bool { return p.Severity == Fatal })
				if !hidden && (!has(&rep, a.code) || !has(&rep, b.code)) {
					t.Errorf("not found: %v", rep.Problems)
				}
				tryRepair(t, im, healthy.content)
			})
		}
	}
}
