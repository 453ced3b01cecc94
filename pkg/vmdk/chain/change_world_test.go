package chain_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx/sim"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// manifest is what the caller of snapshots and merges commits, in a file of the same directory.
type manifest struct {
	Refs   []chain.Ref
	Behind []chain.Identity // descriptors to be made right before the chain is opened
	Kept   [][32]byte       // what the disk was when each link but the head became a parent; zeros: nobody needs it
}

const manifestName = "manifest"

func (m manifest) store(d fsx.Dir) error {
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	f, err := d.Open("manifest.new", fsx.ReadWrite|fsx.Create)
	if err != nil {
		return err
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt(text, 0)
	}
	if err == nil {
		err = f.Datasync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err // it has surely not happened
	}
	if err = d.Rename("manifest.new", manifestName); err == nil {
		err = d.Sync()
	}
	if err != nil {
		return fault.New(fault.Poisoned, "", "commit: %w", err)
	}
	return nil
}

func loadManifest(d fsx.Dir) (m manifest, err error) {
	f, err := d.Open(manifestName, fsx.ReadOnly)
	if err != nil {
		return m, err
	}
	info, err := f.Stat()
	text := make([]byte, info.Size)
	if err == nil && info.Size > 0 {
		_, err = f.ReadAt(text, 0)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return m, err
	}
	return m, json.Unmarshal(text, &m)
}

// ready is what a caller does before it opens the chain.
func (m manifest) ready(d fsx.Dir) error {
	if err := chain.Rebind(d, m.Behind); err != nil {
		return fmt.Errorf("rebind: %w", err)
	}
	return nil
}

// without removes a link's boundary from what is kept.
func (m manifest) without(lower int) [][32]byte {
	return slices.Delete(slices.Clone(m.Kept), lower, lower+1)
}

// changeCase is a disk of three links, or two, and what happens to it.
type changeCase struct {
	name  string
	p     vmdk.CreateParams
	grow  int64 // the head's size after the first snapshot
	lower int
	dir   chain.Direction // "": a snapshot
	short bool            // two links only
	child vmdk.Type       // of all links but the base; "": twoGbMaxExtentSparse
}

func (k changeCase) links() int {
	if k.short {
		return 2
	}
	return 3
}

func changeCases() []changeCase {
	sparse := vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse, Capacity: 448<<10 + 512, GrainSectors: 8}
	flat := vmdk.CreateParams{Type: vmdk.MonolithicFlat, Capacity: 448 << 10}
	embedded := vmdk.CreateParams{Type: vmdk.MonolithicSparse, Capacity: 320 << 10, GrainSectors: 16}
	all := []changeCase{{name: "snapshot", p: sparse}, {name: "snapshot-flat", p: flat}}
	for _, b := range []struct {
		name string
		p    vmdk.CreateParams
		grow int64
	}{{"sparse", sparse, 0}, {"flat", flat, 512 << 10}, {"embedded", embedded, 448<<10 + 1024}} {
		for lower := range 2 {
			for _, dir := range []chain.Direction{chain.Down, chain.Up} {
				all = append(all, changeCase{fmt.Sprintf("%s-%d-%s", b.name, lower, dir), b.p, b.grow, lower, dir, false, ""})
			}
		}
		for _, dir := range []chain.Direction{chain.Down, chain.Up} {
			all = append(all, changeCase{fmt.Sprintf("%s-base-%s", b.name, dir), b.p, b.grow, 0, dir, true, ""})
		}
	}
	return all
}

// changed is a process that uses the disk of a changeCase, and what it promised.
type changed struct {
	*journal
	k       changeCase
	r       *rand.Rand
	d       fsx.Dir
	pending *chain.MemoryPending
	c       *chain.Chain
	m       manifest
	want    []byte

	setup   []any // events before the recording
	inside  func(*changed) error
	opened  bool
	doing   string
	off, n  int64 // what the request under way may have changed
	fill    byte
	changes int // snapshots and merges done
}

// newChanged makes the disk: a base and its children, all with content.
func newChanged(t *testing.T, k changeCase, seed uint64) *changed {
	t.Helper()
	fs := sim.New(sim.Options{})
	h := &changed{journal: &journal{FS: fs}, k: k, r: newRand(seed), d: fs.Root(), pending: &chain.MemoryPending{Max: 24}, want: make([]byte, k.p.Capacity)}
	if _, err := vmdk.Create(t.Context(), h.d, "disk.vmdk", k.p); err != nil {
		t.Fatal(err)
	}
	h.m.Refs = []chain.Ref{{Name: "disk.vmdk"}}
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	must(h.open(false))
	for range k.links() - 1 {
		for range 6 {
			must(h.step(true))
		}
		must(h.snapshot())
		if k.grow > int64(len(h.want)) {
			must(h.c.Grow(t.Context(), k.grow))
			h.want = append(h.want, make([]byte, k.grow-int64(len(h.want)))...)
		}
	}
	for range 6 {
		must(h.step(true))
	}
	h.m.Refs = refsOf(h.c)
	if k.dir == chain.Down {
		h.m.Kept[k.lower] = [32]byte{} // the merge begins: nobody needs the lower link by itself
	}
	must(h.m.store(h.d))
	must(h.c.Close())
	h.changes = 0
	h.setup = append(h.events, change{flushed: true})
	h.events = nil
	fs.Record()
	return h
}

