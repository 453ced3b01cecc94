package volume_test

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx/sim"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/volume"
)

// A restored disk, and a clone, has the content of its source and goes its own way; so does the source.
func TestRestoreAndClone(t *testing.T) {
	needsQEMU(t)
	for _, typ := range diskTypes {
		for _, mode := range []host.CloneMode{host.CloneLinked, host.CloneFull} {
			for _, attached := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/attached=%v", typ, mode, attached), func(t *testing.T) {
					restoreAndClone(t, typ, mode, attached)
				})
			}
		}
	}
}

func restoreAndClone(t *testing.T, typ host.DiskType, mode host.CloneMode, attached bool) {
	w, path := realWorld(t)
	then := pattern(2*mib, 1)
	d := w.disk(t, "x", typ, then)
	w.snapshot(t, d.ID, "s", nil)
	now := slices.Clone(then)
	copy(now[300_000:], pattern(500_000, 9))
	w.write(t, d.ID, now)
	var server volume.Server
	var s *served
	if attached {
		s = w.mustAttach(t, d.ID)
		server = s
	}
	for _, c := range []struct {
		name string
		src  host.Source
		want []byte
		size int64
	}{
		{"restored", host.Source{Snapshot: host.SnapshotID("s")}, then, 2 * mib},
		{"larger", host.Source{Snapshot: host.SnapshotID("s")}, then, 3 * mib},
		{"cloned", host.Source{Disk: d.ID}, now, 2 * mib},
		{"cloned larger", host.Source{Disk: d.ID}, now, 5 * mib},
	} {
		spec := host.DiskSpec{Name: c.name, Size: c.size, Type: typ, Source: &c.src, CloneMode: mode}
		made, err := w.v.CreateFrom(t.Context(), spec, server)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if made.UUID == d.UUID || made.Size != c.size || made.Spec.Source == nil || *made.Spec.Source != c.src || made.Spec.CloneMode != mode {
			t.Fatalf("%s: %+v", c.name, made)
		}
		if step := c.size != 2*mib && mode == host.CloneLinked; (made.VMwareProblem != "") != step {
			t.Errorf("%s: VMware's problem: %q", c.name, made.VMwareProblem)
		}
		if mode == host.CloneFull && len(made.Links) != 1 {
			t.Errorf("%s: %d links", c.name, len(made.Links))
		}
		again, err := w.v.CreateFrom(t.Context(), spec, server)
		if err != nil || again.UUID != made.UUID {
			t.Fatalf("%s again: %+v %v", c.name, again, err)
		}
		want := append(slices.Clone(c.want), make([]byte, c.size-2*mib)...)
		w.must(t, w.holds(made.ID, "", want))
		qemuReads(t, filepath.Join(path, "volumes", made.ID, made.Links[len(made.Links)-1].Name), want)
		copy(want[100_000:], pattern(100_000, 77))
		w.write(t, made.ID, want)
		w.must(t, w.holds(made.ID, "", want))
	}
	if attached {
		w.mustDetach(t, d.ID, s)
	}
	w.must(t, w.holds(d.ID, "", now))
	w.must(t, w.holds(d.ID, host.SnapshotID("s"), then))
	copy(now[1_000_000:], pattern(500_000, 3))
	w.write(t, d.ID, now)
	w.must(t, w.holds(d.ID, "", now))
	if strings.Contains(place{path}.files(t), "disk-source") {
		t.Errorf("a full clone left its source's links: %s", place{path}.files(t))
	}
	for _, id := range []string{d.ID, host.DiskID("restored"), host.DiskID("larger"), host.DiskID("cloned"), host.DiskID("cloned larger")} {
		w.must(t, w.v.Delete(t.Context(), id))
	}
	w.must(t, w.v.DeleteSnapshot(t.Context(), host.SnapshotID("s")))
	w.wantEmpty(t)
}

