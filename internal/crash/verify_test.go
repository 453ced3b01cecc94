package crash

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"sync"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx/sim"
	"github.com/vmdk-csi/vmdk-csi/pkg/datastore"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
	"github.com/vmdk-csi/vmdk-csi/pkg/volume"
)

// verify starts a host on what a crash left and judges it by the events before.
func verify(cut *sim.FS, typ host.DiskType, boot string) error {
	p := after(cut.Events())
	if err := p.checkLinks(&world{fs: cut, typ: typ}); err != nil {
		return err
	}
	w, err := open(cut, typ, boot)
	if err != nil {
		return fmt.Errorf("open the datastore: %w", err)
	}
	defer w.die()
	if p.store != "" && w.store.UUID() != p.store {
		return fmt.Errorf("the datastore is %s, it was %s", w.store.UUID(), p.store)
	}
	if err := w.checkNames(p); err != nil {
		return err
	}
	d, err := w.vols.Get(ctx, w.id())
	switch {
	case errors.Is(err, fault.NotFound):
		if p.disk == present {
			return fmt.Errorf("I4: a disk whose creation was promised is gone: %w", err)
		}
		return w.verifyAbsent(p)
	case err != nil:
		return fmt.Errorf("get: %w", err)
	case p.disk == absent:
		return errors.New("I4: a disk whose deletion was promised is back")
	case p.uuid != "" && d.UUID != p.uuid:
		return fmt.Errorf("I4: the disk has uuid %s, promised was %s", d.UUID, p.uuid)
	case d.Size != p.size && d.Size != p.growing:
		return fmt.Errorf("size %d, promised was %d or %d", d.Size, p.size, p.growing)
	}
	return w.verifyPresent(p, d)
}

