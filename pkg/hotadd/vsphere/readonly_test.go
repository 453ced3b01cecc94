package vsphere

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/hotadd"
	"github.com/vmdk-csi/vmdk-csi/pkg/hotadd/hotaddtest"
)

// sides is a disk without data, as the simulator has them: what a disk's user writes is vSphere's affair, by the mode that it is told.
type sides struct {
	*rig
	bus *Bus
}

func (s sides) Attach(readOnly bool) error {
	s.readOnly["a"] = readOnly
	if _, err := s.bus.Attach(s.t.Context(), hotadd.Disk{ID: "a"}); err != nil {
		return err
	}
	want := "independent_persistent"
	if readOnly {
		want = "independent_nonpersistent"
	}
	i := slices.IndexFunc(s.machine.Config.Hardware.Device, func(d types.BaseVirtualDevice) bool { _, ok := d.(*types.VirtualDisk); return ok })
	if i < 0 {
		return fmt.Errorf("the machine has no disk")
	}
	b := s.machine.Config.Hardware.Device[i].GetVirtualDevice().Backing.(*types.VirtualDiskFlatVer2BackingInfo)
	if b.DiskMode != want {
		return fmt.Errorf("the disk is %s, want %s", b.DiskMode, want)
	}
	return nil
}

func (s sides) Detach() error { return s.bus.Detach(s.t.Context(), "a") }

func noData() error { return fault.New(fault.Unsupported, "", "the simulator has no data") }

func (s sides) Write(byte) error         { return noData() }
func (s sides) Holds(byte) (bool, error) { return false, noData() }

func (s sides) Files() (map[string]string, error) {
	b, err := os.ReadFile(filepath.Join(s.dir, "disks/a.vmdk"))
	return map[string]string{"a.vmdk": fmt.Sprintf("%x", sha256.Sum256(b))}, err
}

func TestReadOnlyConforms(t *testing.T) {
	r := newRig(t)
	hotaddtest.ReadOnly(t, sides{r, r.open()})
}
