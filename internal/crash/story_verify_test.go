package crash

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx/sim"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/volume"
)

// judgeGrove starts a host on what a crash left and judges it by the deeds before: names, every snapshot by restoring it,
// every disk by using it, and that all of it can be deleted, in an order that the seed decides.
func judgeGrove(cut *sim.FS, typ host.DiskType, boot string) error {
	l := told(cut.Events())
	g, err := plant(cut, typ, boot)
	if err != nil {
		return fmt.Errorf("open the datastore: %w", err)
	}
	defer g.die()
	if err := g.checkNamesOf(l); err != nil {
		return err
	}
	names, snaps := l.names()
	for _, name := range names {
		if err := g.useDisk(l, name); err != nil {
			return fmt.Errorf("disk %s: %w", name, err)
		}
	}
	for _, name := range snaps {
		if err := g.usePoint(l, name); err != nil {
			return fmt.Errorf("snapshot %s: %w", name, err)
		}
	}
	return g.clear(l)
}

// useDisk uses a disk through one life.
func (g *grove) useDisk(l *ledger, name string) error {
	p := l.disks[name]
	d, err := g.vols.Get(ctx, host.DiskID(name))
	if (errors.Is(err, fault.NotFound) || err == nil && d.Phase == host.Retired) && p.there != present {
		return nil
	}
	if err != nil {
		return err
	}
	write := func(off, n int64, stamp byte) func() error {
		return func() error {
			d := deed{op: "write", disk: name, off: off, n: n, stamp: stamp}
			if err := g.put(name, g.open[name], off, n, stamp); err != nil {
				return err
			}
			p.write(d)
			d.done = true
			p.write(d)
			return nil
		}
	}
	content := func() error { return g.checkDisk(p, name) }
	attach := func() error { _, err := g.attach(name); return err }
	detach := func() error { return g.detach(name) }
	flushed := func() error { l.add(deed{op: "flush", done: true, disk: name}); return nil }
	return inOrder([]step{
		{"released state (I3)", func() error { return g.checkReleased(name) }},
		{"attach", attach},
		{"unreferenced files (I6)", func() error { return g.checkFiles(name) }},
		{"content (I2)", content},
		{"write", write(9*grain+sector, 2*sector, 99)},
		{"discard", write(5*grain, grain, 0)},
		{"detach", detach},
		{"", flushed},
		{"structure (I1)", func() error { return g.checkStructure(name) }},
		{"released state (I3)", func() error { return g.checkReleased(name) }},
		{"attach again", attach},
		{"content after use (I2)", content},
		{"detach again", detach},
	})
}

// usePoint restores a snapshot and reads what it gives: exactly the content of its moment (I5).
func (g *grove) usePoint(l *ledger, name string) error {
	p := l.snaps[name]
	s, err := g.vols.GetSnapshot(ctx, host.SnapshotID(name))
	if errors.Is(err, fault.NotFound) && p.there != present {
		return nil
	}
	if err != nil {
		return err
	}
	if s.Size < p.size || s.Size > max(p.size, p.large) {
		return fmt.Errorf("%d bytes, promised were %d to %d", s.Size, p.size, p.large)
	}
	spec := g.spec("of-" + name)
	spec.Size, spec.Source = (s.Size+mib-1)/mib*mib, &host.Source{Snapshot: s.ID}
	if _, err := g.vols.CreateFrom(ctx, spec, nil); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	o, err := g.vols.OpenForAttach(ctx, host.DiskID(spec.Name), false)
	if err != nil {
		return fmt.Errorf("attach what was restored: %w", err)
	}
	d, err := g.serve(spec.Name, o, volume.Refs(o.Links), nil, false)
	if err != nil {
		return fmt.Errorf("open what was restored: %w", err)
	}
	if err := compare(d, spec.Size, p.cells); err != nil {
		return fmt.Errorf("I5: %w", err)
	}
	return g.detach(spec.Name)
}

// checkDisk reads every sector of an attached disk (I2), and takes what it reads as what it is from now on.
func (g *grove) checkDisk(p *volumePromise, name string) error {
	d := g.open[name]
	if n := d.Size(); n < p.size || n > max(p.size, p.growing) {
		return fmt.Errorf("%d bytes, promised were %d to %d", n, p.size, p.growing)
	}
	return compare(d, d.Size(), p.readable(), func(s int64, value byte) {
		if c := p.cells[s]; c != nil {
			*c = cell{values: []byte{value}}
		}
	})
}

