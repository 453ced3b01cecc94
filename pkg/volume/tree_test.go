package volume_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
	"github.com/vmdk-csi/vmdk-csi/pkg/volume"
)

const (
	treeSteps     = 200
	treeDisks     = 7 // at most, alive
	treeSnapshots = 10
)

// TestTree walks at random through snapshots, restores, clones, deletions, growth, writes, consolidation and flattening, and
// compares every disk and every snapshot with a model, and with what QEMU reads, after every step. At the end everything is
// deleted in random order, and nothing is left.
func TestTree(t *testing.T) {
	needsQEMU(t)
	rng, _ := seeded(t)
	w, path := realWorld(t)
	tr := &tree{t: t, w: w, path: path, rng: rng, disks: map[string]*treeDisk{}, snaps: map[string]*treeSnap{}, did: map[string]int{}}
	steps := treeSteps
	if testing.Short() {
		steps /= 8 // the crash suite walks all
	}
	missing := func() (all []string) { // what the walk has not met yet
		for _, what := range []string{"snapshot", "restore", "clone", "merge", "cut", "grow", "delete", "delete snapshot"} {
			if tr.did[what] == 0 && !testing.Short() {
				all = append(all, what)
			}
		}
		return all
	}
	n := 0
	for ; n < steps || n < 4*steps && len(missing()) > 0; n++ {
		tr.step(n)
		tr.verify()
	}
	t.Logf("%d steps: %v", n, tr.did)
	if all := missing(); len(all) > 0 {
		t.Errorf("the walk proves nothing about %v", all)
	}
	tr.fell()
}

// tree is the model beside the datastore.
type tree struct {
	t     *testing.T
	w     *world
	path  string
	rng   *rand.Rand
	disks map[string]*treeDisk
	snaps map[string]*treeSnap
	next  int
	did   map[string]int
	log   []string
}

type treeDisk struct {
	data []byte
	s    *served // nil: detached
}

type treeSnap struct {
	disk string
	data []byte
}

func (d *treeDisk) server() volume.Server {
	if d.s == nil {
		return nil
	}
	return d.s
}

// note says what a step does, and counts it.
func (tr *tree) note(what, format string, args ...any) {
	tr.did[what]++
	tr.log = append(tr.log, what+" "+fmt.Sprintf(format, args...))
}

// must ends the test when a step fails, with the way that led there.
func (tr *tree) must(err error) {
	tr.t.Helper()
	if err == nil {
		return
	}
	for i, l := range tr.log {
		tr.t.Logf("%3d %s", i, l)
	}
	tr.t.Fatal(err)
}

func pick[V any](rng *rand.Rand, m map[string]V) (string, V) {
	keys := slices.Sorted(maps.Keys(m))
	k := keys[rng.IntN(len(keys))]
	return k, m[k]
}

func (tr *tree) name(kind string) string {
	tr.next++
	return fmt.Sprint(kind, tr.next)
}

func (tr *tree) step(n int) {
	if n == 0 || len(tr.disks) == 0 {
		tr.create()
		return
	}
	id, d := pick(tr.rng, tr.disks)
	switch k := tr.rng.IntN(100); {
	case k < 4:
		tr.create()
	case k < 26:
		tr.write(id, d)
	case k < 36:
		tr.toggle(id, d)
	case k < 52:
		tr.snapshot(id, d)
	case k < 58:
		tr.restore()
	case k < 64:
		tr.clone(id, d)
	case k < 72:
		tr.deleteSnapshot()
	case k < 75:
		tr.delete(id, d)
	case k < 80:
		tr.grow(id, d)
	case k < 97:
		tr.consolidate()
	default:
		tr.flatten(id, d)
	}
}

// room makes room for one more disk.
func (tr *tree) room(keep string) {
	for len(tr.disks) >= treeDisks {
		if id, d := pick(tr.rng, tr.disks); id != keep {
			tr.delete(id, d)
		}
	}
}

func (tr *tree) create() {
	tr.room("")
	spec := host.DiskSpec{Name: tr.name("d"), Size: mib * int64(1+tr.rng.IntN(2)), Type: diskTypes[tr.rng.IntN(len(diskTypes))]}
	made, err := tr.w.v.Create(context.Background(), spec)
	tr.note("create", "%s %s %d MiB: %v", made.ID, spec.Type, spec.Size/mib, err)
	tr.must(err)
	tr.disks[made.ID] = &treeDisk{data: make([]byte, spec.Size)}
}

