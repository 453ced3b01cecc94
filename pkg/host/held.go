package host

import (
	"os"
	"slices"
	"strings"

	"github.com/vmdk-csi/vmdk-csi/internal/sys"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Dup is h with descriptors of its own; the caller closes them. Missing ones stay missing.
func (h Held) Dup() (Held, error) {
	var err error
	for _, f := range []**os.File{&h.Device.Fuse, &h.Device.Table, &h.Device.Scratch, &h.Worker} {
		var dup *os.File
		if *f != nil && err == nil {
			dup, err = sys.Dup(*f)
		}
		*f = dup
	}
	if err != nil {
		h.Close()
		return Held{}, fault.Wrap(err, "duplicate the descriptors of disk %s", h.Attachment.ID)
	}
	return h, nil
}

// Close closes the descriptors.
func (h Held) Close() {
	for _, f := range []*os.File{h.Device.Fuse, h.Device.Table, h.Device.Scratch, h.Worker} {
		if f != nil {
			_ = f.Close() // a descriptor of a device, a memfd or a process: nothing is written back
		}
	}
}

// CloseAll closes the descriptors of each.
func CloseAll(held []Held) {
	for _, h := range held {
		h.Close()
	}
}

// DupAll is Dup of each, all or none, in order of id.
func DupAll(held []Held) ([]Held, error) {
	out := make([]Held, 0, len(held))
	for _, h := range held {
		dup, err := h.Dup()
		if err != nil {
			CloseAll(out)
			return nil, err
		}
		out = append(out, dup)
	}
	slices.SortFunc(out, func(a, b Held) int { return strings.Compare(a.Attachment.ID, b.Attachment.ID) })
	return out, nil
}
