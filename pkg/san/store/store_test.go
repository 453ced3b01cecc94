package store_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx/sim"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/store"
)

// TestFailedWriteLeavesNoTail: a write behind the end that failed in the middle shows nowhere when the file grows later.
func TestFailedWriteLeavesNoTail(t *testing.T) {
	fs := sim.New(sim.Options{})
	s := formatted(t, fs.Root(), 8<<20, small)
	write(t, s.Root(), "f", []byte("begin"), 0)
	f, err := s.Root().Open("f", fsx.ReadWrite)
	must(t, err)
	defer f.Close()
	fs.Record()
	fs.FailAt(0, unix.EIO) // half of it is stored
	if _, err := f.WriteAt(bytes.Repeat([]byte("x"), 8192), 4096); err == nil {
		t.Fatal("the write did not fail")
	}
	fs.Heal()
	must(t, f.Truncate(16384))
	p := make([]byte, 16384)
	_, err = f.ReadAt(p, 0)
	must(t, err)
	if !bytes.Equal(p, append([]byte("begin"), make([]byte, 16384-5)...)) {
		t.Error("what the failed write left is in the file")
	}
}

// TestFull: a store that is full says so, and has room again when something was removed, without a sync in between.
func TestFull(t *testing.T) {
	s := onSim(t, 4<<20, small)
	_, free, err := s.Root().Space()
	must(t, err)
	f, err := s.Root().Open("big", fsx.ReadWrite|fsx.Create)
	must(t, err)
	must(t, f.Allocate(0, free))
	g, err := s.Root().Open("more", fsx.ReadWrite|fsx.Create)
	must(t, err)
	_, full := g.WriteAt([]byte("x"), 0)
	if !errors.Is(full, fault.NoSpace) || !errors.Is(full, unix.ENOSPC) {
		t.Errorf("write to a full store: %v", full)
	}
	must(t, f.Close(), s.Root().Remove("big"))
	if _, err := g.WriteAt([]byte("x"), 0); err != nil {
		t.Errorf("after the removal: %v", err)
	}
	must(t, g.Close(), s.Close())
}

// TestCatalogueFull: names are refused before the catalogue is too large for its area, and what is there can be removed.
func TestCatalogueFull(t *testing.T) {
	s := onSim(t, 8<<20, store.FormatOptions{ExtentSize: 4096, AreaSize: 16 << 10})
	var err error
	n := 0
	for ; err == nil; n++ {
		err = s.Root().Mkdir(fmt.Sprintf("a-name-that-is-long-%d", n))
	}
	if !errors.Is(err, fault.Exhausted) || n < 100 {
		t.Fatalf("after %d: %v", n, err)
	}
	must(t, s.Root().Sync(), s.Root().Remove("a-name-that-is-long-0"), s.Root().Mkdir("b"), s.Close())
}

