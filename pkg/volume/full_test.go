package volume_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
	"github.com/vmdk-csi/vmdk-csi/pkg/volume"
)

// A datastore that is full, and one that becomes full in the middle: what fails leaves nothing, and the disks work.
func TestSnapshotsOnAFullDatastore(t *testing.T) {
	spares := []int64{0, 4 << 10, 8 << 10, 16 << 10, 64 << 10, 256 << 10, mib}
	if testing.Short() {
		spares = []int64{0, 16 << 10}
	}
	for _, spare := range spares {
		for _, attached := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d KiB free/attached=%v", spare>>10, attached), func(t *testing.T) { fullDatastore(t, spare, attached) })
		}
	}
}

func fullDatastore(t *testing.T, spare int64, attached bool) {
	p, _ := tmpfs(t, 12*mib)
	root, err := fsx.OpenRoot(p.path)
	if err != nil {
		t.Fatal(err)
	}
	w, err := newWorld(root, "a", "1", volume.VMDK{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.store.Close()
	d, past := chainOf(t, w, "x", 3) // 4 MiB, 2.5 MiB, 1.5 MiB
	now := past[2]
	w.must(t, w.v.DeleteSnapshot(t.Context(), host.SnapshotID("x1")))
	var s *served
	var server volume.Server
	if attached {
		s = w.mustAttach(t, d.ID)
		server = s
	}
	before := p.files(t)
	p.fill(t)
	leave(t, p, spare)

	fine := func(what string, err error) bool {
		t.Helper()
		if err != nil && !errors.Is(err, fault.NoSpace) {
			t.Fatalf("%s: %v", what, err)
		}
		return err == nil
	}
	src := host.Source{Snapshot: host.SnapshotID("x2")}
	for _, mode := range []host.CloneMode{host.CloneFull, host.CloneLinked} {
		name := "r-" + string(mode)
		_, err := w.v.CreateFrom(t.Context(), host.DiskSpec{Name: name, Size: d.Size, Source: &src, CloneMode: mode}, server)
		if fine("restore "+string(mode), err) {
			w.must(t, w.holds(host.DiskID(name), "", past[1]))
			w.must(t, w.v.Delete(t.Context(), host.DiskID(name)))
		}
		if after := p.files(t); !attached && !sameButManifests(before, after) {
			t.Fatalf("a restore (%s, %v) left %s, before %s", mode, err, after, before)
		}
	}
	_, err = w.v.Snapshot(t.Context(), host.SnapshotSpec{Name: "new", Disk: d.ID}, time.Time{}, server)
	if fine("snapshot", err) {
		w.must(t, w.holds(d.ID, host.SnapshotID("new"), now))
		fine("delete a snapshot", w.v.DeleteSnapshot(t.Context(), host.SnapshotID("new")))
	} else if has, err := w.store.HasName(host.NameHash(host.KindSnapshot, "new")); err != nil || has {
		t.Fatalf("a snapshot that failed keeps its name: %v %v", has, err)
	}
	_, err = w.v.Consolidate(t.Context(), d.ID, volume.ConsolidateOptions{Direction: chain.Up}, server)
	fine("merge", err)
	if s != nil {
		got := make([]byte, s.Size())
		if _, err := s.ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
		w.must(t, same(got, now, "the disk"))
		if err := w.detach(d.ID, s); err != nil && !errors.Is(err, fault.NoSpace) {
			t.Fatalf("detach: %v", err)
		}
	} else {
		w.must(t, w.holds(d.ID, "", now))
	}

	// Somebody makes room, and everything goes on.
	w.must(t, os.Remove(filepath.Join(p.path, "filler")))
	s = w.mustAttach(t, d.ID)
	copy(now[1000:], "room")
	if _, err := s.WriteAt([]byte("room"), 1000); err != nil {
		t.Fatal(err)
	}
	w.mustDetach(t, d.ID, s)
	w.must(t, w.holds(d.ID, "", now))
	w.must(t, w.holds(d.ID, host.SnapshotID("x2"), past[1]))
	for range 3 {
		w.consolidate(t, d.ID, volume.ConsolidateOptions{}, nil)
	}
	w.must(t, w.holds(d.ID, "", now))
	w.must(t, w.v.Delete(t.Context(), d.ID))
	for _, name := range []string{"x2", "new"} {
		w.must(t, w.v.DeleteSnapshot(t.Context(), host.SnapshotID(name)))
	}
	w.wantEmpty(t)
}

// leave makes about n bytes free again.
func leave(t *testing.T, p place, n int64) {
	t.Helper()
	path := filepath.Join(p.path, "filler")
	info, err := os.Stat(path)
	if err == nil {
		err = os.Truncate(path, info.Size()-n)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// sameButManifests compares two lists of files; manifests come and go with every commit.
func sameButManifests(a, b string) bool {
	plain := func(s string) []string {
		return slices.DeleteFunc(strings.Fields(s), func(n string) bool { return strings.Contains(n, "/manifest-") })
	}
	return slices.Equal(plain(a), plain(b))
}