// compare reads size bytes of d; sectors in want may have one of the values there, all others are zeros. sure, if given, is
// told what each sector is.
func compare(d io.ReaderAt, size int64, want map[int64][]byte, sure ...func(s int64, value byte)) error {
	pooled := buffers.Get().(*[]byte)
	defer buffers.Put(pooled)
	buf := (*pooled)[:size]
	if _, err := d.ReadAt(buf, 0); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	written := map[int64]bool{} // grains
	for s := range want {
		written[s*sector/grain] = true
	}
	for g := int64(0); g*grain < size; g++ {
		b := buf[g*grain : min((g+1)*grain, size)]
		if !written[g] && bytes.Equal(b, zeros[:len(b)]) {
			continue
		}
		for s := g * grain / sector; len(b) > 0; s, b = s+1, b[sector:] {
			allowed := want[s]
			if allowed == nil {
				allowed = zeros[:1]
			}
			whole := b[0] == b[sector-1] && bytes.Equal(b[:sector-1], b[1:sector])
			if !whole || !slices.Contains(allowed, b[0]) {
				return fmt.Errorf("sector %d (grain %d) reads %d (whole: %v), allowed are %v", s, g, b[0], whole, allowed)
			}
			for _, tell := range sure {
				tell(s, b[0])
			}
		}
	}
	return nil
}

// inDir runs check with the disk's manifest.
func (g *grove) inDir(name string, check func(vol *volumeDir) error) error {
	vol, err := g.store.OpenVolume(host.DiskID(name))
	if err != nil {
		return err
	}
	defer vol.Close()
	m, ok, err := vol.Latest()
	if err != nil || !ok {
		return fmt.Errorf("no manifest: %w", err)
	}
	return check(&volumeDir{vol, m})
}

// checkReleased: a released manifest says what the descriptors say (I3), unless it says itself that they may be behind.
func (g *grove) checkReleased(name string) error {
	return g.inDir(name, func(v *volumeDir) error {
		if !v.m.Released || v.m.Behind != "" {
			return nil
		}
		links, err := volume.VMDK{}.Inspect(ctx, v.Dir(), v.m.Links)
		if err != nil {
			return err
		}
		if !slices.EqualFunc(links, v.m.Links, sameLink) {
			return fmt.Errorf("the manifest %d-%d says %+v, the descriptors %+v", v.m.Epoch, v.m.Seq, v.m.Links, links)
		}
		return nil
	})
}

// checkFiles: after an attach there is nothing in the directory that the manifest does not name, and all that it names.
func (g *grove) checkFiles(name string) error {
	return g.inDir(name, func(v *volumeDir) error {
		names, err := v.Dir().List()
		if err != nil {
			return err
		}
		return v.compareFiles(names)
	})
}

// checkStructure: tables and files of every link are sound (I1).
func (g *grove) checkStructure(name string) error {
	return g.inDir(name, func(v *volumeDir) error {
		for _, l := range v.m.Links {
			if err := sound(v.Dir(), l.Descriptor); err != nil {
				return fmt.Errorf("%s: %w", l.Descriptor, err)
			}
		}
		return nil
	})
}

// clear deletes every disk and snapshot that is there or was asked for, in some order; then nothing is left.
func (g *grove) clear(l *ledger) error {
	ids := map[string]func() error{} // by name
	names, snaps := l.names()
	for _, name := range names {
		ids[name] = func() error { return g.vols.Delete(ctx, host.DiskID(name)) }
	}
	for _, name := range snaps {
		ids[name] = func() error { return g.vols.DeleteSnapshot(ctx, host.SnapshotID(name)) }
		ids["of-"+name] = func() error { return g.vols.Delete(ctx, host.DiskID("of-"+name)) }
	}
	order := slices.Sorted(maps.Keys(ids))
	rand.New(rand.NewPCG(uint64(seed), uint64(len(ids)))).Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	for _, name := range order {
		if err := ids[name](); err != nil {
			return fmt.Errorf("delete %s in the order %v: %w", name, order, err)
		}
	}
	return g.checkEmpty()
}

func (g *grove) checkEmpty() error {
	for _, sub := range []string{"names", "volumes"} {
		d, err := g.root.Sub(sub)
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