// TestGroupCommit: syncs at one time share commits, and each is kept.
func TestGroupCommit(t *testing.T) {
	fs := sim.New(sim.Options{})
	s := formatted(t, fs.Root(), 32<<20, small)
	before := s.Info().Generation
	var wg sync.WaitGroup
	const callers, each = 16, 20
	for c := range callers {
		wg.Go(func() {
			for i := range each {
				name := fmt.Sprintf("%d-%d", c, i)
				f, err := s.Root().Open(name, fsx.ReadWrite|fsx.Create)
				if err != nil {
					t.Error(err)
					return
				}
				_, err = f.WriteAt([]byte(name), 0)
				if err := errors.Join(err, f.Datasync(), f.Close()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d syncs, %d commits", callers*each, s.Info().Generation-before)
	must(t, s.Abandon())
	again, err := openIn(fs)
	must(t, err)
	names, err := again.Root().List()
	must(t, err)
	if len(names) != callers*each {
		t.Errorf("%d files are there", len(names))
	}
	content, _, _ := foundIn(again.Root(), names)
	for name, p := range content {
		if string(p) != name {
			t.Errorf("%s holds %q", name, p)
		}
	}
}

func foundIn(d fsx.Dir, names []string) (map[string][]byte, int, error) {
	out := map[string][]byte{}
	for _, name := range names {
		f, err := d.Open(name, fsx.ReadOnly)
		if err != nil {
			return nil, 0, err
		}
		info, _ := f.Stat()
		p := make([]byte, info.Size)
		if _, err := f.ReadAt(p, 0); err != nil && err != io.EOF {
			return nil, 0, err
		}
		out[name] = p
		f.Close()
	}
	return out, len(out), nil
}

// TestSecondOwner: on one machine the lock refuses it; one that comes by another path is noticed before it can do harm, and
// the first owner commits nothing any more.
func TestSecondOwner(t *testing.T) {
	fs := sim.New(sim.Options{})
	s := formatted(t, fs.Root(), 8<<20, small)
	if _, err := openIn(fs); !errors.Is(err, fault.InUse) {
		t.Errorf("second owner: %v", err)
	}
	lun, err := lunIn(fs)
	must(t, err)
	other, err := store.Open(unlocked{lun}, store.Options{})
	must(t, err)
	f, err := s.Root().Open("ours", fsx.ReadWrite|fsx.Create)
	must(t, err)
	defer f.Close()
	_, err = f.WriteAt([]byte("x"), 0)
	must(t, err)
	if err := f.Datasync(); !errors.Is(err, fault.Poisoned) { // the other one has only opened it
		t.Errorf("the first owner's commit: %v", err)
	}
	write(t, other.Root(), "theirs", []byte("x"), 0)
	must(t, other.Root().Sync())
	if _, err := f.WriteAt([]byte("y"), 0); !errors.Is(err, fault.Poisoned) {
		t.Errorf("the first owner's write in place: %v", err)
	}
	if err := s.Root().Mkdir("d"); !errors.Is(err, fault.Poisoned) {
		t.Errorf("and after it: %v", err)
	}
	names, err := other.Root().List()
	must(t, err, other.Close())
	if len(names) != 1 || names[0] != "theirs" {
		t.Errorf("the second owner has %v", names)
	}
}

type unlocked struct{ fsx.File }

func (unlocked) Lock(fsx.LockMode) error { return nil }

// TestGrants: what is freed while a grant is out is used again only after its end, also after the owner's death.
func TestGrants(t *testing.T) {
	fs := sim.New(sim.Options{})
	s := formatted(t, fs.Root(), 4<<20, small)
	f, err := s.Root().Open("f", fsx.ReadWrite|fsx.Create)
	must(t, err)
	_, free, _ := s.Root().Space()
	must(t, f.Allocate(0, free), f.Datasync(), f.Close())
	g, err := s.AddGrant([]byte("to somebody"))
	must(t, err)
	must(t, s.Root().Remove("f"), s.Root().Sync(), s.Abandon())
	s, err = openIn(fs)
	must(t, err)
	if all := s.Grants(); len(all) != 1 || all[0].ID != g.ID || string(all[0].Data) != "to somebody" || all[0].Generation != g.Generation {
		t.Fatalf("grants %+v, want %+v", all, g)
	}
	h, err := s.Root().Open("h", fsx.ReadWrite|fsx.Create)
	must(t, err)
	if _, err := h.WriteAt([]byte("x"), 0); !errors.Is(err, fault.NoSpace) {
		t.Errorf("an extent that a grant names was given away: %v", err)
	}
	if i := s.Info(); i.Held != free || i.Grants != 1 {
		t.Errorf("%+v", i)
	}
	must(t, s.EndGrant(g.ID))
	_, err = h.WriteAt([]byte("x"), 0)
	must(t, err, h.Close(), s.Close())
}

// TestWrongLUN: each is named.
func TestWrongLUN(t *testing.T) {
	root := sim.New(sim.Options{}).Root()
	lun := lunOf(t, root, 4<<20)
	_, err := store.Open(lun, store.Options{})
	if !errors.Is(err, fault.NotFound) {
		t.Errorf("empty: %v", err)
	}
	_, err = store.Format(lun, small)
	must(t, err)
	if _, err := store.Format(lun, small); !errors.Is(err, fault.Exists) {
		t.Errorf("format again: %v", err)
	}
	must(t, lun.Truncate(4<<20-4096))
	if _, err := store.Open(lun, store.Options{}); !errors.Is(err, fault.Damaged) {
		t.Errorf("shrunk: %v", err)
	}
	must(t, lun.Truncate(8192))
	if _, err := store.Open(lun, store.Options{}); !errors.Is(err, fault.Damaged) {
		t.Errorf("shrunk to nearly nothing: %v", err)
	}
	if _, err := store.Format(lun, small); !errors.Is(err, fault.OutOfRange) {
		t.Errorf("too small to format: %v", err)
	}
	if _, err := store.Format(lunOf(t, root, 4<<20), store.FormatOptions{ExtentSize: 5000}); !errors.Is(err, fault.OutOfRange) {
		t.Errorf("odd extents: %v", err)
	}
}

// TestLostSuperblock: each copy stands in for the other; a lost catalogue is said, and the older one is not taken.
func TestLostSuperblock(t *testing.T) {
	for _, c := range []struct {
		name  string
		at    []int64
		notes bool
		err   error
	}{
		{"the first", []int64{4096}, true, nil}, {"the copy", []int64{8<<20 - 4096}, true, nil},
		{"both", []int64{4096, 8<<20 - 4096}, false, fault.NotFound}, {"a catalogue", []int64{1<<20 + 64<<10}, false, fault.Damaged},
	} {
		t.Run(c.name, func(t *testing.T) {
			fs := sim.New(sim.Options{})
			s := formatted(t, fs.Root(), 8<<20, small)
			write(t, s.Root(), "f", []byte("x"), 0)
			must(t, s.Close()) // generation 2, area 1
			lun, err := lunIn(fs)
			must(t, err)
			for _, at := range c.at {
				_, err := lun.WriteAt(make([]byte, 512), at)
				must(t, err)
			}
			r, checkErr := store.Check(lun)
			if (len(r.Notes) > 0 && checkErr == nil) != (c.notes || c.err == fault.Damaged) || (len(r.Problems) > 0) != (c.err == fault.Damaged) {
				t.Errorf("check: %+v, %v", r, checkErr)
			}
			s, err = store.Open(lun, store.Options{})
			if !errors.Is(err, c.err) && (err != nil || c.err != nil) {
				t.Fatalf("open: %v", err)
			}
			if err == nil {
				names, err := s.Root().List()
				must(t, err)
				if len(names) != 1 {
					t.Errorf("%v", names)
				}
			}
		})
	}
}