func refsOf(c *chain.Chain) []chain.Ref {
	var refs []chain.Ref
	for _, l := range c.Links() {
		refs = append(refs, chain.Ref{Name: l.Name, Type: l.Descriptor().Type(), Size: l.Size(), Mend: true})
	}
	return refs
}

func (h *changed) open(takeover bool) error {
	h.doing = "open"
	err := h.m.ready(h.d)
	if err != nil {
		return err
	}
	h.c, err = chain.Open(h.d, h.m.Refs, chain.Options{Pending: h.pending, Takeover: takeover})
	if err == nil {
		h.opened = true
	}
	return err
}

// step writes, discards or flushes; large: about the size of a grain of a child.
func (h *changed) step(large bool) error {
	size := int64(len(h.want))
	n := (h.r.Int64N(12) + 1) * 512
	if large {
		n *= 16
	}
	off := h.r.Int64N((size-n)/512+1) * 512
	if h.r.IntN(2) == 0 {
		off = off / 65536 * 65536
	}
	h.off, h.n, h.fill = off, n, byte(len(h.events)%250+1)
	var err error
	switch x := h.r.IntN(10); {
	case x < 6:
		h.doing = fmt.Sprintf("write %d+%d", off, n)
		h.Begin(change{off: off, n: n, fill: h.fill})
		_, err = h.c.WriteAt(fillOf(int(n), h.fill), off)
	case x < 8:
		h.n, h.fill = min(n*6, size-off), 0
		h.doing = fmt.Sprintf("discard %d+%d", off, h.n)
		h.Begin(change{off: off, n: h.n})
		err = h.c.Discard(off, h.n)
	default:
		h.doing, h.n = "flush", 0
		if err = h.c.Flush(); err == nil {
			h.Mark(change{flushed: true})
		}
	}
	if err == nil {
		copy(h.want[h.off:h.off+h.n], fillOf(int(h.n), h.fill))
		h.n = 0
	}
	return err
}

// commit makes next the manifest, when everything that was acknowledged is durable.
func (h *changed) commit(next manifest) error {
	h.Mark(change{flushed: true})
	if n := len(h.pending.Load()); n > 0 {
		return fmt.Errorf("%d pending entries at a commit", n)
	}
	if err := next.store(h.d); err != nil {
		return err
	}
	h.m = next
	h.changes++
	return nil
}

func (h *changed) snapshot() error {
	h.doing, h.n = "snapshot", 0
	last := 0
	for _, r := range h.m.Refs {
		var n int
		if _, err := fmt.Sscanf(r.Name, "disk-%06d.vmdk", &n); err == nil {
			last = max(last, n)
		}
	}
	name := fmt.Sprintf("disk-%06d.vmdk", last+1)
	return h.c.Snapshot(context.Background(), chain.SnapshotParams{Child: name, Type: h.k.child, Commit: func(parent, child *vmdk.Info) error {
		next := manifest{Refs: refsOf(h.c), Kept: append(slices.Clone(h.m.Kept), sha256.Sum256(h.want))}
		next.Refs = append(next.Refs, chain.Ref{Name: child.Name, Type: child.Type, Size: child.Capacity, Mend: true})
		return h.commit(next)
	}})
}

func (h *changed) merge(ctx context.Context) error {
	h.doing, h.n = "merge", 0
	lower, dir := h.k.lower, h.k.dir
	before := h.c.Links()
	err := h.c.Merge(ctx, chain.MergeParams{Lower: lower, Direction: dir, Pace: func(context.Context, int64) error {
		defer func() { h.doing = "merge" }()
		return h.inside(h)
	}, Commit: func(id chain.Identity) error {
		next := manifest{Refs: slices.Clone(h.m.Refs), Kept: h.m.without(lower), Behind: []chain.Identity{id}}
		merged := chain.Ref{Name: id.Name, Type: id.Type, Size: id.Size, Mend: true}
		next.Refs = append(append(next.Refs[:lower:lower], merged), h.m.Refs[lower+2:]...)
		if lower+2 < len(before) {
			next.Behind = append(next.Behind, chain.Identity{Name: before[lower+2].Name, ParentCID: id.CID, Parent: id.Name})
		}
		return h.commit(next)
	}})
	if err != nil {
		return err
	}
	gone := before[lower+1]
	if dir == chain.Up {
		gone = before[lower]
	}
	names := []string{gone.Name}
	for _, e := range gone.Extents() {
		names = append(names, e.Name)
	}
	h.m.Behind = nil // durable: the descriptors are
	if err := h.m.store(h.d); err != nil {
		return err
	}
	for _, n := range names {
		if err := h.d.Remove(n); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// live opens the disk, uses it, changes its links once, uses it, and closes it.
func (h *changed) live() error {
	if err := h.open(false); err != nil {
		return err
	}
	if err := h.use(); err != nil {
		return errors.Join(err, h.c.Abandon())
	}
	h.doing, h.n = "close", 0
	if err := h.c.Close(); err != nil {
		return err
	}
	h.Mark(change{flushed: true})
	return nil
}

func (h *changed) use() error {
	for range 4 {
		if err := h.step(h.r.IntN(3) == 0); err != nil {
			return err
		}
	}
	err := h.change()
	for range 4 {
		if err == nil {
			err = h.step(h.r.IntN(3) == 0)
		}
	}
	return err
}

func (h *changed) change() error {
	if h.k.dir == "" {
		return h.snapshot()
	}
	return h.merge(context.Background())
}
