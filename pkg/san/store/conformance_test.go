package store_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx/fsxtest"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx/sim"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/store"
)

func TestConformance(t *testing.T) {
	for name, o := range map[string]store.FormatOptions{
		"extents of 4 KiB": {ExtentSize: 4 << 10, AreaSize: 256 << 10}, "extents of 64 KiB": small, "as formatted by default": {},
	} {
		t.Run(name, func(t *testing.T) {
			fsxtest.Run(t, func(t *testing.T) fsx.Dir { return onSim(t, 256<<20, o).Root() })
		})
	}
}

// TestConformanceDirect: the LUN is a file that stands for a block device, open as one is: nothing goes through the page cache.
func TestConformanceDirect(t *testing.T) {
	fsxtest.Run(t, func(t *testing.T) fsx.Dir {
		path := filepath.Join(t.TempDir(), "lun")
		must(t, os.WriteFile(path, nil, 0o600), os.Truncate(path, 128<<20))
		lun, err := fsx.OpenDevice(path, fsx.ReadWrite|fsx.Direct)
		must(t, err)
		t.Cleanup(func() { lun.Close() })
		_, err = store.Format(lun, store.FormatOptions{})
		must(t, err)
		s, err := store.Open(lun, store.Options{})
		must(t, err)
		return s.Root()
	})
}

// TestConformanceReopened: what the checks leave is a store that its own check likes.
func TestConformanceReopened(t *testing.T) {
	for _, c := range fsxtest.Checks() {
		t.Run(c.Name, func(t *testing.T) {
			fs := sim.New(sim.Options{})
			s := formatted(t, fs.Root(), 64<<20, small)
			must(t, c.Run(s.Root()), s.Close())
			lun := lunOf(t, fs.Root(), 64<<20)
			s, err := store.Open(lun, store.Options{})
			must(t, err)
			before, err := s.Root().List()
			must(t, err, s.Close())
			s, err = store.Open(lun, store.Options{ReadOnly: true})
			must(t, err)
			after, err := s.Root().List()
			must(t, err)
			if len(before) != len(after) {
				t.Errorf("%v became %v", before, after)
			}
		})
	}
}
