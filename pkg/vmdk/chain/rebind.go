package chain

import (
	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
)

func (i Identity) place() vmdk.Place {
	return vmdk.Place{CID: i.CID, LongID: i.LongID, ParentCID: i.ParentCID, Parent: i.Parent, UUID: i.UUID}
}

// Rebind makes the descriptors of a closed chain say what they must, base first; those that do already are left alone. It
// is repeated after a crash. Each descriptor is replaced as a whole; while some are new and some old, the content IDs of
// neighbours may disagree.
func Rebind(d fsx.Dir, want []Identity) error {
	for _, w := range want {
		if w.Size != 0 {
			info, err := infoOf(d, w.Name)
			if err != nil {
				return err
			}
			if info.Capacity != w.Size {
				return fault.New(fault.Damaged, "restore the descriptor", "%s has %d bytes, want %d", w.Name, info.Capacity, w.Size)
			}
		}
		if err := vmdk.Rebind(d, w.Name, w.place()); err != nil {
			return err
		}
	}
	return nil
}

func infoOf(d fsx.Dir, name string) (*vmdk.Info, error) {
	l, err := vmdk.Open(d, name, vmdk.Options{})
	if err != nil {
		return nil, err
	}
	return l.Info(), l.Close()
}
