package vmdkctl

import (
	"bytes"
	"os"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
)

// TestRawDevice: a descriptor that names a device is followed only where --device says so.
func TestRawDevice(t *testing.T) {
	r := newRig(t)
	content := bytes.Repeat([]byte("device!\n"), 1<<17)
	text := "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"fullDevice\"\nRW 2048 FLAT \"/dev/sdz\" 0\n"
	for name, b := range map[string][]byte{"device": content, "disk.vmdk": []byte(text)} {
		if err := os.WriteFile(r.path(name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r.fails(cli.ExitFailed, "/dev/sdz", "convert", "disk.vmdk", "copy.raw")
	r.ok("convert", "disk.vmdk", "copy.raw", "--device", "/dev/sdz="+r.path("device"))
	if got, err := os.ReadFile(r.path("copy.raw")); err != nil || !bytes.Equal(got, content) {
		t.Errorf("the copy differs from the device (%v)", err)
	}
	given := "/dev/sdz=" + r.path("device")
	r.ok("info", "disk.vmdk", "--device", given)
	r.ok("check", "disk.vmdk", "--device", given)
	if res := r.run("check", "disk.vmdk"); res.code != cli.ExitDamaged {
		t.Errorf("a device that is not named: exit code %d\n%s", res.code, res.out)
	}
	r.ok("snapshot", "disk.vmdk", "disk-000001.vmdk", "--device", given)
	r.ok("check", "disk-000001.vmdk", "--device", given)
	r.fails(cli.ExitFailed, "not a file name", "snapshot", "disk-000001.vmdk", "disk-000002.vmdk")
}
