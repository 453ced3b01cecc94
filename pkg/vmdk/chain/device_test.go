package chain_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// TestDevices: disks on devices are opened only with a path that the caller gives, and then are disks like others.
func TestDevices(t *testing.T) {
	for _, c := range []struct {
		typ   string
		lines []string
		holes bool // the second MiB is none of the device's
	}{
		{"fullDevice", []string{`RW 6144 FLAT "/dev/sdz" 0`}, false},
		{"vmfsRawDeviceMap", []string{`RW 6144 VMFSRDM "disk-rdm.vmdk"`}, false},
		{"vmfsPassthroughRawDeviceMap", []string{`RW 6144 VMFSRDM "disk-rdm.vmdk"`}, false},
		{"vmfsRaw", []string{`RW 6144 VMFSRAW "/vmfs/devices/disks/naa.1"`}, false},
		{"partitionedDevice", []string{`RW 63 FLAT "disk-pt.vmdk" 0`, `RW 1985 FLAT "/dev/sdz" 63`, `RW 2048 ZERO`, `RW 2048 FLAT "/dev/sdz" 4096`}, true},
	} {
		t.Run(c.typ, func(t *testing.T) {
			d := newDisk(t, seeded(t), vmdk.CreateParams{Type: vmdk.MonolithicFlat, Capacity: 3 * mib})
			device := filepath.Join(t.TempDir(), "device")
			content := fillOf(3*mib, 0x5a)
			text := fmt.Sprintf("# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"%s\"\n%s\n", c.typ, strings.Join(c.lines, "\n"))
			for name, b := range map[string][]byte{device: content, filepath.Join(d.path, "disk.vmdk"): []byte(text),
				filepath.Join(d.path, "disk-pt.vmdk"): fillOf(63*512, 0xa5), filepath.Join(d.path, "disk-rdm.vmdk"): []byte("a mapping")} {
				if err := os.WriteFile(name, b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := chain.Open(d.dir, d.refs, chain.Options{}); fault.KindOf(err) != fault.Unsupported {
				t.Fatalf("without leave: %v", err)
			}
			copy(d.want, content)
			if c.holes {
				copy(d.want, fillOf(63*512, 0xa5))
				clear(d.want[mib : 2*mib])
			}
			d.o = chain.Options{Locks: true, Devices: map[string]string{"/dev/sdz": device, "disk-rdm.vmdk": device, "/vmfs/devices/disks/naa.1": device}}
			d.open()
			d.checkAll()
			if c.holes {
				if _, err := d.c.WriteAt(fillOf(512, 1), mib+512); fault.KindOf(err) != fault.ReadOnly {
					t.Errorf("a write into a hidden partition: %v", err)
				}
				for _, off := range []int64{512, 40000, 2*mib + 5} {
					if _, err := d.c.WriteAt(fillOf(1000, 9), off); err != nil {
						t.Fatal(err)
					}
					copy(d.want[off:], fillOf(1000, 9))
				}
				d.checkAll()
			} else {
				d.steps(20)
			}
			d.close()
			if !c.holes {
				got, err := os.ReadFile(device)
				if err != nil {
					t.Fatal(err)
				}
				same(t, "the device", got, d.want, 0)
			}
		})
	}
}

// TestBlockDevice: a real block device has its size, and is not written while it is mounted, or another disk's.
func TestBlockDevice(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, fillOf(4*mib, 3), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", file).Output()
	if err != nil {
		t.Skipf("no loop device can be had here: %v", err)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if err := exec.Command("losetup", "--detach", device).Run(); err != nil {
			t.Error(err)
		}
	})
	d := newDisk(t, seeded(t), vmdk.CreateParams{Type: vmdk.MonolithicFlat, Capacity: 4 * mib})
	text := "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"fullDevice\"\nRW 8192 FLAT \"/dev/sdz\" 0\n"
	if err := os.WriteFile(filepath.Join(d.path, "disk.vmdk"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	copy(d.want, fillOf(4*mib, 3))
	d.o = chain.Options{Locks: true, Devices: map[string]string{"/dev/sdz": device}}
	d.open()
	d.checkAll()
	if _, err := chain.Open(d.dir, d.refs, d.o); fault.KindOf(err) != fault.InUse {
		t.Errorf("opened twice for writing: %v", err)
	}
	d.steps(10)
	d.close()
}