// checkVisible: a descriptor that can be seen can be opened, even while nothing has been promised (pkg/vmdk: a descriptor
// becomes visible only after its extents are durable). Somebody may copy the directory away right now.
func checkVisible(cut *sim.FS, typ host.DiskType) error {
	w := &world{fs: cut, typ: typ}
	d, err := w.directory()
	if errors.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer d.Close()
	l, err := vmdk.Open(d, "disk.vmdk", vmdk.Options{})
	if errors.Is(err, fs.ErrNotExist) {
		if _, serr := d.Stat("disk.vmdk"); errors.Is(serr, fs.ErrNotExist) {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("a descriptor is visible before its extents: %w", err)
	}
	return l.Close()
}

// checkLinks judges what is there before anything looks after it: what somebody finds who copies the directory away.
func (p *promise) checkLinks(w *world) error {
	d, err := w.directory()
	if err != nil {
		return nil // verify says whether it may be missing
	}
	defer d.Close()
	l, err := vmdk.Open(d, "disk.vmdk", vmdk.Options{})
	if err != nil {
		return nil
	}
	defer l.Close()
	if c := l.Info().Capacity; c < p.grown {
		return fmt.Errorf("the descriptor says %d bytes; it had grown to %d", c, p.grown)
	}
	return p.checkKnown(d, l.Info().CID)
}

// checkKnown: while the content ID is still the one from before the attach, so is the content (I3): who compares content
// IDs, a child or a backup, must not miss a change.
func (p *promise) checkKnown(d fsx.Dir, cid vmdk.CID) (err error) {
	if cid != p.known.cid || len(p.known.since) == 0 {
		return nil
	}
	c, err := chain.Open(d, []chain.Ref{{Name: "disk.vmdk"}}, chain.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	b := make([]byte, sector)
	for s := range p.known.since {
		want := p.known.before(s)
		if want == unsure {
			continue
		}
		if _, err := c.ReadAt(b, s*sector); err != nil && err != io.EOF {
			return err
		}
		if b[0] != want {
			return fmt.Errorf("I3: sector %d reads %d, under the content ID %v it read %d", s, b[0], p.known.cid, want)
		}
	}
	return nil
}

// checkNames: at most one volume, and it is the one its name says (I4).
func (w *world) checkNames(p *promise) error {
	disks, _, err := w.vols.List(ctx, 0, "")
	if err != nil {
		return fmt.Errorf("list: %w", err)
	}
	if len(disks) > 1 || len(disks) == 1 && disks[0].ID != w.id() {
		return fmt.Errorf("I4: several volumes: %+v", disks)
	}
	for _, d := range disks {
		if d.Phase != host.Ready {
			return fmt.Errorf("the disk is %s: %s", d.Phase, d.Reason)
		}
	}
	return nil
}

// verifyAbsent: the name can be used, what it gives is a new, empty disk, and nothing of an older one is left.
func (w *world) verifyAbsent(before *promise) error {
	spec := w.spec()
	if before.disk == absent {
		spec.Size *= 2 // nobody owns the name: a disk of another kind may have it
	}
	d, err := w.vols.Create(ctx, spec)
	if err != nil {
		return fmt.Errorf("create after the crash: %w", err)
	}
	p := newPromise()
	p.add(event{op: "create", done: true, size: spec.Size, uuid: d.UUID})
	return inOrder([]step{
		{"released state (I3)", w.checkReleased},
		{"attach", func() error { _, err := w.attach(); return err }},
		{"unreferenced files (I6)", w.checkFiles},
		{"size", func() error { return w.checkSize(p) }},
		{"content (I2)", func() error { return w.checkContent(p) }},
		{"detach", w.detach},
		{"structure (I1)", w.checkStructure},
		{"delete", w.deleteAll},
	})
}

type step struct {
	name string
	run  func() error
}

func inOrder(steps []step) error {
	for _, s := range steps {
		if err := s.run(); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// verifyPresent uses the disk through one life: attach, read, write, detach, expand, delete.
func (w *world) verifyPresent(p *promise, d host.Disk) error {
	return inOrder([]step{
		{"released state (I3)", w.checkReleased},
		{"attach", func() error { _, err := w.attach(); return err }},
		{"unreferenced files (I6)", w.checkFiles},
		{"size", func() error { return w.checkSize(p) }},
		{"content (I2)", func() error { return w.checkContent(p) }},
		{"write", func() error { return w.put(w.disk, 9*grain+sector, 2*sector, 99) }},
		{"discard", func() error { return w.put(w.disk, 5*grain, grain, 0) }},
		{"detach", w.detach},
		{"structure (I1)", w.checkStructure},
		{"released state (I3)", w.checkReleased},
		{"attach again", func() error { _, err := w.attach(); return err }},
		{"content after use (I2)", func() error {
			for _, e := range []event{{off: 9*grain + sector, n: 2 * sector, stamp: 99}, {off: 5 * grain, n: grain}} {
				e.op = "write"
				p.add(e)
				e.done = true
				p.add(e)
			}
			p.add(event{op: "flush", done: true})
			return w.checkContent(p)
		}},
		{"detach again", w.detach},
		{"create again", func() error { return w.createAgain(d) }},
		{"expand", func() error { return w.expandAgain(p) }},
		{"delete", w.deleteAll},
	})
}

// checkReleased: a released manifest says what the descriptors say (I3).
func (w *world) checkReleased() error {
	vol, err := w.store.OpenVolume(w.id())
	if err != nil {
		return err
	}
	defer vol.Close()
	m, ok, err := vol.Latest()
	if err != nil || !ok {
		return fmt.Errorf("no manifest: %w", err)
	}
	rec, err := vol.Record()
	if err != nil {
		return err
	}
	if rec.UUID != m.UUID {
		return fmt.Errorf("uuid %s in the record, %s in the manifest", rec.UUID, m.UUID)
	}
	if !m.Released {
		return nil
	}
	links, err := volume.VMDK{}.Inspect(ctx, vol.Dir(), m.Links)
	if err != nil {
		return err
	}
	same := func(a, b datastore.Link) bool {
		return a.Descriptor == b.Descriptor && slices.Equal(a.Extents, b.Extents) && a.Type == b.Type &&
			a.CID == b.CID && a.ParentCID == b.ParentCID && a.Size == b.Size
	}
	if !slices.EqualFunc(links, m.Links, same) {
		return fmt.Errorf("the manifest %d-%d says %+v, the descriptors %+v", m.Epoch, m.Seq, m.Links, links)
	}
	return nil
}

// checkFiles: after an attach there is nothing in the directory that the manifest does not name, and all that it names.
func (w *world) checkFiles() error {
	if w.disk == nil {
		return errors.New("the disk is not there to be attached")
	}
	vol, err := w.store.OpenVolume(w.id())
	if err != nil {
		return err
	}
	defer vol.Close()
	m, _, err := vol.Latest()
	if err != nil {
		return err
	}
	names, err := vol.Dir().List()
	if err != nil {
		return err
	}
	want := map[string]bool{"record.json": true}
	for _, l := range m.Links {
		want[l.Descriptor] = true
		for _, e := range l.Extents {
			want[e] = true
		}
	}
	manifests := 0
	for _, n := range names {
		var epoch, seq int64
		if c, _ := fmt.Sscanf(n, "manifest-%d-%d.json", &epoch, &seq); c == 2 {
			manifests++
		} else if !want[n] {
			return fmt.Errorf("%s is left over; the manifest names %v", n, m.Links)
		}
		delete(want, n)
	}
	if len(want) > 0 || manifests > 2 {
		return fmt.Errorf("missing %v, %d manifests in %v", want, manifests, names)
	}
	return nil
}

func (w *world) checkSize(p *promise) error {
	if s := w.disk.Size(); s != p.size && s != p.growing {
		return fmt.Errorf("%d bytes, promised were %d or %d", s, p.size, p.growing)
	}
	return nil
}

var (
	zeros   [grain]byte
	buffers = sync.Pool{New: func() any { b := make([]byte, 8*mib); return &b }}
)

// checkContent reads every sector (I2).
func (w *world) checkContent(p *promise) error {
	pooled := buffers.Get().(*[]byte)
	defer buffers.Put(pooled)
	buf := (*pooled)[:w.disk.Size()]
	if _, err := w.disk.ReadAt(buf, 0); err != nil && err != io.EOF {
		return err
	}
	written := map[int64]bool{} // grains
	for s := range p.cells {
		written[s*sector/grain] = true
	}
	for g := int64(0); g*grain < int64(len(buf)); g++ {
		b := buf[g*grain : min((g+1)*grain, int64(len(buf)))]
		if !written[g] && bytes.Equal(b, zeros[:len(b)]) {
			continue
		}
		if err := p.checkGrain(b, g*grain/sector); err != nil {
			return err
		}
	}
	return nil
}

func (p *promise) checkGrain(b []byte, first int64) error {
	for s := first; len(b) > 0; s, b = s+1, b[sector:] {
		whole := b[0] == b[sector-1] && bytes.Equal(b[:sector-1], b[1:sector])
		if !whole || !p.allows(s, b[0]) {
			return fmt.Errorf("sector %d (grain %d) reads %d (whole: %v), allowed are %v", s, s*sector/grain, b[0], whole, p.allowed(s))
		}
		if c := p.cells[s]; c != nil { // from now on it is this value: nothing may change it any more
			*c = cell{values: []byte{b[0]}}
		}
	}
	return nil
}

// checkStructure: tables and files of every link are sound (I1).
func (w *world) checkStructure() error {
	vol, err := w.store.OpenVolume(w.id())
	if err != nil {
		return err
	}
	defer vol.Close()
	m, _, err := vol.Latest()
	if err != nil {
		return err
	}
	for _, l := range m.Links {
		if err := sound(vol.Dir(), l.Descriptor); err != nil {
			return err
		}
	}
	return nil
}

func sound(d fsx.Dir, name string) error {
	r, err := vmdk.Check(ctx, d, name)
	if err != nil {
		return err
	}
	for _, p := range r.Problems {
		switch {
		case p.Severity == vmdk.Note: // space that nobody uses: allocated for a write that the power loss took
		case p.Severity == vmdk.Warning && p.Code == vmdk.CapacityDiffers: // a growth that was given up half-way
		default:
			return fmt.Errorf("%v", r.Problems)
		}
	}
	return nil
}

// createAgain: a repeated request is answered with the same disk.
func (w *world) createAgain(d host.Disk) error {
	got, err := w.vols.Create(ctx, w.spec())
	if err != nil {
		return err
	}
	if got.UUID != d.UUID {
		return fmt.Errorf("uuid %s, it was %s", got.UUID, d.UUID)
	}
	return nil
}

func (w *world) expandAgain(p *promise) error {
	size := max(p.size, p.growing) + mib
	d, err := w.vols.Expand(ctx, w.id(), size, nil)
	if err != nil {
		return err
	}
	if d.Size != size {
		return fmt.Errorf("%d bytes, asked for were %d", d.Size, size)
	}
	return errors.Join(w.checkReleased(), w.checkStructure())
}

// deleteAll: nothing is left of the disk.
func (w *world) deleteAll() error {
	if err := w.vols.Delete(ctx, w.id()); err != nil {
		return err
	}
	if err := w.vols.Delete(ctx, w.id()); err != nil {
		return fmt.Errorf("again: %w", err)
	}
	if _, err := w.vols.Get(ctx, w.id()); !errors.Is(err, fault.NotFound) {
		return fmt.Errorf("get: %w", err)
	}
	root := w.fs.Root()
	for _, sub := range []string{"names", "volumes"} {
		d, err := root.Sub(sub)
		if err != nil {
			return err
		}
		names, err := d.List()
		if err := errors.Join(err, d.Close()); err != nil {
			return err
		}
		if len(names) > 0 {
			return fmt.Errorf("%s still holds %v", sub, names)
		}
	}
	return nil
}
