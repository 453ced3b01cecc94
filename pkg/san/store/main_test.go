package store_test

import (
	"errors"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx/sim"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/store"
)

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// lunOf makes a LUN of n bytes in a directory; it stands for a block device.
func lunOf(t testing.TB, d fsx.Dir, n int64) fsx.File {
	t.Helper()
	f, err := d.Open("lun", fsx.ReadWrite|fsx.Create|fsx.Direct)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	must(t, f.Truncate(n))
	return f
}

// small is a store whose extents and areas are small, so that tests meet many.
var small = store.FormatOptions{ExtentSize: 64 << 10, AreaSize: 64 << 10}

func formatted(t testing.TB, d fsx.Dir, n int64, o store.FormatOptions) *store.Store {
	t.Helper()
	lun := lunOf(t, d, n)
	_, err := store.Format(lun, o)
	must(t, err)
	s, err := store.Open(lun, store.Options{})
	must(t, err)
	return s
}

func onSim(t testing.TB, n int64, o store.FormatOptions) *store.Store {
	return formatted(t, sim.New(sim.Options{}).Root(), n, o)
}

// write makes or changes a file.
func write(t testing.TB, d fsx.Dir, name string, p []byte, off int64) {
	t.Helper()
	f, err := d.Open(name, fsx.ReadWrite|fsx.Create)
	must(t, err)
	defer f.Close()
	_, err = f.WriteAt(p, off)
	must(t, err)
}
