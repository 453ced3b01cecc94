package local_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/local"
)

// A restored disk shares the links of its source, so they stay; when the source and its snapshot are deleted they are merged at once,
// not when all disks are looked at again.
func TestLinksAreMergedWhenTheirSharerGoes(t *testing.T) {
	r := newRig(t)
	r.cfg.ConsolidateEvery = time.Hour
	h := r.open(t)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { h.Consolidate(ctx) })

	source := create(t, h, "source", "a")
	snap, err := h.CreateSnapshot(t.Context(), host.SnapshotSpec{Name: "s", Disk: source.ID})
	if err != nil {
		t.Fatal(err)
	}
	restored, err := h.Create(t.Context(), host.DiskSpec{Name: "restored", Datastore: "a", Size: 4 * mib, Source: &host.Source{Snapshot: snap.ID}})
	if err != nil {
		t.Fatal(err)
	}
	if attach(t, h, restored.ID); len(restored.Links) != 2 {
		t.Fatalf("%d links, want two: the test would prove nothing", len(restored.Links))
	}
	if err := h.Detach(t.Context(), restored.ID); err != nil { // it is looked at now, and has to wait
		t.Fatal(err)
	}
	until(t, "it waits for its sharer", func() (string, bool) {
		d := get(t, h, restored.ID)
		return fmt.Sprintf("%+v", d.Consolidation), d.Consolidation != nil && d.Consolidation.Reason != "" && len(d.Links) == 2
	})
	if err := h.Delete(t.Context(), source.ID); err != nil {
		t.Fatal(err)
	}
	if err := h.DeleteSnapshot(t.Context(), snap.ID); err != nil {
		t.Fatal(err)
	}
	until(t, "its links are merged", func() (string, bool) {
		d := get(t, h, restored.ID)
		return fmt.Sprintf("%d links, %+v", len(d.Links), d.Consolidation), len(d.Links) == 1
	})
}

func get(t *testing.T, h *local.Host, id string) host.Disk {
	t.Helper()
	d, err := h.Get(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func until(t *testing.T, what string, probe func() (saw string, ok bool)) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		saw, ok := probe()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s; last seen: %s", what, saw)
		}
	}
}
