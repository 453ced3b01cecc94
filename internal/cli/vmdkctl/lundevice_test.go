package vmdkctl

import (
	"os"
	"strings"
	"testing"
)

// TestLUNDeviceNeeds: what the kernel's device mapper needs is said before the LUN is touched. The device itself is made in a kernel that
// has one, in test/guest.
func TestLUNDeviceNeeds(t *testing.T) {
	r := newRig(t)
	path := r.dir + "/lun"
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if res := r.run("lun", "device", path, "x"); res.code == 0 || !strings.Contains(res.err, "is no block device") || !strings.Contains(res.err, "losetup") {
		t.Errorf("a file: %+v", res)
	}
	if res := r.run("lun", "device", path+"-not", "x"); res.code == 0 {
		t.Errorf("nothing: %+v", res)
	}
}
