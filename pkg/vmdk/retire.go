package vmdk

import (
	"errors"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// MarkClean is CloseClean for a link that stays open to be read: its extents are trimmed and marked clean, durably.
// Everything must have been written and synced. Reads may go on.
func (l *Link) MarkClean() error {
	var errs []error
	for _, e := range l.extents {
		if e.writable && e.sp != nil && (e.sp.h.unclean || e.sp.alloc.end > e.sp.alloc.next) {
			errs = append(errs, e.sp.clean())
		}
	}
	return errors.Join(errs...)
}

// LockAs changes the byte locks of all extents, without waiting: fault.InUse if somebody else is in the way. After an error
// some extents may have the new mode.
func (l *Link) LockAs(m fsx.LockMode) error {
	for _, e := range l.extents {
		if m == fsx.LockWrite && e.access == "RDONLY" {
			continue // nobody writes it
		}
		if err := e.lock(m); err != nil {
			return err
		}
	}
	return nil
}

// Sync makes durable what anybody wrote to the files of the extents, also if the link is open to be read only.
func (l *Link) Sync() error {
	for _, e := range l.extents {
		if e.data == nil {
			continue
		}
		if err := e.data.Datasync(); err != nil {
			return fault.Wrap(err, "extent %s: sync", e.Name)
		}
	}
	return nil
}
