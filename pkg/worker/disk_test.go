package worker

import (
	"context"
	"maps"
	"slices"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// sparseDisk is a directory with one sparse disk, and what a worker is told to open.
func sparseDisk(t *testing.T, size int64) OpenRequest {
	t.Helper()
	dir, err := fsx.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dir.Close() })
	p := vmdk.CreateParams{Capacity: size, Type: vmdk.TwoGbMaxExtentSparse}
	if _, err := vmdk.Create(t.Context(), dir, "disk.vmdk", p); err != nil {
		t.Fatal(err)
	}
	return OpenRequest{ID: "d1", Dir: dir, Pending: &chain.MemoryPending{}, Links: []chain.Ref{{Name: "disk.vmdk",
		Type: p.Type, ExtentNames: []string{"disk-s001.vmdk"}, Size: size}}}
}

func openDisk(t *testing.T, r OpenRequest) *chain.Chain {
	t.Helper()
	d, err := OpenChain(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	c := d.(*chain.Chain)
	t.Cleanup(func() { _ = c.Abandon() })
	return c
}

// die leaves a disk as a killed worker does.
func die(t *testing.T, c *chain.Chain) {
	t.Helper()
	if err := c.Abandon(); err != nil {
		t.Fatal(err)
	}
}

// A worker's sync failed and the worker was replaced. Its successor meets no failure of its own; closing the disk must
// leave the mark that makes the release check it.
func TestPoisonedDiskStaysUnclean(t *testing.T) {
	for _, poisoned := range []bool{false, true} {
		r := sparseDisk(t, 64<<20)
		first := openDisk(t, r)
		if _, err := first.WriteAt(make([]byte, 4096), 0); err != nil {
			t.Fatal(err)
		}
		die(t, first)
		r.Takeover = true
		g := &guard{Disk: openDisk(t, r), poison: func() {}, trouble: func(error) {}}
		g.poisoned.Store(poisoned)
		if err := g.Close(); poisoned != (fault.KindOf(err) == fault.Poisoned) {
			t.Errorf("poisoned %v: Close: %v", poisoned, err)
		}
		l, err := vmdk.Open(r.Dir, "disk.vmdk", vmdk.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if l.Unclean() != poisoned {
			t.Errorf("poisoned %v: afterwards unclean %v", poisoned, l.Unclean())
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A worker dies after it grew its disk into a second extent, and before anybody recorded that.
func TestTakeoverAfterSplitGrowth(t *testing.T) {
	r := sparseDisk(t, vmdk.MaxSparseExtent)
	first := openDisk(t, r)
	size := first.Size() + 10<<30
	if err := first.Grow(t.Context(), size); err != nil {
		t.Fatal(err)
	}
	die(t, first)
	if _, err := OpenChain(t.Context(), OpenRequest{Dir: r.Dir, Links: r.Links}); fault.KindOf(err) != fault.Damaged {
		t.Errorf("who does not take over must insist on what is recorded: %v", err)
	}
	r.Takeover = true
	if c := openDisk(t, r); c.Size() != size || len(c.Links()[0].Extents()) != 2 {
		t.Errorf("%d bytes in %d extents", c.Size(), len(c.Links()[0].Extents()))
	}
}

// touched is a directory that remembers which files were read.
type touched struct {
	fsx.Dir
	names map[string]bool
}

type touchedFile struct {
	fsx.File
	touch func()
}

func (d touched) Open(name string, flag fsx.Flag) (fsx.File, error) {
	f, err := d.Dir.Open(name, flag)
	if err != nil {
		return nil, err
	}
	return touchedFile{f, func() { d.names[name] = true }}, nil
}

func (f touchedFile) ReadAt(p []byte, off int64) (int, error) {
	f.touch()
	return f.File.ReadAt(p, off)
}

// Whoever opens a disk for writing first waits for the writes of a dead process, whether it knows of one or not.
func TestEveryWriterSettles(t *testing.T) {
	for _, c := range []struct {
		name     string
		readOnly bool
		takeover bool
		want     []string
	}{
		{"afresh", false, false, []string{"disk-s001.vmdk", "disk.vmdk"}},
		{"take-over", false, true, []string{"disk-s001.vmdk", "disk.vmdk"}},
		{"read-only", true, false, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := touched{sparseDisk(t, 1<<20).Dir, map[string]bool{}}
			var got []string
			opened := false
			w := &process{cfg: config{ReadOnly: c.readOnly}, p: Params{Open: func(context.Context, OpenRequest) (Disk, error) {
				got, opened = slices.Sorted(maps.Keys(d.names)), true
				return noDisk{}, nil
			}}}
			if err := w.open(t.Context(), d, ready{Takeover: c.takeover}); err != nil || !opened {
				t.Fatalf("opened %v: %v", opened, err)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("before the disk was opened %v were read, want %v", got, c.want)
			}
		})
	}
}

// solid is a disk on a file system that cannot punch holes.
type solid struct{ noDisk }

func (solid) Discard(int64, int64) error { return fault.New(fault.Unsupported, "", "no holes here") }

// What a disk cannot do at all is no trouble that an administrator should look at.
func TestUnsupportedIsNoTrouble(t *testing.T) {
	told := 0
	g := &guard{Disk: solid{}, poison: func() { t.Error("poisoned") }, trouble: func(error) { told++ }}
	if err := g.Discard(0, 512); fault.KindOf(err) != fault.Unsupported || told != 0 {
		t.Errorf("discard: %v, told %d times", err, told)
	}
	g.poison = func() {}
	if err := g.Flush(); err == nil || told != 1 {
		t.Errorf("flush: %v, told %d times", err, told)
	}
}
