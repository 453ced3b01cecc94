package store

import (
	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Extent is a part of a file and its place on the LUN, in bytes.
type Extent struct {
	Off int64 // in the file
	Len int64
	LUN int64 // on the LUN; negative: nowhere, the range reads as zeros
}

// Extents are the places of all of a file that was opened in the store, in order and without gaps, holes included. They are
// right until the file is changed: who tells them to others keeps it from that, and has a grant that keeps the extents.
func (s *Store) Extents(f fsx.File) ([]Extent, error) {
	own, ok := fsx.UnwrapFile(f).(*file)
	if !ok || own.s != s {
		return nil, fault.New(fault.Invalid, "", "a %T has no places on %s", f, s)
	}
	own.n.mu.RLock()
	defer own.n.mu.RUnlock()
	var out []Extent
	err := s.pieces(own.n, 0, own.n.size, func(x piece) error {
		if k := len(out) - 1; k >= 0 && x.lun >= 0 && out[k].LUN >= 0 && out[k].LUN+out[k].Len == x.lun {
			out[k].Len += x.n
			return nil
		}
		out = append(out, Extent{x.off, x.n, x.lun})
		return nil
	})
	return out, err
}
