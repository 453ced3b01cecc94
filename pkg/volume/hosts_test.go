package volume_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/volume"
)

// TestHostsWithoutLocks has several hosts work on the same disks at once, on a datastore where no byte locks are taken. Every
// content that is written is of one value throughout, so whatever a snapshot or clone has must be, too; who loses a race is
// told so, and nothing is left in the end.
func TestHostsWithoutLocks(t *testing.T) {
	rng, _ := seeded(t)
	path := t.TempDir()
	hosts := make([]*world, 4)
	for i := range hosts {
		root, err := fsx.OpenRoot(path)
		if err != nil {
			t.Fatal(err)
		}
		if hosts[i], err = newWorld(fsx.WithoutLocks(root), fmt.Sprint("h", i), "1", volume.VMDK{}); err != nil {
			t.Fatal(err)
		}
		defer hosts[i].store.Close()
	}
	for i := range 2 {
		hosts[0].disk(t, fmt.Sprint("shared", i), host.TwoGbMaxExtentSparse, slices.Repeat([]byte{7}, mib))
	}
	steps := 60
	if testing.Short() {
		steps = 15
	}
	var mu sync.Mutex
	did := map[string]int{}
	raced := func() bool { // whether everything that matters has succeeded at least once
		mu.Lock()
		defer mu.Unlock()
		return did["snapshot"] > 0 && did["clone"] > 0 && did["write"] > 0
	}
	lost := map[string]bool{} // snapshots whose deletion was told to be tried again
	var wg sync.WaitGroup
	for i, w := range hosts {
		own := rand.New(rand.NewPCG(rng.Uint64(), 1))
		wg.Go(func() {
			for n := 0; n < steps || n < 20*steps && !raced(); n++ {
				what, id, err := raceStep(w, own, fmt.Sprint(i, "-", n))
				mu.Lock()
				if err == nil {
					did[what]++
				} else if id != "" {
					lost[id] = true
				}
				mu.Unlock()
				if err == nil {
					continue
				}
				switch fault.KindOf(err) {
				case fault.InUse, fault.InProgress, fault.NotFound, fault.Exhausted, fault.Unavailable:
				default:
					t.Errorf("host %d, step %d: %s: %v (%s)", i, n, what, err, fault.KindOf(err))
				}
			}
		})
	}
	wg.Wait()
	t.Logf("done: %v", did)
	if !raced() {
		t.Error("nothing was raced for")
	}
	uniform(t, hosts[1])
	w := hosts[2]
	snaps, _, err := w.v.ListSnapshots(t.Context(), "", 0, "")
	w.must(t, err)
	for _, p := range snaps {
		lost[p.ID] = true
	}
	for id := range lost {
		w.must(t, w.v.DeleteSnapshot(t.Context(), id))
	}
	disks, _, err := w.v.List(t.Context(), 0, "")
	w.must(t, err)
	for _, d := range disks {
		w.must(t, w.v.Delete(t.Context(), d.ID))
	}
	w.wantEmpty(t)
}

// raceStep does something to a disk that other hosts may be at; it names the snapshot that it deletes.
func raceStep(w *world, rng *rand.Rand, name string) (what, snapshot string, err error) {
	ctx := context.Background()
	list, _, err := w.v.List(ctx, 0, "")
	if err != nil || len(list) == 0 {
		return "list", "", err
	}
	d := list[rng.IntN(min(len(list), 4))]
	if d.Phase != host.Ready {
		return "list", "", errors.New(d.Reason)
	}
	switch k := rng.IntN(10); {
	case k < 3:
		return "write", "", stamp(w, d.ID, byte(rng.Uint32()))
	case k < 5:
		_, err := w.v.Snapshot(ctx, host.SnapshotSpec{Name: name, Disk: d.ID}, time.Time{}, nil)
		return "snapshot", "", err
	case k < 6:
		_, err := w.v.Create(ctx, host.DiskSpec{Name: name, Size: d.Size, Source: &host.Source{Disk: d.ID}})
		return "clone", "", err
	case k < 8:
		_, err := w.v.Consolidate(ctx, d.ID, volume.ConsolidateOptions{}, nil)
		return "merge", "", err
	}
	if len(d.Snapshots) == 0 {
		return "nothing", "", nil
	}
	id := d.Snapshots[rng.IntN(len(d.Snapshots))]
	return "delete snapshot", id, w.v.DeleteSnapshot(ctx, id)
}

// stamp attaches a disk, and writes one value all over it.
func stamp(w *world, id string, b byte) error {
	s, err := w.attach(id)
	if err != nil {
		return err
	}
	_, err = s.WriteAt(slices.Repeat([]byte{b}, int(s.Size())), 0)
	return errors.Join(err, w.detach(id, s))
}

// uniform checks every disk and snapshot.
func uniform(t *testing.T, w *world) {
	t.Helper()
	ids, err := w.v.IDs()
	w.must(t, err)
	for _, id := range ids {
		m := w.manifestOf(t, id)
		if !m.Released {
			t.Errorf("disk %s is held", id)
		}
		links := []string{""}
		for _, p := range m.Snapshots {
			links = append(links, p.Link)
		}
		for _, l := range links {
			data, err := w.content(id, l)
			w.must(t, err)
			for i := range data {
				if data[i] != data[0] {
					t.Fatalf("disk %s up to %q: byte %d is %d, byte 0 is %d", id, l, i, data[i], data[0])
				}
			}
		}
	}
}
