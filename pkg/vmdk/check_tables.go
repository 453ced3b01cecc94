package vmdk

// tableChecker examines the grain tables of one extent.
type tableChecker struct {
	c           *checker
	s           *sparse
	start, size int64 // byte of the disk; bytes of the file
	used        *grainSet
}

// table compares a table with its copy and looks at every entry.
func (t *tableChecker) table(i int64) error {
	gt, err := t.s.readTable(t.s.gd[i])
	if err != nil {
		return t.c.finding(err, TableBeyondEnd, t.s.name)
	}
	if t.s.rgd != nil && t.s.gd[i] > 1 && t.s.rgd[i] > 1 {
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

// compare reports runs of entries that differ. In an extent that was not closed cleanly that is what recovery mends.
func (t *tableChecker) compare(i int64, gt, rgt []uint32) {
	for j := 0; j < len(gt); j++ {
		if gt[j] == rgt[j] {
			continue
		}
		first := j
		for j+1 < len(gt) && gt[j+1] != rgt[j+1] {
			j++
		}
		sev, remedy := Error, "Attach it once: opening it for writing makes the copies equal"
		if t.s.h.unclean {
			sev = Warning
		} else {
			remedy = "Convert the disk, or copy the right table over the other; VirtualBox refuses the disk as it is"
		}
		off, n := t.guest(i*int64(t.s.h.gtes)+int64(first), int64(j-first+1))
		t.c.add(TableCopiesDiffer, sev, t.s.name, off, n, remedy, "grain table %d and its copy differ in entries %d..%d, first %d and %d", i, first, j, gt[first], rgt[first])
	}
}

// guest is the range of the disk that grains hold.
func (t *tableChecker) guest(g, count int64) (off, n int64) {
	gb := t.s.grain * SectorSize
	return t.start + g*gb, max(0, min(count*gb, t.s.sectors*SectorSize-g*gb))
}

func (t *tableChecker) entry(g int64, v uint32) {
	off, n := t.guest(g, 1)
	bad := func(code Code, sev Severity, remedy, format string, args ...any) {
		t.c.add(code, sev, t.s.name, off, n, remedy, format, args...)
	}
	at, grain := int64(v), t.s.grain
	switch {
	case v == 1:
		if t.s.h.flags&flagZeroGrain == 0 {
			bad(ZeroEntryNoFlag, Error, "Set the flag if the grain is known to be zeros, else clear the entry", "grain %d is marked as zeros, but the header says that the extent has no such grains", g)
		}
		return
	case g*grain >= int64(t.s.h.capacity):
		bad(GrainBeyondCapacity, Error, "Clear the entry", "grain %d lies behind the capacity", g)
		return
	case at < int64(t.s.h.overHead):
		bad(GrainInMetadata, Error, "Restore the grain; its content is lost", "grain %d is said to be at sector %d, inside the metadata", g, v)
		return
	case at*SectorSize >= t.size:
		bad(GrainBeyondEnd, Error, "Restore the grain; its content is lost", "grain %d is said to be at sector %d, behind the end of the file", g, v)
		return
	}
	if (at+grain)*SectorSize > t.size {
		if need := min(grain*SectorSize, n); at*SectorSize+need > t.size {
			bad(GrainCutOff, Warning, "Extend the file with zeros if the rest was never written", "the file ends inside grain %d", g)
		}
	}
	if at%grain != 0 {
		bad(GrainUnaligned, Warning, "Convert the disk when convenient", "grain %d is at sector %d, not a multiple of %d", g, v, grain)
	}
	if !t.used.add(v) {
		bad(GrainShared, Error, "Find out whose content it is, and give the other grain a place of its own", "grain %d is at sector %d, where another grain is", g, v)
	}
}

// leaks counts grains of the file that no entry names. Holes at the end are what a writer prepares for later.
func (t *tableChecker) leaks() {
	t.c.r.Allocated += t.used.count * t.s.grain * SectorSize
	meta := map[int64]bool{}
	mark := func(at, sectors int64) {
		for x := at / t.s.grain; x <= (at+sectors-1)/t.s.grain; x++ {
			meta[x] = true
		}
	}
	dir := gdSectors(t.s.h.numGTs())
	mark(int64(t.s.h.gdOff), dir)
	if t.s.h.redundant() {
		mark(int64(t.s.h.rgdOff), dir)
	}
	for _, d := range [][]uint32{t.s.gd, t.s.rgd} {
		for _, v := range d {
			if v > 1 && uint64(v) >= t.s.h.overHead {
				mark(int64(v), t.s.h.gtSectors())
			}
		}
	}
	leaked := int64(0)
	for x := roundUp(int64(t.s.h.overHead), t.s.grain) / t.s.grain; x < t.used.top/t.s.grain; x++ {
		if !t.used.taken(x) && !meta[x] && len(t.used.unaligned) == 0 {
			leaked++
		}
	}
	if leaked > 0 {
		n := leaked * t.s.grain * SectorSize
		t.c.r.Leaked += n
		t.c.add(GrainsLeaked, Note, t.s.name, 0, 0, "Convert the disk if the space matters; discarded grains are holes and take none", "%d bytes of the file belong to no grain", n)
	}
}
