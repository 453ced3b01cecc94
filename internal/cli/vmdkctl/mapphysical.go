package vmdkctl

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/fiemap"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// physicalEntry is a part of a disk and where it is on a block device.
type physicalEntry struct {
	Start  int64  `json:"start"`
	Length int64  `json:"length"`
	Zero   bool   `json:"zero"`             // reads as zeros
	Device string `json:"device,omitempty"` // the whole device, MAJOR:MINOR
	Place  *int64 `json:"place,omitempty"`  // byte of the device
}

// physicalMap asks the file system below the disk's files where they are. It is best effort: the places hold until the file system moves
// something.
func (a *app) physicalMap(f *found, c *chain.Chain) error {
	if f.Path == "" {
		return fault.New(fault.Unsupported, "", "the disk lies in no directory of a file system")
	}
	p := places{dir: f.Path, known: map[string]*fiemap.Place{}}
	var all []physicalEntry
	for e, err := range p.of(c) {
		if err != nil {
			return err
		}
		if k := len(all) - 1; k >= 0 && all[k].joins(e) {
			all[k].Length += e.Length
			continue
		}
		all = append(all, e)
	}
	return a.format.Write(a.out, all, func(w io.Writer) error {
		t := cli.NewTable(">START", ">LENGTH", "DEVICE", ">PLACE")
		for _, e := range all {
			if e.Zero {
				t.Row(exact(e.Start), exact(e.Length), "zeros", "")
			} else {
				t.Row(exact(e.Start), exact(e.Length), e.Device, fmt.Sprint(*e.Place))
			}
		}
		return t.Write(w)
	})
}

func (e physicalEntry) joins(next physicalEntry) bool {
	if e.Zero || next.Zero {
		return e.Zero && next.Zero
	}
	return e.Device == next.Device && *e.Place+e.Length == *next.Place
}

// places are those of a directory's files.
type places struct {
	dir   string
	known map[string]*fiemap.Place
}

// of are the parts of a disk, cut where its files are.
func (p *places) of(c *chain.Chain) iter.Seq2[physicalEntry, error] {
	return func(yield func(physicalEntry, error) bool) {
		for x, err := range c.Map(0, c.Size()) {
			switch {
			case err != nil:
			case x.File == "" && x.Data && !x.Zero:
				err = fault.New(fault.Unsupported, "Convert the disk.", "the disk is compressed: its bytes are nowhere on a device")
			case x.File == "" || x.Zero:
				if !yield(physicalEntry{Start: x.Start, Length: x.Length, Zero: true}, nil) {
					return
				}
				continue
			}
			if err != nil {
				yield(physicalEntry{}, err)
				return
			}
			if !p.cut(x, yield) {
				return
			}
		}
	}
}

func (p *places) cut(x chain.Extent, yield func(physicalEntry, error) bool) bool {
	at, err := p.file(x.File)
	if err != nil {
		return yield(physicalEntry{}, err) && false
	}
	i, _ := slices.BinarySearchFunc(at.Extents, x.Offset, func(e fiemap.Extent, off int64) int { return cmp.Compare(e.Off+e.Len, off+1) })
	for off, end := x.Offset, x.Offset+x.Length; off < end; i++ {
		if i == len(at.Extents) {
			return yield(physicalEntry{}, fault.New(fault.Damaged, "Check the disk.", "file %s ends before byte %d", x.File, end)) && false
		}
		e := at.Extents[i]
		n := min(e.Off+e.Len, end) - off
		out := physicalEntry{Start: x.Start + off - x.Offset, Length: n, Zero: e.Zero}
		if !e.Zero {
			place := e.Place + off - e.Off
			out.Device, out.Place = at.Device, &place
		}
		if !yield(out, nil) {
			return false
		}
		off += n
	}
	return true
}

func (p *places) file(name string) (at *fiemap.Place, err error) {
	if at := p.known[name]; at != nil {
		return at, nil
	}
	f, err := os.Open(filepath.Join(p.dir, name))
	if err != nil {
		return nil, err
	}
	at, err = fiemap.Map(f, false)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, fault.Wrap(err, "%s", name)
	}
	p.known[name] = at
	return at, nil
}
