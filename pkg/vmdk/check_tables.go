package vmdk

import (
	"errors"
	"io"
	"slices"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// tableChecker examines the grain tables of one extent.
type tableChecker struct {
	c           *checker
	s           *sparse
	start, size int64 // byte of the disk; bytes of the file
	meta        *metadata
	used        *grainSet
	collided    map[uint32]struct{} // places that were taken when they were named again
}

// table compares a table with its copy and looks at every entry.
func (t *tableChecker) table(i int64) error {
	gt, err := t.s.readTable(t.s.gd[i])
	if err != nil {
		return t.c.finding(err, TableBeyondEnd, t.s.name)
	}
	if t.s.rgd != nil && t.s.gd[i] != 1 && t.s.rgd[i] > 1 {
		rgt, err := t.s.readTable(t.s.rgd[i])
		if err != nil {
			return t.c.finding(err, TableBeyondEnd, t.s.name)
		}
		t.compare(i, gt, rgt)
	}
	for j, v := range gt {
		if v != 0 {
			t.entry(i*int64(t.s.h.gtes)+int64(j), v)
		}
	}
	return nil
}

// compare reports runs of entries that differ; a table that is not there (nil) holds zeros. In an extent that was not
// closed cleanly a difference is what recovery mends.
func (t *tableChecker) compare(i int64, gt, rgt []uint32) {
	if gt == nil {
		gt = make([]uint32, len(rgt))
	}
	for j := 0; j < len(gt); j++ {
		if gt[j] == rgt[j] {
			continue
		}
		first := j
		for j+1 < len(gt) && gt[j+1] != rgt[j+1] {
			j++
		}
		sev, remedy := Error, "Run vmdkctl repair, or attach it once; VirtualBox refuses the disk as it is"
		if t.s.h.unclean {
			sev = Warning
		}
		off, n := t.guest(i*int64(t.s.h.gtes)+int64(first), int64(j-first+1))
		t.c.add(TableCopiesDiffer, sev, t.s.name, off, n, remedy,
			"grain table %d and its copy differ in entries %d..%d, first %d and %d", i, first, j, gt[first], rgt[first])
	}
}

// guest is the range of the disk that grains hold.
func (t *tableChecker) guest(g, count int64) (off, n int64) {
	gb := t.s.grain * SectorSize
	return t.start + g*gb, max(0, min(count*gb, t.s.sectors*SectorSize-g*gb))
}

// wrong is why an entry names no place of a grain; "" if it may.
func (t *tableChecker) wrong(g int64, v uint32) Code {
	at := int64(v)
	switch {
	case v == 0, v == 1 && t.s.h.flags&flagZeroGrain != 0:
		return ""
	case v == 1:
		return ZeroEntryNoFlag
	case g*t.s.grain >= int64(t.s.h.capacity):
		return GrainBeyondCapacity
	case (at+1)*SectorSize > t.size:
		return GrainBeyondEnd
	case at < int64(t.s.h.overHead) || t.meta.holds(at, t.s.grain):
		return GrainInMetadata
	}
	return ""
}

func (t *tableChecker) entry(g int64, v uint32) {
	off, n := t.guest(g, 1)
	bad := func(code Code, sev Severity, remedy, format string, args ...any) {
		t.c.add(code, sev, t.s.name, off, n, remedy, format, args...)
	}
	switch t.wrong(g, v) {
	case ZeroEntryNoFlag:
		bad(ZeroEntryNoFlag, Error, "Run vmdkctl repair if the grain is known to be zeros",
			"grain %d is marked as zeros, but the header says that the extent has no such grains", g)
		return
	case GrainBeyondCapacity:
		bad(GrainBeyondCapacity, Error, "Run vmdkctl repair: the entry is cleared", "grain %d lies behind the capacity", g)
		return
	case GrainBeyondEnd:
		bad(GrainBeyondEnd, Error, "Run vmdkctl repair: the copy of the table may know the place, else the content is lost",
			"grain %d is said to be at sector %d, behind the end of the file", g, v)
		return
	case GrainInMetadata:
		bad(GrainInMetadata, Error, "Run vmdkctl repair: the copy of the table may know the place, else the content is lost",
			"grain %d is said to be at sector %d, inside the metadata", g, v)
		return
	}
	if v == 1 {
		return
	}
	at, grain := int64(v), t.s.grain
	if (at+grain)*SectorSize > t.size {
		if need := min(grain*SectorSize, n); at*SectorSize+need > t.size {
			bad(GrainCutOff, Warning, "Run vmdkctl repair to extend the file with zeros if the rest was never written", "the file ends inside grain %d", g)
		}
	}
	if at%grain != 0 {
		bad(GrainUnaligned, Warning, "Run vmdkctl repair, or convert the disk when convenient",
			"grain %d is at sector %d, not a multiple of %d", g, v, grain)
	}
	if !t.used.add(v) && len(t.collided) < maxProblems {
		t.collided[v] = struct{}{}
	}
}

// namedGrain is a grain and its place.
type namedGrain struct {
	g int64
	v uint32
}

// sharing are the grains, by place, that share sectors with another one: a second walk, made only if the first found a place
// taken.
func (t *tableChecker) sharing(walk func(visit func(g int64, v uint32)) error) ([]namedGrain, error) {
	if len(t.collided) == 0 {
		return nil, nil
	}
	touched := map[int64]bool{}
	for v := range t.collided {
		touched[int64(v)/t.s.grain] = true
		touched[(int64(v)+t.s.grain-1)/t.s.grain] = true
	}
	var named []namedGrain
	err := walk(func(g int64, v uint32) {
		if v <= 1 || t.wrong(g, v) != "" || len(named) > 8*maxProblems {
			return
		}
		if touched[int64(v)/t.s.grain] || touched[(int64(v)+t.s.grain-1)/t.s.grain] {
			named = append(named, namedGrain{g, v})
		}
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(named, func(a, b namedGrain) int {
		if a.v != b.v {
			return int(int64(a.v) - int64(b.v))
		}
		return int(a.g - b.g)
	})
	return slices.DeleteFunc(named, func(n namedGrain) bool { return neighbour(named, n, t.s.grain) < 0 }), nil
}

// neighbour is a grain that shares sectors with n in a list by place, -1 if there is none.
func neighbour(named []namedGrain, n namedGrain, grain int64) int64 {
	i, _ := slices.BinarySearchFunc(named, int64(n.v)-grain+1, func(x namedGrain, at int64) int { return int(int64(x.v) - at) })
	for ; i < len(named) && int64(named[i].v) < int64(n.v)+grain; i++ {
		if named[i].g != n.g {
			return named[i].g
		}
	}
	return -1
}

func (t *tableChecker) shared() error {
	named, err := t.sharing(func(visit func(int64, uint32)) error {
		for i, at := range t.s.gd {
			gt, err := t.s.readTable(at)
			if err != nil {
				return err
			}
			for j, v := range gt {
				visit(int64(i)*int64(t.s.h.gtes)+int64(j), v)
			}
		}
		return nil
	})
	if err != nil {
		return t.c.finding(err, TableBeyondEnd, t.s.name)
	}
	for _, n := range named {
		off, length := t.guest(n.g, 1)
		other := neighbour(named, n, t.s.grain)
		t.c.add(GrainShared, Error, t.s.name, off, length, "Find out whose content it is; vmdkctl repair gives each a place of its own",
			"grain %d is at sector %d, where grain %d is", n.g, n.v, other)
	}
	return nil
}

// leaks counts what the file holds between and behind the grains and belongs to none of them. Holes are no leak: they are
// what discards leave and a writer prepares.
func (t *tableChecker) leaks() error {
	t.c.r.Allocated += t.used.count * t.s.grain * SectorSize
	for v := range t.used.unaligned { // it takes parts of two places
		for _, x := range []int64{int64(v) / t.s.grain, int64(v)/t.s.grain + 1} {
			t.used.take(x)
		}
	}
	leaked, grain := int64(0), t.s.grain
	last := t.size / SectorSize / grain
	seek := seeker{t: t}
	for x := ceilDiv(int64(t.s.h.overHead), grain); x <= last; {
		if t.used.taken(x) || t.meta.holds(x*grain, grain) {
			x++
			continue
		}
		from := x
		for x <= last && !t.used.taken(x) && !t.meta.holds(x*grain, grain) {
			x++
		}
		n, err := seek.data(from*grain*SectorSize, min(x*grain*SectorSize, t.size))
		if err != nil {
			return err
		}
		leaked += n
	}
	if leaked > 0 {
		t.c.r.Leaked += leaked
		t.c.add(GrainsLeaked, Note, t.s.name, 0, 0, "Shrink or convert the disk if the space matters", "%d bytes of the file belong to no grain", leaked)
	}
	return nil
}

// seeker counts data of a file. The run that it found last is remembered: ranges come in ascending order.
type seeker struct {
	t          *tableChecker
	start, end int64
	blind      bool // the file system cannot tell
}

func (k *seeker) data(from, to int64) (n int64, err error) {
	for at := from; at < to; {
		if at >= k.end && !k.blind {
			switch k.start, k.end, err = k.t.s.file.SeekData(at); {
			case errors.Is(err, io.EOF):
				k.start, k.end = k.t.size, k.t.size+1
			case fault.KindOf(err) == fault.Unsupported:
				k.blind = true
			case err != nil:
				return 0, err
			}
		}
		if k.blind {
			return n + to - at, nil
		}
		lo, hi := max(at, k.start), min(to, k.end)
		if hi > lo {
			n += hi - lo
		}
		at = min(to, k.end)
	}
	return n, nil
}