func (tr *tree) toggle(id string, d *treeDisk) {
	var err error
	if d.s == nil {
		d.s, err = tr.w.attach(id)
		tr.note("attach", "%s: %v", id, err)
	} else {
		err = tr.w.detach(id, d.s)
		d.s = nil
		tr.note("detach", "%s: %v", id, err)
	}
	tr.must(err)
}

// write writes, zeroes or discards some pieces.
func (tr *tree) write(id string, d *treeDisk) {
	if d.s == nil {
		tr.toggle(id, d)
	}
	for range 1 + tr.rng.IntN(6) {
		off := tr.rng.Int64N(int64(len(d.data)))
		n := min(1+tr.rng.Int64N(200_000<<tr.rng.IntN(4)), int64(len(d.data))-off)
		var err error
		switch tr.rng.IntN(6) {
		case 0:
			clear(d.data[off : off+n])
			err = d.s.WriteZeroes(off, n)
		case 1:
			err = d.s.Discard(off, n)
			if errors.Is(err, fault.Unsupported) {
				err = nil
			} else {
				clear(d.data[off : off+n])
			}
		default:
			copy(d.data[off:], pattern(int(n), byte(tr.rng.Uint32())))
			_, err = d.s.WriteAt(d.data[off:off+n], off)
		}
		tr.must(err)
	}
	tr.note("write", "%s", id)
}

func (tr *tree) snapshot(id string, d *treeDisk) {
	if len(tr.snaps) >= treeSnapshots {
		tr.deleteSnapshot()
	}
	spec := host.SnapshotSpec{Name: tr.name("s"), Disk: id}
	p, err := tr.w.v.Snapshot(context.Background(), spec, time.Time{}, d.server())
	tr.note("snapshot", "%s of %s attached=%v: %v", p.ID, id, d.s != nil, err)
	if errors.Is(err, fault.Exhausted) {
		return
	}
	tr.must(err)
	tr.snaps[p.ID] = &treeSnap{disk: id, data: slices.Clone(d.data)}
}

// grown is a size at least that of data.
func (tr *tree) grown(data []byte) int64 { return int64(len(data)) + mib*int64(tr.rng.IntN(2)) }

func (tr *tree) from(what string, src host.Source, data []byte, server volume.Server) {
	spec := host.DiskSpec{Name: tr.name("r"), Size: tr.grown(data), Type: diskTypes[tr.rng.IntN(len(diskTypes))], Source: &src}
	if tr.rng.IntN(4) == 0 {
		spec.CloneMode = host.CloneFull
	}
	made, err := tr.w.v.CreateFrom(context.Background(), spec, server)
	tr.note(what, "%s from %+v mode %q attached=%v, %d MiB: %v", made.ID, src, spec.CloneMode, server != nil, spec.Size/mib, err)
	if errors.Is(err, fault.Exhausted) {
		tr.must(tr.w.v.Delete(context.Background(), host.DiskID(spec.Name)))
		return
	}
	tr.must(err)
	tr.disks[made.ID] = &treeDisk{data: append(slices.Clone(data), make([]byte, spec.Size-int64(len(data)))...)}
}

func (tr *tree) restore() {
	if len(tr.snaps) == 0 {
		return
	}
	tr.room("")
	id, p := pick(tr.rng, tr.snaps)
	var server volume.Server
	if d := tr.disks[p.disk]; d != nil {
		server = d.server()
	}
	tr.from("restore", host.Source{Snapshot: id}, p.data, server)
}

func (tr *tree) clone(id string, d *treeDisk) {
	tr.room(id)
	tr.from("clone", host.Source{Disk: id}, d.data, d.server())
}

func (tr *tree) deleteSnapshot() {
	if len(tr.snaps) == 0 {
		return
	}
	id, p := pick(tr.rng, tr.snaps)
	err := tr.w.v.DeleteSnapshot(context.Background(), id)
	tr.note("delete snapshot", "%s of %s: %v", id, p.disk, err)
	tr.must(err)
	delete(tr.snaps, id)
}

func (tr *tree) delete(id string, d *treeDisk) {
	if d.s != nil {
		tr.toggle(id, d)
	}
	err := tr.w.v.Delete(context.Background(), id)
	tr.note("delete", "%s: %v", id, err)
	tr.must(err)
	delete(tr.disks, id)
}

