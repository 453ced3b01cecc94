package volume_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/datastore"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
	"github.com/vmdk-csi/vmdk-csi/pkg/volume"
)

// chainOf makes a disk with n links, each of which has some content of its own, and returns the content at each.
func chainOf(t *testing.T, w *world, name string, n int) (host.Disk, [][]byte) {
	t.Helper()
	data := pattern(4*mib, 1)
	d := w.disk(t, name, host.MonolithicFlat, data)
	past := [][]byte{slices.Clone(data)}
	for i := 1; i < n; i++ {
		w.snapshot(t, d.ID, fmt.Sprint(name, i), nil)
		off := i % 3 * 1_200_000
		part := data[off:min(off+2_500_000, len(data))] // more than one piece of a merge
		copy(part, pattern(len(part), byte(i)))
		w.writeAt(t, d.ID, part, int64(off))
		past = append(past, slices.Clone(data))
	}
	return d, past
}

func (w *world) consolidate(t *testing.T, id string, o volume.ConsolidateOptions, s *served) volume.ConsolidateResult {
	t.Helper()
	var server volume.Server
	if s != nil {
		server = s
	}
	res, err := w.v.Consolidate(t.Context(), id, o, server)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func (w *world) manifestOf(t *testing.T, id string) datastore.Manifest {
	t.Helper()
	m, err := w.manifest(id)
	if err != nil || m == nil {
		t.Fatalf("disk %s: %v", id, err)
	}
	return *m
}

func TestConsolidateTakesTheCheaperWay(t *testing.T) {
	for _, attached := range []bool{false, true} {
		t.Run(fmt.Sprintf("attached=%v", attached), func(t *testing.T) {
			w, _ := realWorld(t)
			data := pattern(2*mib, 1)
			d := w.disk(t, "x", host.TwoGbMaxExtentSparse, data)
			p := w.snapshot(t, d.ID, "s", nil)
			copy(data[100_000:], pattern(10, 9))
			s := w.mustAttach(t, d.ID)
			if _, err := s.WriteAt(data[100_000:100_010], 100_000); err != nil {
				t.Fatal(err)
			}
			if !attached {
				w.mustDetach(t, d.ID, s)
				s = nil
			}
			w.must(t, w.v.DeleteSnapshot(t.Context(), p.ID))
			todo, err := w.v.Unneeded(d.ID)
			if err != nil || todo == nil || todo.Links != 1 || todo.Reason != "" {
				t.Fatalf("%+v %v", todo, err)
			}
			var most int64
			res := w.consolidate(t, d.ID, volume.ConsolidateOptions{Progress: func(_, total int64) { most = max(most, total) }}, s)
			if !res.Merged || res.Freed <= 0 || most == 0 || most > 128<<10 {
				t.Fatalf("%+v, %d bytes copied", res, most)
			}
			m := w.manifestOf(t, d.ID)
			if len(m.Links) != 1 || m.Links[0].Descriptor != "disk.vmdk" || m.Merge != nil || m.Behind != "" || m.Released == attached {
				t.Fatalf("%+v", m)
			}
			if res = w.consolidate(t, d.ID, volume.ConsolidateOptions{}, s); res.Merged || res.Waits != "" {
				t.Fatalf("%+v", res)
			}
			if todo, err = w.v.Unneeded(d.ID); err != nil || todo != nil {
				t.Fatalf("%+v %v", todo, err)
			}
			if s != nil {
				w.mustDetach(t, d.ID, s)
			}
			w.must(t, w.holds(d.ID, "", data))
			if files := filesOf(t, w, d.ID); len(files) != 5 { // record, two manifests, descriptor, extent
				t.Errorf("files that are not needed are kept: %v", files)
			}
		})
	}
}

func filesOf(t *testing.T, w *world, id string) []string {
	t.Helper()
	d, err := w.dir(id)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	names, err := d.List()
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// In either direction the link that stays has what both had; what ended at the upper one ends there.
func TestConsolidateDirections(t *testing.T) {
	for _, dir := range []chain.Direction{chain.Down, chain.Up} {
		for gone := 1; gone < 4; gone++ {
			t.Run(fmt.Sprintf("%s/%d", dir, gone), func(t *testing.T) {
				w, _ := realWorld(t)
				d, past := chainOf(t, w, "x", 4)
				w.must(t, w.v.DeleteSnapshot(t.Context(), host.SnapshotID(fmt.Sprint("x", gone))))
				if res := w.consolidate(t, d.ID, volume.ConsolidateOptions{Direction: dir}, nil); !res.Merged {
					t.Fatalf("%+v", res)
				}
				m := w.manifestOf(t, d.ID)
				if len(m.Links) != 3 || !m.Released {
					t.Fatalf("%+v", m)
				}
				w.must(t, w.holds(d.ID, "", past[3]))
				for i := 1; i < 4; i++ {
					if i != gone {
						w.must(t, w.holds(d.ID, host.SnapshotID(fmt.Sprint("x", i)), past[i-1]))
					}
				}
				w.mustDetach(t, d.ID, w.mustAttach(t, d.ID))
			})
		}
	}
}

// Nothing goes into an extent that another disk has, and the disk that has it keeps its content.
func TestConsolidateLeavesSharedLinksAlone(t *testing.T) {
	w, _ := realWorld(t)
	d, past := chainOf(t, w, "x", 3)
	c, err := w.v.Create(t.Context(), host.DiskSpec{Name: "c", Size: d.Size, Source: &host.Source{Snapshot: host.SnapshotID("x1")}})
	w.must(t, err)
	for _, s := range []string{"x1", "x2"} {
		w.must(t, w.v.DeleteSnapshot(t.Context(), host.SnapshotID(s)))
	}
	// The base is shared: the boundary above it waits, the next one does not.
	if res := w.consolidate(t, d.ID, volume.ConsolidateOptions{}, nil); !res.Merged {
		t.Fatalf("%+v", res)
	}
	before := w.manifestOf(t, d.ID)
	if res := w.consolidate(t, d.ID, volume.ConsolidateOptions{}, nil); res.Merged || res.Waits == "" {
		t.Fatalf("%+v", res)
	}
	if now := w.manifestOf(t, d.ID); now.Epoch != before.Epoch {
		t.Errorf("a merge that waits took epoch %d", now.Epoch)
	}
	for _, id := range []string{d.ID, c.ID} {
		todo, err := w.v.Unneeded(id)
		if err != nil || todo == nil || todo.Reason == "" {
			t.Fatalf("%+v %v", todo, err)
		}
	}
	w.must(t, w.holds(c.ID, "", past[0]))
	w.must(t, w.holds(d.ID, "", past[2]))
	w.must(t, w.v.Delete(t.Context(), c.ID))
	if res := w.consolidate(t, d.ID, volume.ConsolidateOptions{}, nil); !res.Merged {
		t.Fatalf("after the other disk is gone: %+v", res)
	}
	w.must(t, w.holds(d.ID, "", past[2]))
}

// The head of a disk that a clone was made of is the clone's parent: it is not emptied into the link below.
func TestConsolidateKeepsASharedHead(t *testing.T) {
	w, _ := realWorld(t)
	d, past := chainOf(t, w, "x", 2)
	c, err := w.v.Create(t.Context(), host.DiskSpec{Name: "c", Size: d.Size, Source: &host.Source{Disk: d.ID}})
	w.must(t, err)
	w.must(t, w.v.DeleteSnapshot(t.Context(), host.SnapshotID("x1")))
	for _, dir := range []chain.Direction{"", chain.Down, chain.Up} {
		if res := w.consolidate(t, d.ID, volume.ConsolidateOptions{Direction: dir}, nil); res.Merged {
			t.Fatalf("%s: %+v", dir, res)
		}
	}
	w.must(t, w.holds(c.ID, "", past[1]))
}

// A long chain is shortened even where its base is shared, which gives nothing back.
func TestConsolidateShortensALongChain(t *testing.T) {
	w, _ := realWorld(t)
	d, past := chainOf(t, w, "x", 10)
	last := past[len(past)-1]
	c, err := w.v.Create(t.Context(), host.DiskSpec{Name: "c", Size: d.Size, Source: &host.Source{Snapshot: host.SnapshotID("x1")}})
	w.must(t, err)
	w.must(t, w.v.DeleteSnapshot(t.Context(), host.SnapshotID("x1")))
	if res := w.consolidate(t, d.ID, volume.ConsolidateOptions{}, nil); !res.Merged || res.Freed != 0 {
		t.Fatalf("%+v", res)
	}
	w.must(t, w.holds(d.ID, "", last))
	w.must(t, w.holds(c.ID, "", past[0]))
}

var errEnough = errors.New("enough")

// A merge that is cancelled leaves the disk released, without an intent, and is taken up again.
func TestConsolidateIsCancelled(t *testing.T) {
	for _, attached := range []bool{false, true} {
		for _, dir := range []chain.Direction{chain.Down, chain.Up} {
			for _, lower := range []int{0, 1} {
				t.Run(fmt.Sprintf("attached=%v/%s/%d", attached, dir, lower), func(t *testing.T) {
					cancelled(t, attached, dir, lower)
				})
			}
		}
	}
}

func cancelled(t *testing.T, attached bool, dir chain.Direction, lower int) {
	w, _ := realWorld(t)
	d, past := chainOf(t, w, "x", 3)
	w.must(t, w.v.DeleteSnapshot(t.Context(), host.SnapshotID(fmt.Sprint("x", lower+1))))
	var s *served
	var server volume.Server
	if attached {
		s = w.mustAttach(t, d.ID)
		server = s
	}
	for pieces := range 2 { // each time one more is copied
		ctx, cancel := context.WithCancelCause(t.Context())
		left := pieces
		_, err := w.v.Consolidate(ctx, d.ID, volume.ConsolidateOptions{Direction: dir, Pace: func(ctx context.Context, _ int64) error {
			if left--; left < 0 {
				cancel(errEnough)
			}
			return context.Cause(ctx)
		}}, server)
		if err == nil {
			t.Fatalf("it was not cancelled after %d pieces", pieces)
		}
		m := w.manifestOf(t, d.ID)
		if m.Merge != nil || m.Behind != "" || len(m.Links) != 3 || m.Released == attached {
			t.Fatalf("after %v: %+v", err, m)
		}
		cancel(nil)
	}
	if s != nil {
		got := make([]byte, s.Size())
		if _, err := s.ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
		w.must(t, same(got, past[2], "the disk after a cancelled merge"))
	} else {
		w.must(t, w.holds(d.ID, "", past[2]))
	}
	// What comes in between works: a snapshot, a clone.
	w.snapshot(t, d.ID, "between", s)
	c, err := w.v.CreateFrom(t.Context(), host.DiskSpec{Name: "c", Size: d.Size, Source: &host.Source{Snapshot: host.SnapshotID("between")}}, server)
	w.must(t, err)
	w.must(t, w.holds(c.ID, "", past[2]))
	w.must(t, w.v.Delete(t.Context(), c.ID))
	if res := w.consolidate(t, d.ID, volume.ConsolidateOptions{}, s); !res.Merged {
		t.Fatalf("%+v", res)
	}
	if s != nil {
		w.mustDetach(t, d.ID, s)
	}
	w.must(t, w.holds(d.ID, "", past[2]))
}

// dead is a worker that dies in the middle of a merge.
type dead struct{ *served }

func (d dead) Merge(ctx context.Context, p chain.MergeParams) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	left := 1
	p.Pace = func(context.Context, int64) error {
		if left--; left < 0 {
			return d.Abandon()
		}
		return nil
	}
	if err := d.Chain.Merge(ctx, p); err == nil {
		return errors.New("it did not die")
	}
	return fault.New(fault.Unavailable, "", "the worker died")
}

// A worker that dies in the middle of a merge leaves the intent: who opens the disk next mends the links.
func TestConsolidateWhoseWorkerDies(t *testing.T) {
	for _, dir := range []chain.Direction{chain.Down, chain.Up} {
		for _, lower := range []int{0, 1} {
			t.Run(fmt.Sprintf("%s/%d", dir, lower), func(t *testing.T) {
				w, _ := realWorld(t)
				d, past := chainOf(t, w, "x", 3)
				w.must(t, w.v.DeleteSnapshot(t.Context(), host.SnapshotID(fmt.Sprint("x", lower+1))))
				s := w.mustAttach(t, d.ID)
				_, err := w.v.Consolidate(t.Context(), d.ID, volume.ConsolidateOptions{Direction: dir}, dead{s})
				wantKind(t, err, fault.Unavailable, "consolidate")
				if m := w.manifestOf(t, d.ID); m.Merge == nil || m.Released {
					t.Fatalf("%+v", m)
				}
				s.dir.Close()
				w.mustDetach(t, d.ID, w.mustAttach(t, d.ID))
				m := w.manifestOf(t, d.ID)
				if m.Merge != nil || !m.Released {
					t.Fatalf("%+v", m)
				}
				dir, err := w.dir(d.ID)
				w.must(t, err)
				defer dir.Close()
				for _, l := range m.Links {
					open, err := vmdk.Open(dir, l.Descriptor, vmdk.Options{})
					w.must(t, err)
					if open.Unclean() {
						t.Errorf("%s is not mended", l.Descriptor)
					}
					w.must(t, open.Close())
				}
				w.must(t, w.holds(d.ID, "", past[2]))
				if res := w.consolidate(t, d.ID, volume.ConsolidateOptions{}, nil); !res.Merged {
					t.Fatalf("%+v", res)
				}
				w.must(t, w.holds(d.ID, "", past[2]))
			})
		}
	}
}

// Links of a retired disk are merged like others.
func TestConsolidateRetired(t *testing.T) {
	w, _ := realWorld(t)
	d, past := chainOf(t, w, "x", 4)
	w.must(t, w.v.Delete(t.Context(), d.ID))
	w.must(t, w.v.DeleteSnapshot(t.Context(), host.SnapshotID("x1")))
	w.must(t, w.v.DeleteSnapshot(t.Context(), host.SnapshotID("x2")))
	for range 2 {
		if res := w.consolidate(t, d.ID, volume.ConsolidateOptions{}, nil); !res.Merged {
			t.Fatalf("%+v", res)
		}
	}
	if m := w.manifestOf(t, d.ID); len(m.Links) != 1 || !m.Retired || !m.Released {
		t.Fatalf("%+v", m)
	}
	w.must(t, w.holds(d.ID, host.SnapshotID("x3"), past[2]))
	c, err := w.v.Create(t.Context(), host.DiskSpec{Name: "c", Size: d.Size, Source: &host.Source{Snapshot: host.SnapshotID("x3")}})
	w.must(t, err)
	w.must(t, w.holds(c.ID, "", past[2]))
	w.must(t, w.v.DeleteSnapshot(t.Context(), host.SnapshotID("x3")))
	w.must(t, w.holds(c.ID, "", past[2]))
	w.must(t, w.v.Delete(t.Context(), c.ID))
	w.wantEmpty(t)
}

// A merge down into a smaller base makes VMware accept the chain.
func TestConsolidateCuresACapacityStep(t *testing.T) {
	for _, dir := range []chain.Direction{chain.Down, chain.Up} {
		w, _ := realWorld(t)
		d, past := chainOf(t, w, "x", 2)
		_, err := w.v.Expand(t.Context(), d.ID, 8*mib, nil)
		w.must(t, err)
		w.must(t, w.v.DeleteSnapshot(t.Context(), host.SnapshotID("x1")))
		if res := w.consolidate(t, d.ID, volume.ConsolidateOptions{Direction: dir}, nil); !res.Merged {
			t.Fatalf("%+v", res)
		}
		got, err := w.v.Get(t.Context(), d.ID)
		if err != nil || got.VMwareProblem != "" || len(got.Links) != 1 || got.Size != 8*mib {
			t.Fatalf("%s: %+v %v", dir, got, err)
		}
		w.must(t, w.holds(d.ID, "", append(slices.Clone(past[1]), make([]byte, 4*mib)...)))
	}
}
