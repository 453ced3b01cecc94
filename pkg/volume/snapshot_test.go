package volume_test

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/volume"
)

var diskTypes = host.DiskTypes()

// A snapshot keeps what the disk was, attached or not; what is written afterwards goes elsewhere.
func TestSnapshotKeepsThePast(t *testing.T) {
	for _, typ := range diskTypes {
		t.Run(string(typ), func(t *testing.T) {
			w, _ := realWorld(t)
			now := pattern(2*mib, 1)
			d := w.disk(t, "x", typ, now)
			past := map[string][]byte{}
			keep := func(p host.Snapshot) { past[p.ID] = slices.Clone(now) }
			keep(w.snapshot(t, d.ID, "detached", nil))
			keep(w.snapshot(t, d.ID, "again", nil)) // nothing was written: both end at one link
			s := w.mustAttach(t, d.ID)
			for i := range 3 {
				part := pattern(70_000, byte(0x55+i))
				copy(now[100_000*(i+1):], part)
				if _, err := s.WriteAt(part, int64(100_000*(i+1))); err != nil {
					t.Fatal(err)
				}
				keep(w.snapshot(t, d.ID, fmt.Sprint("attached", i), s))
			}
			w.mustDetach(t, d.ID, s)
			for id, want := range past {
				if err := w.holds(d.ID, id, want); err != nil {
					t.Error(err)
				}
			}
			if err := w.holds(d.ID, "", now); err != nil {
				t.Error(err)
			}
			got, err := w.v.Get(t.Context(), d.ID)
			if err != nil || len(got.Links) != 5 || len(got.Snapshots) != 5 {
				t.Fatalf("%+v %v", got, err)
			}
		})
	}
}

func TestSnapshotIsIdempotent(t *testing.T) {
	w, _ := realWorld(t)
	d, e := create(t, w.v, "x"), create(t, w.v, "y")
	p := w.snapshot(t, d.ID, "s", nil)
	if again := w.snapshot(t, d.ID, "s", nil); !reflect.DeepEqual(again, p) {
		t.Fatalf("%+v, again %+v", p, again)
	}
	if got, err := w.v.GetSnapshot(t.Context(), p.ID); err != nil || !reflect.DeepEqual(got, p) {
		t.Fatalf("%+v %v", got, err)
	}
	if disk, err := w.v.SnapshotDisk(p.ID); err != nil || disk != d.ID {
		t.Fatalf("%s %v", disk, err)
	}
	if p.ID != host.SnapshotID("s") || p.Disk != d.ID || p.DiskUUID != d.UUID || p.Size != d.Size || p.CID == "" || !p.Ready ||
		p.Consistency != host.FilesystemConsistent || time.Since(p.Created) > time.Hour || p.Datastore != "store" {
		t.Fatalf("%+v", p)
	}
	_, err := w.v.Snapshot(t.Context(), host.SnapshotSpec{Name: "s", Disk: e.ID}, time.Time{}, nil)
	wantKind(t, err, fault.Exists, "a snapshot's name for another disk")
	for range 2 {
		w.must(t, w.v.DeleteSnapshot(t.Context(), p.ID))
	}
	_, err = w.v.GetSnapshot(t.Context(), p.ID)
	wantKind(t, err, fault.NotFound, "get of a deleted one")
	if q := w.snapshot(t, e.ID, "s", nil); q.Disk != e.ID {
		t.Fatalf("%+v", q)
	}
}

func TestSnapshotRefuses(t *testing.T) {
	w, path := realWorld(t)
	d := create(t, w.v, "x")
	retired := create(t, w.v, "retired")
	w.snapshot(t, retired.ID, "r", nil)
	w.must(t, w.v.Delete(t.Context(), retired.ID))
	held := create(t, w.v, "held")
	w.mustAttachElsewhere(t, path, held.ID)
	for _, c := range []struct {
		what string
		spec host.SnapshotSpec
		want fault.Kind
	}{
		{"of nothing", host.SnapshotSpec{Name: "s", Disk: host.DiskID("none")}, fault.NotFound},
		{"of no id", host.SnapshotSpec{Name: "s", Disk: "../x"}, fault.Invalid},
		{"of a retired disk", host.SnapshotSpec{Name: "s", Disk: retired.ID}, fault.NotFound},
		{"of a disk attached elsewhere", host.SnapshotSpec{Name: "s", Disk: held.ID}, fault.InUse},
		{"without a name", host.SnapshotSpec{Disk: d.ID}, fault.Invalid},
		{"long name", host.SnapshotSpec{Name: strings.Repeat("n", 1025), Disk: d.ID}, fault.Invalid},
		{"freeze", host.SnapshotSpec{Name: "s", Disk: d.ID, Freeze: "all"}, fault.Invalid},
	} {
		_, err := w.v.Snapshot(t.Context(), c.spec, time.Time{}, nil)
		wantKind(t, err, c.want, c.what)
		_, err = w.v.GetSnapshot(t.Context(), host.SnapshotID("s"))
		wantKind(t, err, fault.NotFound, c.what)
	}
	if has, err := w.store.HasName(strings.TrimPrefix(host.SnapshotID("s"), "vs-")); err != nil || has {
		t.Fatalf("the name stays reserved: %v %v", has, err)
	}
}