func TestRestoreRefuses(t *testing.T) {
	w, path := realWorld(t)
	d := create(t, w.v, "x")
	p := w.snapshot(t, d.ID, "s", nil)
	retired := create(t, w.v, "retired")
	w.snapshot(t, retired.ID, "r", nil)
	w.must(t, w.v.Delete(t.Context(), retired.ID))
	held := create(t, w.v, "held")
	w.snapshot(t, held.ID, "h", nil)
	w.mustAttachElsewhere(t, path, held.ID)
	before, err := w.left()
	w.must(t, err)
	from := func(s host.Source) *host.Source { return &s }
	for _, c := range []struct {
		what string
		spec host.DiskSpec
		want fault.Kind
	}{
		{"no snapshot", host.DiskSpec{Source: from(host.Source{Snapshot: host.SnapshotID("none")})}, fault.NotFound},
		{"not an id", host.DiskSpec{Source: from(host.Source{Snapshot: "../names"})}, fault.NotFound},
		{"no disk", host.DiskSpec{Source: from(host.Source{Disk: host.DiskID("none")})}, fault.NotFound},
		{"itself", host.DiskSpec{Source: from(host.Source{Disk: host.DiskID("new")})}, fault.NotFound},
		{"a retired disk", host.DiskSpec{Source: from(host.Source{Disk: retired.ID})}, fault.NotFound},
		{"smaller", host.DiskSpec{Size: d.Size - mib, Source: from(host.Source{Snapshot: p.ID})}, fault.OutOfRange},
		{"smaller clone", host.DiskSpec{Size: d.Size - mib, Source: from(host.Source{Disk: d.ID})}, fault.OutOfRange},
		{"both", host.DiskSpec{Source: from(host.Source{Snapshot: p.ID, Disk: d.ID})}, fault.Invalid},
		{"neither", host.DiskSpec{Source: from(host.Source{})}, fault.Invalid},
		{"mode", host.DiskSpec{Source: from(host.Source{Disk: d.ID}), CloneMode: "half"}, fault.Invalid},
		{"of a disk attached elsewhere", host.DiskSpec{Source: from(host.Source{Disk: held.ID})}, fault.InUse},
		{"of its snapshot", host.DiskSpec{Source: from(host.Source{Snapshot: host.SnapshotID("h")})}, fault.InUse},
	} {
		c.spec.Name = "new"
		if c.spec.Size == 0 {
			c.spec.Size = d.Size
		}
		_, err := w.v.Create(t.Context(), c.spec)
		wantKind(t, err, c.want, c.what)
		if after, err := w.left(); err != nil || after != before {
			t.Fatalf("%s: left %s, before %s (%v)", c.what, after, before, err)
		}
	}
	good := host.DiskSpec{Name: "new", Size: d.Size, Source: from(host.Source{Snapshot: p.ID})}
	if _, err := w.v.Create(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	for what, spec := range map[string]host.DiskSpec{
		"no source": {Name: "new", Size: d.Size}, "another mode": {Name: "new", Size: d.Size, Source: good.Source, CloneMode: host.CloneFull},
		"another source":            {Name: "new", Size: d.Size, Source: from(host.Source{Disk: d.ID})},
		"the name of a retired one": {Name: "retired", Size: retired.Size},
	} {
		_, err := w.v.Create(t.Context(), spec)
		wantKind(t, err, fault.Exists, what)
	}
}

// Where a file can have no further name, links are copied. (Without any hard links there is no datastore: its commits are
// link(2).)
func TestRestoreWithoutHardLinks(t *testing.T) {
	w, err := newWorld(sim.New(sim.Options{MaxLinks: 2}).Root(), "a", "1", volume.VMDK{})
	w.must(t, err)
	defer w.store.Close()
	then := pattern(2*mib, 1)
	d := w.disk(t, "x", host.TwoGbMaxExtentSparse, then)
	p := w.snapshot(t, d.ID, "s", nil)
	for i := range 4 {
		made, err := w.v.Create(t.Context(), host.DiskSpec{Name: fmt.Sprint(i), Size: d.Size, Source: &host.Source{Snapshot: p.ID}})
		w.must(t, err)
		w.must(t, w.holds(made.ID, "", then))
	}
}

// Deleting in any order: snapshots of a deleted disk can be restored, disks restored from a deleted snapshot are whole.
func TestDeletionInAnyOrder(t *testing.T) {
	w, _ := realWorld(t)
	then := pattern(2*mib, 1)
	d := w.disk(t, "x", host.MonolithicFlat, then)
	p := w.snapshot(t, d.ID, "s", nil)
	later := pattern(2*mib, 2)
	w.write(t, d.ID, later)
	q := w.snapshot(t, d.ID, "later", nil)
	w.write(t, d.ID, pattern(2*mib, 3))
	for range 2 {
		w.must(t, w.v.Delete(t.Context(), d.ID))
	}
	got, err := w.v.Get(t.Context(), d.ID)
	if err != nil || got.Phase != host.Retired || len(got.Links) != 2 || len(got.Snapshots) != 2 {
		t.Fatalf("%+v %v", got, err)
	}
	if list, _, err := w.v.List(t.Context(), 0, ""); err != nil || len(list) != 0 {
		t.Fatalf("listed %+v %v", list, err)
	}
	_, err = w.v.OpenForAttach(t.Context(), d.ID, false)
	wantKind(t, err, fault.NotFound, "attach of a retired disk")
	_, err = w.v.Expand(t.Context(), d.ID, 8*mib, nil)
	wantKind(t, err, fault.NotFound, "expand of a retired disk")
	_, err = w.v.Flatten(t.Context(), d.ID, nil)
	wantKind(t, err, fault.NotFound, "flatten of a retired disk")
	made, err := w.v.Create(t.Context(), host.DiskSpec{Name: "restored", Size: d.Size, Source: &host.Source{Snapshot: p.ID}})
	w.must(t, err)
	w.must(t, w.v.DeleteSnapshot(t.Context(), q.ID))
	if got, err = w.v.Get(t.Context(), d.ID); err != nil || len(got.Links) != 1 {
		t.Fatalf("the link that nobody needs is kept: %+v %v", got, err)
	}
	w.must(t, w.holds(d.ID, p.ID, then))
	w.must(t, w.v.DeleteSnapshot(t.Context(), p.ID))
	_, err = w.v.Get(t.Context(), d.ID)
	wantKind(t, err, fault.NotFound, "the retired disk without snapshots")
	w.must(t, w.holds(made.ID, "", then))
	w.must(t, w.v.Delete(t.Context(), made.ID))
	w.wantEmpty(t)
}

// A disk grows while snapshots and clones have its links; one that shares nothing any more is written in place again.
func TestExpandWithSnapshots(t *testing.T) {
	w, _ := realWorld(t)
	then := pattern(2*mib, 1)
	d := w.disk(t, "x", host.MonolithicFlat, then)
	p := w.snapshot(t, d.ID, "s", nil)
	got, err := w.v.Expand(t.Context(), d.ID, 4*mib, nil)
	if err != nil || got.Size != 4*mib || len(got.Links) != 2 || got.VMwareProblem == "" {
		t.Fatalf("%+v %v", got, err)
	}
	s := w.mustAttach(t, d.ID)
	if got, err = w.v.Expand(t.Context(), d.ID, 6*mib, s); err != nil || got.Size != 6*mib || len(got.Links) != 2 {
		t.Fatalf("%+v %v", got, err)
	}
	w.mustDetach(t, d.ID, s)
	if got, err = w.v.Expand(t.Context(), d.ID, 7*mib, nil); err != nil || got.Size != 7*mib || len(got.Links) != 2 {
		t.Fatalf("a head that is larger than its parent: %+v %v", got, err)
	}
	now := append(slices.Clone(then), make([]byte, 5*mib)...)
	w.must(t, w.holds(d.ID, "", now))
	w.must(t, w.holds(d.ID, p.ID, then))
	_, err = w.v.Flatten(t.Context(), d.ID, nil)
	wantKind(t, err, fault.Precondition, "flatten with snapshots")
	w.must(t, w.v.DeleteSnapshot(t.Context(), p.ID))
	if got, err = w.v.Flatten(t.Context(), d.ID, nil); err != nil || got.VMwareProblem != "" || len(got.Links) != 1 || got.Size != 7*mib {
		t.Fatalf("%+v %v", got, err)
	}
	w.must(t, w.holds(d.ID, "", now))
	// A snapshot that was deleted before anybody wrote: the head is thawed, not left behind.
	for name, grow := range map[string]bool{"attach": false, "expand": true} {
		q := w.snapshot(t, d.ID, name, nil)
		w.must(t, w.v.DeleteSnapshot(t.Context(), q.ID))
		if grow {
			if got, err = w.v.Expand(t.Context(), d.ID, 8*mib, nil); err != nil || got.Size != 8*mib {
				t.Fatalf("%+v %v", got, err)
			}
		}
		w.mustDetach(t, d.ID, w.mustAttach(t, d.ID))
		if got, err = w.v.Get(t.Context(), d.ID); err != nil || len(got.Links) != 1 {
			t.Fatalf("after %s: %+v %v", name, got, err)
		}
	}
	// A clone keeps it frozen, until the clone is gone.
	c, err := w.v.Create(t.Context(), host.DiskSpec{Name: "clone", Size: got.Size, Source: &host.Source{Disk: d.ID}})
	w.must(t, err)
	w.must(t, w.v.Delete(t.Context(), c.ID))
	w.mustDetach(t, d.ID, w.mustAttach(t, d.ID))
	if got, err = w.v.Get(t.Context(), d.ID); err != nil || len(got.Links) != 1 {
		t.Fatalf("after the clone is gone: %+v %v", got, err)
	}
}

// A snapshot of a disk that another host makes at the same time, without locks: one of two commits wins, nothing is lost.
func TestTwoHostsOneDisk(t *testing.T) {
	p := place{t.TempDir()}
	a, b := p.host(t, "a", "1"), p.host(t, "b", "1")
	d := create(t, a, "x")
	o := acquire(t, a, d.ID)
	_, err := b.Snapshot(t.Context(), host.SnapshotSpec{Name: "s", Disk: d.ID}, time.Time{}, nil)
	wantKind(t, err, fault.InUse, "snapshot on the other host")
	if !strings.Contains(err.Error(), `"a"`) {
		t.Errorf("the fault does not name the host: %v", err)
	}
	w := a.Release(t.Context(), d.ID, o.Epoch, false)
	if w != nil {
		t.Fatal(w)
	}
	sp, err := b.Snapshot(t.Context(), host.SnapshotSpec{Name: "s", Disk: d.ID}, time.Time{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	o = acquire(t, a, d.ID)
	wantKind(t, b.DeleteSnapshot(t.Context(), sp.ID), fault.InUse, "delete a snapshot of a disk that another host has")
	if err := a.DeleteSnapshot(t.Context(), sp.ID); err != nil {
		t.Fatal(err)
	}
	if err := a.Release(t.Context(), d.ID, o.Epoch, false); err != nil {
		t.Fatal(err)
	}
}