func (tr *tree) grow(id string, d *treeDisk) {
	if len(d.data) > 4*mib {
		return
	}
	size := int64(len(d.data)) + mib
	var server volume.Grower
	if d.s != nil {
		server = d.s
	}
	_, err := tr.w.v.Expand(context.Background(), id, size, server)
	tr.note("grow", "%s to %d MiB attached=%v: %v", id, size/mib, d.s != nil, err)
	tr.must(err)
	d.data = append(d.data, make([]byte, mib)...)
}

// consolidate merges until it waits, or is cut off after some pieces. Retired disks are among them.
func (tr *tree) consolidate() {
	ids := map[string]bool{}
	for id := range tr.disks {
		ids[id] = true
	}
	for _, p := range tr.snaps {
		ids[p.disk] = true
	}
	for id := range ids {
		if c, err := tr.w.v.Unneeded(id); err != nil || c == nil || c.Reason != "" {
			tr.must(err)
			delete(ids, id)
		}
	}
	if len(ids) == 0 {
		tr.deleteSnapshot()
		return
	}
	id, _ := pick(tr.rng, ids)
	var server volume.Server
	if d := tr.disks[id]; d != nil {
		server = d.server()
	}
	for range 1 + tr.rng.IntN(4) {
		ctx, cancel := context.WithCancel(context.Background())
		o := volume.ConsolidateOptions{Direction: []chain.Direction{"", "", chain.Down, chain.Up}[tr.rng.IntN(4)]}
		if tr.rng.IntN(3) == 0 {
			left := tr.rng.IntN(3)
			o.Pace = func(context.Context, int64) error {
				if left--; left < 0 {
					cancel()
				}
				return ctx.Err()
			}
		}
		res, err := tr.w.v.Consolidate(ctx, id, o, server)
		cut := ctx.Err() != nil
		cancel()
		tr.log = append(tr.log, fmt.Sprintf("consolidate %s %q attached=%v: %+v %v", id, o.Direction, server != nil, res, err))
		if cut && err != nil && !errors.Is(err, fault.Poisoned) {
			tr.did["cut"]++
			continue
		}
		tr.must(err)
		if !res.Merged {
			return
		}
		tr.did["merge"]++
	}
}

func (tr *tree) flatten(id string, d *treeDisk) {
	if d.s != nil {
		tr.toggle(id, d)
	}
	_, err := tr.w.v.Flatten(context.Background(), id, nil)
	tr.note("flatten", "%s: %v", id, err)
	if !errors.Is(err, fault.Precondition) {
		tr.must(err)
	}
}

// verify compares everything with the model.
func (tr *tree) verify() {
	tr.t.Helper()
	for _, id := range slices.Sorted(maps.Keys(tr.disks)) {
		d := tr.disks[id]
		m, err := tr.w.manifest(id)
		tr.must(err)
		if d.s != nil {
			tr.must(d.s.Flush())
			got := make([]byte, d.s.Size())
			_, err = d.s.ReadAt(got, 0)
			tr.must(errors.Join(err, same(got, d.data, id+", attached")))
		} else {
			tr.must(tr.w.holds(id, "", d.data))
		}
		tr.qemu(id, m.Head().Descriptor, d.data)
	}
	for _, id := range slices.Sorted(maps.Keys(tr.snaps)) {
		p := tr.snaps[id]
		tr.must(tr.w.holds(p.disk, id, p.data))
		m, err := tr.w.manifest(p.disk)
		tr.must(err)
		for _, s := range m.Snapshots {
			if s.ID == id {
				tr.qemu(p.disk, s.Link, p.data)
			}
		}
	}
}

func (tr *tree) qemu(id, link string, want []byte) {
	tr.t.Helper()
	tr.must(qemuSame(tr.t, filepath.Join(tr.path, "volumes", id, link), want))
}

// fell deletes everything in random order.
func (tr *tree) fell() {
	var todo []func()
	for id, d := range tr.disks {
		todo = append(todo, func() { tr.delete(id, d) })
	}
	for id := range tr.snaps {
		todo = append(todo, func() {
			tr.must(tr.w.v.DeleteSnapshot(context.Background(), id))
			delete(tr.snaps, id)
		})
	}
	tr.rng.Shuffle(len(todo), func(i, j int) { todo[i], todo[j] = todo[j], todo[i] })
	for _, do := range todo {
		do()
		tr.verify()
	}
	tr.w.wantEmpty(tr.t)
}
