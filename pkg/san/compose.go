package san

import (
	"cmp"
	"errors"
	"iter"
	"slices"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/store"
)

// apart checks that no two extents have a byte of the LUN in common: writes to one would change the other.
func (m *Map) apart(bad func(string, ...any) error) error {
	sorted := slices.SortedFunc(slices.Values(m.Extents), func(a, b Extent) int {
		return cmp.Or(cmp.Compare(a.LUN, b.LUN), cmp.Compare(a.Place, b.Place))
	})
	for i := 1; i < len(sorted); i++ {
		a, b := sorted[i-1], sorted[i]
		if a.LUN == b.LUN && a.Place+a.Len > b.Place {
			return bad("the extents at %d and %d of the disk overlap on the LUN", a.Off, b.Off)
		}
	}
	return nil
}

// Run is a part of a disk in one file of its directory, or zeros.
type Run struct {
	Off, Len int64  // of the disk, bytes
	File     string // "": zeros
	FileOff  int64
}

// compose finds the places of all runs on the LUN of a store. Neighbours become one.
func compose(s *store.Store, dir fsx.Dir, size int64, runs iter.Seq2[Run, error]) (all []Extent, err error) {
	files := files{s: s, dir: dir, known: map[string][]store.Extent{}}
	at := int64(0)
	add := func(x Extent) error {
		k := len(all) - 1
		switch {
		case k >= 0 && all[k].Zero && x.Zero:
			all[k].Len += x.Len
		case k >= 0 && !all[k].Zero && !x.Zero && all[k].Place+all[k].Len == x.Place:
			all[k].Len += x.Len
		case len(all) == maxExtents:
			return fault.New(fault.Unsupported, "Use NBD, or flatten or defragment the disk.", "the disk is in more than %d pieces on the LUN", maxExtents)
		default:
			all = append(all, x)
		}
		return nil
	}
	for r, err := range runs {
		if err != nil {
			return nil, err
		}
		if r.Off != at || r.Len <= 0 || r.Len > size-at {
			return nil, fault.New(fault.Internal, "", "run [%d, +%d) follows [.., %d) of a disk of %d bytes", r.Off, r.Len, at, size)
		}
		at += r.Len
		if r.File == "" {
			if err := add(Extent{Off: r.Off, Len: r.Len, Zero: true}); err != nil {
				return nil, err
			}
			continue
		}
		if err := files.places(r, add); err != nil {
			return nil, err
		}
	}
	if at != size {
		return nil, fault.New(fault.Internal, "", "the runs end at %d, the disk at %d", at, size)
	}
	return all, checkUnits(all, size)
}

// checkUnits refuses what can only be read by parts of blocks: grains of foreign tools may begin anywhere.
func checkUnits(all []Extent, size int64) error {
	for _, x := range all {
		if x.Off%Unit != 0 || x.Len%Unit != 0 && x.Off+x.Len != size || x.Place%Unit != 0 {
			return fault.New(fault.Unsupported, "Use NBD, or convert the disk.",
				"the disk has a piece [%d, +%d), at %d of the LUN: all must be multiples of %d", x.Off, x.Len, x.Place, Unit)
		}
	}
	return nil
}

// files knows the places of the files of a directory.
type files struct {
	s     *store.Store
	dir   fsx.Dir
	known map[string][]store.Extent
}

func (f *files) extents(name string) ([]store.Extent, error) {
	if x, ok := f.known[name]; ok {
		return x, nil
	}
	file, err := f.dir.Open(name, fsx.ReadOnly)
	if err != nil {
		return nil, err
	}
	x, err := f.s.Extents(file)
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, err
	}
	f.known[name] = x
	return x, nil
}

// places cuts a run where its file's places end. Behind the end of a file there is nothing to read: the disk is damaged.
func (f *files) places(r Run, add func(Extent) error) error {
	all, err := f.extents(r.File)
	if err != nil {
		return err
	}
	i, _ := slices.BinarySearchFunc(all, r.FileOff, func(x store.Extent, off int64) int { return cmp.Compare(x.Off+x.Len, off+1) })
	for off, end := r.FileOff, r.FileOff+r.Len; off < end; i++ {
		if i == len(all) {
			return fault.New(fault.Damaged, "Check the disk.", "file %s ends before byte %d", r.File, end)
		}
		x := all[i]
		n := min(x.Off+x.Len, end) - off
		e := Extent{Off: r.Off + off - r.FileOff, Len: n}
		if x.LUN < 0 {
			e.Zero = true
		} else {
			e.Place = x.LUN + off - x.Off
		}
		if err := add(e); err != nil {
			return err
		}
		off += n
	}
	return nil
}
