package lun_test

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/hosttest"
	"github.com/vmdk-csi/vmdk-csi/pkg/remote"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/store"
)

// walk is a random history of some disks on a LUN, and what they must hold.
type walk struct {
	*rig
	rng     *rand.Rand
	nodes   []*machine
	mds     *machine
	disks   map[string]*walkDisk
	snaps   map[string]walkSnapshot
	made    int
	by      map[string]int // writes, by transport
	servers int
}

type walkDisk struct {
	id     string
	size   int64
	blocks map[int64]byte // what was written where, by 4 KiB
	on     *machine       // nil: detached
}

type walkSnapshot struct {
	id     string
	size   int64
	blocks map[int64]byte
}

// TestWalk lets disks be made, attached, written, snapshot, restored, grown and deleted on two nodes, while servers die and follow each
// other. Every disk and snapshot holds what it must all the time, and the store is whole in the end.
func TestWalk(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s, err := strconv.ParseUint(os.Getenv("SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Logf("SEED=%d", seed)
	steps := 150
	if testing.Short() {
		steps = 50
	}
	r := newRig(t)
	w := &walk{rig: r, rng: rand.New(rand.NewPCG(seed, 1)), disks: map[string]*walkDisk{}, snaps: map[string]walkSnapshot{}, by: map[string]int{}}
	w.next()
	w.nodes = []*machine{r.start("node-a"), r.start("node-b")}
	for i := range steps {
		w.step(i, steps)
	}
	for _, d := range w.sorted() {
		w.verify(d)
		if d.on != nil {
			d.on.detach(d.id)
		}
	}
	t.Logf("writes %v, %d things made", w.by, w.made)
	w.mds.quit()
	f := r.open()
	defer f.Close()
	report, err := store.Check(f)
	must(t, err)
	if len(report.Problems) > 0 {
		t.Errorf("the store: %+v", report)
	}
}

// next lets another machine serve.
func (w *walk) next() {
	w.servers++
	m := w.start(fmt.Sprint("mds-", w.servers))
	if old := w.mds; old != nil {
		if w.rng.IntN(2) == 0 {
			go old.kill()
		} else {
			old.quit()
		}
	}
	m.serve()
	w.mds = m
}

func (w *walk) sorted() []*walkDisk {
	return slices.SortedFunc(maps.Values(w.disks), func(a, b *walkDisk) int { return bytes.Compare([]byte(a.id), []byte(b.id)) })
}

func (w *walk) pick() *walkDisk {
	all := w.sorted()
	if len(all) == 0 {
		return nil
	}
	return all[w.rng.IntN(len(all))]
}

// insist repeats what another operation, or a server that is just gone, is in the way of.
func (w *walk) insist(what string, do func() error) {
	w.t.Helper()
	var err error
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		switch err = do(); fault.KindOf(err) {
		case "":
			return
		case fault.InProgress, fault.Unavailable, fault.Timeout:
		default:
			w.t.Fatalf("%s: %v", what, err)
		}
	}
	w.t.Fatalf("%s: %v", what, err)
}

func (w *walk) step(i, steps int) {
	t := w.t
	t.Helper()
	ctx, by := t.Context(), w.nodes[w.rng.IntN(2)]
	d := w.pick()
	switch n := w.rng.IntN(20); {
	case len(w.disks) < 3 || n == 0 && len(w.disks) < 5:
		w.create(by, nil)
	case i%(steps/3) == steps/3-1:
		w.next()
	case n < 3 && d.on == nil:
		w.attach(d, by)
	case n < 2:
		w.insist("detach", func() error { return d.on.Detach(ctx, d.id) })
		d.on = nil
	case n < 10 || n == 16 || n == 17:
		w.scribble(d, by)
	case n < 12:
		w.verify(d)
		w.verifySnapshot(by)
	case n == 12 && len(w.snaps) < 2:
		w.made++
		name := fmt.Sprint("s", w.made)
		w.insist("snapshot", func() error {
			_, err := by.CreateSnapshot(ctx, host.SnapshotSpec{Name: name, Disk: d.id})
			return err
		})
		w.snaps[name] = walkSnapshot{host.SnapshotID(name), d.size, maps.Clone(d.blocks)}
	case n < 15 && len(w.snaps) > 0:
		names := slices.Sorted(maps.Keys(w.snaps))
		s := w.snaps[names[w.rng.IntN(len(names))]]
		w.insist("delete a snapshot", func() error { return by.DeleteSnapshot(ctx, s.id) })
		maps.DeleteFunc(w.snaps, func(_ string, x walkSnapshot) bool { return x.id == s.id })
	case n == 15 && len(w.snaps) > 0 && len(w.disks) < 5:
		names := slices.Sorted(maps.Keys(w.snaps))
		s := w.snaps[names[w.rng.IntN(len(names))]]
		w.create(by, &s)
	case n == 18 && d.size < 12*mib:
		w.insist("expand", func() error { _, err := by.Expand(ctx, d.id, d.size+mib); return err })
		d.size += mib
		if d.on != nil {
			w.insist("grown", func() error { _, err := d.on.Grown(ctx, d.id); return err })
		}
	case n == 19 && d.on == nil:
		w.verify(d)
		if d.on != nil {
			w.insist("detach", func() error { return d.on.Detach(ctx, d.id) })
		}
		w.insist("delete", func() error { return by.Delete(ctx, d.id) })
		delete(w.disks, d.id)
	}
}

// verifySnapshot makes a disk of a snapshot, compares it, and deletes it.
func (w *walk) verifySnapshot(by *machine) {
	w.t.Helper()
	names := slices.Sorted(maps.Keys(w.snaps))
	if len(names) == 0 {
		return
	}
	s := w.snaps[names[w.rng.IntN(len(names))]]
	d := w.create(by, &s)
	w.verify(d)
	w.insist("detach", func() error { return d.on.Detach(w.t.Context(), d.id) })
	w.insist("delete", func() error { return by.Delete(w.t.Context(), d.id) })
	delete(w.disks, d.id)
}

func (w *walk) create(by *machine, from *walkSnapshot) *walkDisk {
	w.t.Helper()
	w.made++
	d := &walkDisk{size: 4 * mib, blocks: map[int64]byte{}}
	spec := host.DiskSpec{Name: fmt.Sprint("d", w.made), Datastore: "lun", Size: d.size, Format: host.EagerZeroedThick}
	if w.rng.IntN(4) == 0 {
		spec.Format, spec.Type = host.Thin, host.DiskTypes()[w.rng.IntN(len(host.DiskTypes()))]
	}
	if from != nil {
		spec.Source, spec.Size = &host.Source{Snapshot: from.id}, from.size
		d.size, d.blocks = from.size, maps.Clone(from.blocks)
		if w.rng.IntN(3) == 0 {
			spec.CloneMode = host.CloneFull
		}
	}
	w.insist("create", func() error { _, err := by.Create(w.t.Context(), spec); return err })
	d.id = host.DiskID(spec.Name)
	w.disks[d.id] = d
	return d
}

func (w *walk) attach(d *walkDisk, by *machine) {
	w.t.Helper()
	t, ok := w.t.(*testing.T)
	if !ok {
		w.t.Fatal("a walk in a benchmark")
	}
	w.insist("attach", func() error {
		_, err := by.Attach(t.Context(), host.AttachRequest{ID: d.id}, hosttest.NoKernel(t, d.id).Device())
		return err
	})
	d.on = by
}

func (w *walk) scribble(d *walkDisk, by *machine) {
	w.t.Helper()
	if d.on == nil {
		w.attach(d, by)
	}
	if w.rng.IntN(2) == 0 { // as far as it is possible
		for end := time.Now().Add(400 * time.Millisecond); d.on.disk(d.id).State().Transport != remote.SAN && time.Now().Before(end); {
			time.Sleep(5 * time.Millisecond)
		}
	}
	for range 1 + w.rng.IntN(8) {
		at, seed := w.rng.Int64N(d.size/4096), byte(w.rng.IntN(250)+1)
		disk := d.on.disk(d.id)
		w.by[disk.State().Transport]++
		if w.rng.IntN(8) == 0 {
			must(w.t, disk.WriteZeroes(at*4096, 4096))
			seed = 0
		} else if _, err := disk.WriteAt(pattern(seed, 4096), at*4096); err != nil {
			w.t.Fatalf("write: %v", err)
		}
		d.blocks[at] = seed
		if w.rng.IntN(4) == 0 {
			must(w.t, disk.Flush())
		}
	}
}

// verify compares everything that was ever written, and some of what was not.
func (w *walk) verify(d *walkDisk) {
	w.t.Helper()
	if d.on == nil {
		w.attach(d, w.nodes[w.rng.IntN(2)])
	}
	disk := d.on.disk(d.id)
	if disk.Size() != d.size {
		w.t.Fatalf("disk %s has %d bytes, not %d", d.id, disk.Size(), d.size)
	}
	look := maps.Clone(d.blocks)
	for range 8 {
		if at := w.rng.Int64N(d.size / 4096); look[at] == 0 {
			look[at] = 0
		}
	}
	p := make([]byte, 4096)
	for _, at := range slices.Sorted(maps.Keys(look)) {
		want := make([]byte, 4096)
		if seed := look[at]; seed != 0 {
			want = pattern(seed, 4096)
		}
		if _, err := disk.ReadAt(p, at*4096); err != nil || !bytes.Equal(p, want) {
			w.t.Fatalf("disk %s, block %d: %x, want %x (%v), reached by %s", d.id, at, p[:4], want[:4], err, disk.State().Transport)
		}
	}
}
