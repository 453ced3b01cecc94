package qemu

import (
	"os"
	"path/filepath"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Guest is the other side of the bus: the kernel of the machine that gets the disks. virtio-scsi and pvscsi tell it
// of them; lsi53c895a does not, so that it must be told to look, and to forget a disk that is gone.
type Guest struct {
	Sys string // where sysfs is mounted; "" is /sys
}

func (g Guest) sys(part ...string) string {
	if g.Sys == "" {
		g.Sys = "/sys"
	}
	return filepath.Join(append([]string{g.Sys}, part...)...)
}

// Rescan makes the kernel look for disks on every SCSI host. Kind: NotFound (there is no SCSI host).
func (g Guest) Rescan() error {
	hosts, err := filepath.Glob(g.sys("class", "scsi_host", "*", "scan"))
	if err != nil {
		return err
	}
	if len(hosts) == 0 {
		return fault.New(fault.NotFound, "Load the driver of the machine's SCSI controllers.", "this machine has no SCSI host")
	}
	for _, h := range hosts {
		if err := os.WriteFile(h, []byte("- - -"), 0); err != nil {
			return fault.Wrap(err, "rescan")
		}
	}
	return nil
}

// Forget makes the kernel drop a disk ("sdb"), after the unmount and before or after the detach; one that is not
// there is forgotten already.
func (g Guest) Forget(device string) error {
	if device == "" || filepath.Base(device) != device {
		return fault.New(fault.Invalid, "", "%q is not the name of a block device", device)
	}
	f, err := os.OpenFile(g.sys("block", device, "device", "delete"), os.O_WRONLY, 0)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return fault.Wrap(err, "forget disk %s", device)
	}
	_, err = f.WriteString("1")
	if e := f.Close(); err == nil {
		err = e
	}
	return fault.Wrap(err, "forget disk %s", device)
}
