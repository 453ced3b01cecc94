package volume_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx/sim"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
	"github.com/vmdk-csi/vmdk-csi/pkg/volume"
)

// past is what a datastore must hold: the contents of disks and snapshots.
type past struct {
	disks map[string][]byte // by id
	snaps map[string]struct {
		disk string
		data []byte
	}
}

func (p *past) snap(id, disk string, data []byte) {
	p.snaps[id] = struct {
		disk string
		data []byte
	}{disk, slices.Clone(data)}
}

func (p *past) clone() *past {
	return &past{disks: maps.Clone(p.disks), snaps: maps.Clone(p.snaps)}
}

// The disks and snapshots of every case: x has snapshots s and t and content above; lone has none; c is a clone of s.
var (
	xID, loneID, cID = host.DiskID("x"), host.DiskID("lone"), host.DiskID("c")
	sID, tID         = host.SnapshotID("s"), host.SnapshotID("t")
)

// family makes the datastore that the cases begin with.
func family(t *testing.T) (*sim.FS, *past) {
	t.Helper()
	fs := sim.New(sim.Options{})
	w, err := newWorld(fs.Root(), "a", "1", volume.VMDK{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.store.Close()
	p := (&past{disks: map[string][]byte{}}).init()
	data := pattern(mib, 1)
	w.disk(t, "x", host.MonolithicFlat, data)
	write := func(off, n int, seed byte) {
		copy(data[off:], pattern(n, seed))
		s := w.mustAttach(t, xID)
		if _, err := s.WriteAt(data[off:off+n], int64(off)); err != nil {
			t.Fatal(err)
		}
		w.mustDetach(t, xID, s)
	}
	w.snapshot(t, xID, "s", nil)
	p.snap(sID, xID, data)
	c, err := w.v.Create(t.Context(), host.DiskSpec{Name: "c", Size: mib, Source: &host.Source{Snapshot: sID}})
	w.must(t, err)
	p.disks[c.ID] = slices.Clone(data)
	write(100_000, 200_000, 2)
	w.snapshot(t, xID, "t", nil)
	p.snap(tID, xID, data)
	write(250_000, 300_000, 3)
	p.disks[xID] = data
	p.disks[loneID] = pattern(mib, 7)
	w.disk(t, "lone", host.TwoGbMaxExtentSparse, p.disks[loneID])
	return fs, p
}

func (p *past) init() *past {
	p.snaps = map[string]struct {
		disk string
		data []byte
	}{}
	return p
}

// deed is an operation that is made to fail.
type deed struct {
	name     string
	attached string // id of the disk that is attached meanwhile, "" for none
	prepare  func(w *world, p *past) error
	run      func(w *world, s volume.Server) error
	after    func(p *past) // what it changes
}

func newDisk(name string, src *host.Source, mode host.CloneMode) host.DiskSpec {
	return host.DiskSpec{Name: name, Size: mib, Source: src, CloneMode: mode}
}

func snapshotOf(id string) func(*world, volume.Server) error {
	return func(w *world, s volume.Server) error {
		_, err := w.v.Snapshot(context.Background(), host.SnapshotSpec{Name: "new", Disk: id}, time.Time{}, s)
		return err
	}
}

func made(src host.Source, mode host.CloneMode) func(*world, volume.Server) error {
	return func(w *world, s volume.Server) error {
		_, err := w.v.CreateFrom(context.Background(), newDisk("new", &src, mode), s)
		return err
	}
}

func merged(id string, dir chain.Direction) func(*world, volume.Server) error {
	return func(w *world, s volume.Server) error {
		_, err := w.v.Consolidate(context.Background(), id, volume.ConsolidateOptions{Direction: dir}, s)
		return err
	}
}

func without(snaps ...string) func(*world, *past) error {
	return func(w *world, p *past) error {
		var errs []error
		for _, id := range snaps {
			errs = append(errs, w.v.DeleteSnapshot(context.Background(), id))
			delete(p.snaps, id)
		}
		return errors.Join(errs...)
	}
}

func deeds() []deed {
	newID := host.DiskID("new")
	newSnap := func(id string) func(*past) {
		return func(p *past) { p.snap(host.SnapshotID("new"), id, p.disks[id]) }
	}
	restored := func(p *past) { p.disks[newID] = p.snaps[sID].data }
	cloned := func(p *past) { p.disks[newID] = p.disks[xID] }
	deleteSnap := func(id string) func(*world, volume.Server) error {
		return func(w *world, _ volume.Server) error { return w.v.DeleteSnapshot(context.Background(), id) }
	}
	gone := func(id string) func(*past) { return func(p *past) { delete(p.snaps, id) } }
	deleteDisk := func(id string) func(*world, volume.Server) error {
		return func(w *world, _ volume.Server) error { return w.v.Delete(context.Background(), id) }
	}
	noClone := func(w *world, p *past) error {
		delete(p.disks, cID)
		return errors.Join(w.v.Delete(context.Background(), cID), without(sID)(w, p))
	}
	return []deed{
		{name: "snapshot", run: snapshotOf(xID), after: newSnap(xID)},
		{name: "snapshot attached", attached: xID, run: snapshotOf(xID), after: newSnap(xID)},
		{name: "restore", run: made(host.Source{Snapshot: sID}, host.CloneLinked), after: restored},
		{name: "restore attached", attached: xID, run: made(host.Source{Snapshot: sID}, host.CloneLinked), after: restored},
		{name: "restore full", run: made(host.Source{Snapshot: sID}, host.CloneFull), after: restored},
		{name: "clone", run: made(host.Source{Disk: xID}, host.CloneLinked), after: cloned},
		{name: "clone attached", attached: xID, run: made(host.Source{Disk: xID}, host.CloneLinked), after: cloned},
		{name: "delete snapshot", run: deleteSnap(sID), after: gone(sID)},
		{name: "delete snapshot attached", attached: xID, run: deleteSnap(tID), after: gone(tID)},
		{name: "retire", run: deleteDisk(xID), after: func(p *past) { delete(p.disks, xID) }},
		{name: "last of a retired disk", prepare: func(w *world, p *past) error {
			delete(p.disks, xID)
			return errors.Join(without(tID)(w, p), w.v.Delete(context.Background(), xID))
		}, run: deleteSnap(sID), after: gone(sID)},
		{name: "expand frozen", prepare: func(w *world, p *past) error {
			newSnap(loneID)(p)
			return snapshotOf(loneID)(w, nil)
		}, run: func(w *world, _ volume.Server) error {
			_, err := w.v.Expand(context.Background(), loneID, 2*mib, nil)
			return err
		}, after: func(p *past) { p.disks[loneID] = append(slices.Clone(p.disks[loneID]), make([]byte, mib)...) }},
		{name: "merge down", prepare: noClone, run: merged(xID, chain.Down)},
		{name: "merge up", prepare: noClone, run: merged(xID, chain.Up)},
		{name: "merge head down", prepare: without(tID), run: merged(xID, chain.Down)},
		{name: "merge head up", prepare: without(tID), run: merged(xID, chain.Up)},
		{name: "merge attached down", prepare: noClone, attached: xID, run: merged(xID, chain.Down)},
		{name: "merge head attached down", prepare: without(tID), attached: xID, run: merged(xID, chain.Down)},
		{name: "merge head attached up", prepare: without(tID), attached: xID, run: merged(xID, chain.Up)},
		{name: "flatten", run: func(w *world, _ volume.Server) error {
			_, err := w.v.Flatten(context.Background(), cID, nil)
			return err
		}},
	}
}

// TestEveryOperationFails makes each file operation of each deed fail once, in one of three ways that change with the seed, and
// then repeats the deed, as another process does: everything holds what it held, the deed succeeds, and after everything is
// deleted nothing is left.
func TestEveryOperationFails(t *testing.T) {
	_, seed := seeded(t)
	base, was := family(t)
	ways := []struct {
		err  error
		late bool // it has its effect, and the answer is lost
	}{{unix.EIO, false}, {unix.ENOSPC, false}, {unix.EIO, true}}
	for _, d := range deeds() {
		t.Run(d.name, func(t *testing.T) {
			fs, p := base.Copy(), was.clone()
			if d.prepare != nil {
				w, err := newWorld(fs.Root(), "a", "1", volume.VMDK{})
				if err = errors.Join(err, d.prepare(w, p)); err != nil {
					t.Fatal(err)
				}
				w.store.Close()
			}
			clean := &failure{deed: d, fs: fs.Copy(), past: p}
			if err := clean.try(-1, nil, false); err != nil {
				t.Fatalf("without a failure: %v", err)
			}
			if clean.ops < 5 {
				t.Fatalf("%d operations: nothing was made to fail", clean.ops)
			}
			step := 1
			if testing.Short() {
				step = 31 // the crash suite does all
			}
			failed := 0
			for n := int(seed % uint64(step)); n < clean.ops; n += step {
				how := ways[(uint64(n/step)+seed)%uint64(len(ways))]
				f := &failure{deed: d, fs: fs.Copy(), past: p}
				if err := f.try(n, how.err, how.late); err != nil {
					t.Errorf("operation %d of %d fails with %v, late=%v: %v", n, clean.ops, how.err, how.late, err)
					if failed++; failed > 5 {
						t.FailNow()
					}
				}
			}
		})
	}
}

// failure is one run of a deed.
type failure struct {
	deed
	fs   *sim.FS
	past *past
	ops  int
}

// try runs the deed with operation n failing, and then does it again.
func (f *failure) try(n int, err error, late bool) error {
	w, werr := newWorld(f.fs.Root(), "a", "1", volume.VMDK{})
	if werr != nil {
		return werr
	}
	first := f.round(w, func() {
		f.fs.Record() // counts from here
		switch {
		case n < 0:
		case late:
			f.fs.FailAfter(n, err)
		default:
			f.fs.FailAt(n, err)
		}
	})
	w.store.Close()
	f.fs.Heal()
	if n < 0 && first != nil {
		return first
	}
	if w, werr = newWorld(f.fs.Root(), "a", "1", volume.VMDK{}); werr != nil {
		return werr
	}
	defer w.store.Close()
	if err := f.settled(w, f.past, first == nil); err != nil {
		return fmt.Errorf("after it failed with %v: %w", first, err)
	}
	if err := f.round(w, func() {}); err != nil {
		return fmt.Errorf("again, after it failed with %v: %w", first, err)
	}
	if err := f.settled(w, f.past, true); err != nil {
		return fmt.Errorf("after the second time, the first failed with %v: %w", first, err)
	}
	return fell(w)
}

// round does the deed, with the disk attached that it wants attached; failures begin when begin was called.
func (f *failure) round(w *world, begin func()) error {
	var s *served
	var server volume.Server
	var err error
	if f.attached != "" {
		if s, err = w.attach(f.attached); err != nil {
			return fmt.Errorf("attach: %w", err)
		}
		server = s
	}
	begin()
	err = f.run(w, server)
	f.ops = f.fs.Ops()
	f.fs.Heal()
	if s != nil {
		derr := w.detach(f.attached, s)
		if !errors.Is(derr, fault.Poisoned) || err == nil {
			err = errors.Join(err, derr)
		}
	}
	return err
}

// settled opens and closes every disk, as its next user does, and compares all contents. done says that the deed was.
func (f *failure) settled(w *world, p *past, done bool) error {
	if done && f.after != nil {
		p = p.clone()
		f.after(p)
	}
	for id, want := range p.disks {
		s, err := w.attach(id)
		if errors.Is(err, fault.NotFound) && !done && f.name == "retire" {
			continue
		}
		if err == nil {
			err = w.detach(id, s)
		}
		if err != nil {
			return fmt.Errorf("disk %s: %w", id, err)
		}
		got, err := w.content(id, "")
		if err == nil && !done && len(got) > len(want) {
			got = got[:len(want)]
		}
		if err == nil {
			err = same(got, want, id)
		}
		if err != nil {
			return err
		}
	}
	for id, s := range p.snaps {
		_, err := w.v.GetSnapshot(context.Background(), id)
		if errors.Is(err, fault.NotFound) && !done {
			continue
		}
		if err == nil {
			err = w.holds(s.disk, id, s.data)
		}
		if err != nil {
			return fmt.Errorf("snapshot %s: %w", id, err)
		}
	}
	return nil
}

// fell deletes everything, and says what is left.
func fell(w *world) error {
	var errs []error
	for _, name := range []string{"c", "x", "new", "lone"} {
		errs = append(errs, w.v.Delete(context.Background(), host.DiskID(name)))
	}
	for _, name := range []string{"t", "new", "s"} {
		errs = append(errs, w.v.DeleteSnapshot(context.Background(), host.SnapshotID(name)))
	}
	left, err := w.left()
	if left != "" {
		err = errors.Join(err, fmt.Errorf("left: %s", left))
	}
	return errors.Join(append(errs, err)...)
}
