package csi

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/export/loop"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// Between the look for a disk's device and its detach the device went away, and its number became another disk's.
func TestReleaseSparesAnotherDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: it makes loop devices")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip("this machine has no loop driver")
	}
	for name, autoClear := range map[string]bool{"stays": false, "autoclear": true} {
		t.Run(name, func(t *testing.T) {
			f, err := os.Create(filepath.Join(t.TempDir(), "another"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := f.Truncate(1 << 20); err != nil {
				t.Fatal(err)
			}
			another, err := loop.Attach(f, loop.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := another.Detach(); err != nil {
					t.Error(err)
				}
				if err := loop.WaitReleased(t.Context(), another.Number, f.Name()); err != nil {
					t.Error(err)
				}
			}()
			v, id := Devices{Node: "node-a"}, host.DiskID("gone")
			stale := loop.Attached{Number: another.Number, Path: another.Path(), Backing: "/" + v.fileName(id), AutoClear: autoClear}
			if err := v.release(t.Context(), id, stale); err != nil {
				t.Error(err)
			}
			all, err := loop.List()
			i := slices.IndexFunc(all, func(a loop.Attached) bool { return a.Number == another.Number })
			// A detach while this test has it open would show as autoclear.
			if err != nil || i < 0 || all[i].Backing != f.Name() || all[i].AutoClear {
				t.Errorf("the other disk's device was detached: %+v, %v", all, err)
			}
		})
	}
}
