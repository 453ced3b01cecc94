package local_test

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/hosttest"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/local"
)

const long = 30 * time.Second

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(long); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", long, what)
		}
	}
}

// merging runs h's consolidation until the test ends or stop is called.
func merging(t *testing.T, h *local.Host) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { h.Consolidate(ctx) })
	stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(stop)
	return stop
}

func snapshot(t *testing.T, h *local.Host, name, disk string) host.Snapshot {
	t.Helper()
	s, err := h.CreateSnapshot(t.Context(), host.SnapshotSpec{Name: name, Disk: disk})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// deltas makes an attached disk of n links, each with content, that nobody needs.
func deltas(t *testing.T, r *rig, h *local.Host, name, datastore string, n int) host.Disk {
	t.Helper()
	d := create(t, h, name, datastore)
	attach(t, h, d.ID)
	for i := range n {
		r.write(t, i)
		if i < n-1 {
			snapshot(t, h, name+string(rune('a'+i)), d.ID)
		}
	}
	for i := range n - 1 {
		if err := h.DeleteSnapshot(t.Context(), host.SnapshotID(name+string(rune('a'+i)))); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// write puts the i-th content on the disk that was attached last.
func (r *rig) write(t *testing.T, i int) {
	t.Helper()
	w := r.workers.running[len(r.workers.running)-1]
	b := make([]byte, 64<<10)
	for j := range b {
		b[j] = byte(i + 1)
	}
	if _, err := w.chain.WriteAt(b, int64(i)*(64<<10)); err != nil {
		t.Fatal(err)
	}
}

func links(t *testing.T, h *local.Host, id string) int {
	t.Helper()
	d, err := h.Get(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return len(d.Links)
}

// Links that nobody needs are merged while the disk is attached, when it was detached, and by a successor.
func TestConsolidates(t *testing.T) {
	for _, how := range []string{"attached", "detached", "after a restart"} {
		t.Run(how, func(t *testing.T) {
			r := newRig(t)
			h := r.open(t)
			d := deltas(t, r, h, "x", "b", 4)
			if n := links(t, h, d.ID); n != 4 {
				t.Fatalf("%d links", n)
			}
			if got, err := h.Get(t.Context(), d.ID); err != nil || got.Consolidation == nil || got.Consolidation.Links != 3 {
				t.Fatalf("%+v %v", got.Consolidation, err)
			}
			if how != "attached" {
				if err := h.Detach(t.Context(), d.ID); err != nil {
					t.Fatal(err)
				}
			}
			if how == "after a restart" {
				h = r.open(t)
			}
			merging(t, h)
			eventually(t, "one link", func() bool { return links(t, h, d.ID) == 1 })
			eventually(t, "the end of it", func() bool {
				got, err := h.Get(t.Context(), d.ID)
				return err == nil && got.Consolidation == nil
			})
			if c := h.Counters(); c.Merges != 3 || c.Copied == 0 || c.Freed == 0 {
				t.Errorf("%+v", c)
			}
		})
	}
}

// Whatever is done with the disk has its merge give way, soon; the merge goes on afterwards.
func TestMergeGivesWay(t *testing.T) {
	r := newRig(t)
	r.cfg.ConsolidateRate = 4 << 10 // a quarter of a minute for each grain
	h := r.open(t)
	d := deltas(t, r, h, "x", "a", 8)
	stop := merging(t, h)
	running := func() bool {
		got, err := h.Get(t.Context(), d.ID)
		return err == nil && got.Consolidation != nil && got.Consolidation.Running
	}
	for _, c := range []struct {
		what string
		do   func() error
	}{
		{"snapshot", func() error { snapshot(t, h, "in between", d.ID); return nil }},
		{"expand", func() error { _, err := h.Expand(t.Context(), d.ID, 8*mib); return err }},
		{"claim", func() error { return h.Claim(t.Context(), d.ID, host.Claim{Node: "node-a"}) }},
		{"clone", func() error { // the last: links that are shared are merged no more
			_, err := h.Create(t.Context(), host.DiskSpec{Name: "c", Datastore: "a", Size: 8 * mib, Source: &host.Source{Disk: d.ID}})
			return err
		}},
	} {
		eventually(t, "a merge runs", running)
		start := time.Now()
		if err := c.do(); err != nil {
			t.Errorf("%s: %v", c.what, err)
		}
		if waited := time.Since(start); waited > 5*time.Second {
			t.Errorf("%s waited for %v", c.what, waited)
		}
	}
	if err := h.Detach(t.Context(), d.ID); err != nil {
		t.Errorf("detach: %v", err)
	}
	stop()
}

// A disk that somebody reads keeps its links.
func TestReadersKeepTheirLinks(t *testing.T) {
	r := newRig(t)
	h := r.open(t)
	d := deltas(t, r, h, "x", "a", 3)
	if err := h.Detach(t.Context(), d.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Attach(t.Context(), host.AttachRequest{ID: d.ID, ReadOnly: true}, hosttest.NoKernel(t, d.ID).Device()); err != nil {
		t.Fatal(err)
	}
	other := deltas(t, r, h, "y", "a", 3)
	merging(t, h)
	eventually(t, "the other disk has one link", func() bool { return links(t, h, other.ID) == 1 })
	if n := links(t, h, d.ID); n != 3 {
		t.Errorf("a disk that is read has %d links", n)
	}
	if err := h.Detach(t.Context(), d.ID); err != nil {
		t.Fatal(err)
	}
	eventually(t, "one link when nobody reads it", func() bool { return links(t, h, d.ID) == 1 })
}

// silent is a datastore's directory whose file system does not answer until it is told to.
type silent struct {
	fsx.Dir
	answer chan struct{}
}

func (s silent) Sub(name string) (fsx.Dir, error) {
	<-s.answer
	return s.Dir.Sub(name)
}

// A datastore that does not answer keeps nobody from what is on the others: a snapshot of a frozen file system least of all.
func TestSilentDatastoreHoldsUpNothing(t *testing.T) {
	r := newRig(t)
	answer := make(chan struct{})
	r.cfg.OpenRoot = func(path string) (fsx.Dir, error) {
		d, err := fsx.OpenRoot(path)
		if err == nil && filepath.Base(path) == "b" {
			d = silent{d, answer}
		}
		return d, err
	}
	h := r.open(t)
	t.Cleanup(func() { // what was given up ends, before its directory is removed
		close(answer)
		eventually(t, "every datastore is ready", func() bool {
			list, err := h.Datastores(context.Background())
			return err == nil && !slices.ContainsFunc(list, func(d host.Datastore) bool { return !d.Hosts[0].Ready })
		})
	})
	quick := func(what string, most time.Duration, do func(ctx context.Context) error) {
		t.Helper()
		start := time.Now()
		if err := do(t.Context()); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if took := time.Since(start); took > most {
			t.Errorf("%s took %v, more than %v", what, took, most)
		}
	}
	d := create(t, h, "x", "a") // the first to ask, who waits a second
	attach(t, h, d.ID)
	for _, name := range []string{"s1", "s2"} {
		quick("snapshot", time.Second, func(ctx context.Context) error {
			s, err := h.CreateSnapshot(ctx, host.SnapshotSpec{Name: name, Disk: d.ID, Freeze: host.FreezeFilesystem, Frozen: 900 * time.Millisecond})
			if err == nil && s.Consistency != host.FilesystemConsistent {
				err = errors.New("the file system did not stand still until the end")
			}
			return err
		})
	}
	quick("get", time.Second, func(ctx context.Context) error { _, err := h.GetSnapshot(ctx, host.SnapshotID("s1")); return err })
	quick("delete the snapshot", time.Second, func(ctx context.Context) error { return h.DeleteSnapshot(ctx, host.SnapshotID("s1")) })
	quick("delete a snapshot that is not there", time.Second, func(ctx context.Context) error {
		return h.DeleteSnapshot(host.WithDatastore(ctx, "a"), host.SnapshotID("s1"))
	})
	quick("detach", time.Second, func(ctx context.Context) error { return h.Detach(ctx, d.ID) })
	quick("delete the last snapshot", time.Second, func(ctx context.Context) error { return h.DeleteSnapshot(ctx, host.SnapshotID("s2")) })
	quick("delete", time.Second, func(ctx context.Context) error { return h.Delete(ctx, d.ID) })
	quick("delete a disk that is not there", time.Second, func(ctx context.Context) error {
		return h.Delete(host.WithDatastore(ctx, "a"), d.ID)
	})
	if _, err := h.Get(t.Context(), d.ID); !errors.Is(err, fault.Unavailable) {
		t.Errorf("a disk that may be on the silent datastore: %v", err)
	}
}