// mustAttachElsewhere has another host hold the disk.
func (w *world) mustAttachElsewhere(t *testing.T, path, id string) *volume.Opened {
	t.Helper()
	return acquire(t, place{path}.host(t, "b", "1"), id)
}

func TestDepth(t *testing.T) {
	w, _ := realWorld(t)
	d := create(t, w.v, "x")
	s := w.mustAttach(t, d.ID)
	for i := range host.MaxLinks - 1 {
		w.snapshot(t, d.ID, fmt.Sprint(i), s)
	}
	ask := host.SnapshotSpec{Name: "more", Disk: d.ID}
	_, err := w.v.Snapshot(t.Context(), ask, time.Time{}, s)
	wantKind(t, err, fault.Exhausted, "link 33")
	var f *fault.Fault
	if !errors.As(err, &f) || !strings.Contains(f.Remedy, "cloneMode full") {
		t.Fatalf("no remedy: %v", err)
	}
	clone := host.DiskSpec{Name: "clone", Size: d.Size, Source: &host.Source{Disk: d.ID}}
	_, err = w.v.CreateFrom(t.Context(), clone, s)
	wantKind(t, err, fault.Exhausted, "a clone of 33 links")
	w.mustDetach(t, d.ID, s)
	_, err = w.v.Snapshot(t.Context(), ask, time.Time{}, nil)
	wantKind(t, err, fault.Exhausted, "link 33, detached")
	restore := host.DiskSpec{Name: "full", Size: d.Size, Source: &host.Source{Snapshot: host.SnapshotID("30")}, CloneMode: host.CloneFull}
	if _, err := w.v.Create(t.Context(), restore); err != nil {
		t.Fatalf("the remedy does not work: %v", err)
	}
	w.mustDetach(t, d.ID, w.mustAttach(t, d.ID))
}

func TestListSnapshots(t *testing.T) {
	w, _ := realWorld(t)
	d, e := create(t, w.v, "x"), create(t, w.v, "y")
	var all, ofD []string
	for i := range 5 {
		p := w.snapshot(t, d.ID, fmt.Sprint("d", i), nil)
		q := w.snapshot(t, e.ID, fmt.Sprint("e", i), nil)
		all, ofD = append(all, p.ID, q.ID), append(ofD, p.ID)
	}
	w.must(t, w.v.Delete(t.Context(), e.ID)) // its snapshots stay
	slices.Sort(all)
	slices.Sort(ofD)
	for _, c := range []struct {
		disk string
		want []string
	}{{"", all}, {d.ID, ofD}, {host.DiskID("none"), nil}} {
		for _, max := range []int{0, 1, 3, 100} {
			var got []string
			after := ""
			for {
				list, more, err := w.v.ListSnapshots(t.Context(), c.disk, max, after)
				if err != nil || max > 0 && len(list) > max {
					t.Fatalf("%d %v", len(list), err)
				}
				for _, p := range list {
					got, after = append(got, p.ID), p.ID
				}
				if !more {
					break
				}
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("disk %q, %d at a time: %v, want %v", c.disk, max, got, c.want)
			}
		}
	}
}

// The consistency says what stood still when the requests were stopped.
func TestConsistency(t *testing.T) {
	w, _ := realWorld(t)
	d := create(t, w.v, "x")
	s := w.mustAttach(t, d.ID)
	for name, c := range map[string]struct {
		until time.Time
		want  host.Consistency
	}{
		"none": {time.Time{}, host.CrashConsistent}, "late": {time.Now().Add(-time.Second), host.CrashConsistent},
		"frozen": {time.Now().Add(time.Hour), host.FilesystemConsistent},
	} {
		p, err := w.v.Snapshot(t.Context(), host.SnapshotSpec{Name: name, Disk: d.ID}, c.until, s)
		if err != nil || p.Consistency != c.want {
			t.Errorf("%s: %+v %v", name, p, err)
		}
	}
	// The worker dies, and the disk is detached by nobody.
	w.must(t, s.Abandon())
	s.dir.Close()
	if p := w.snapshot(t, d.ID, "after a crash", nil); p.Consistency != host.CrashConsistent {
		t.Errorf("%+v", p)
	}
	w.mustDetach(t, d.ID, w.mustAttach(t, d.ID))
}
