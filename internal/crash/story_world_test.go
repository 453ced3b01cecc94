package crash

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx/sim"
	"github.com/vmdk-csi/vmdk-csi/pkg/datastore"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/lease"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
	"github.com/vmdk-csi/vmdk-csi/pkg/volume"
)

// grove is one host with one datastore on which several disks and their snapshots live.
type grove struct {
	fs    *sim.FS
	root  fsx.Dir  // of the datastore: fs's, or that of a store on the file "lun" of fs
	lun   fsx.File // nil: none
	typ   host.DiskType
	store *datastore.Datastore
	vols  *volume.Volumes
	open  map[string]*served // attached disks, by name
	step  int
	stamp byte
}

// served is an attached disk: what a worker does, in this process.
type served struct {
	*chain.Chain
	dir     fsx.Dir
	epoch   int64
	pending chain.Pending
}

var _ volume.Server = (*served)(nil)

// Snapshot implements volume.Server.
func (s *served) Snapshot(ctx context.Context, child string, extentSize int64, commit func(parent, child *vmdk.Info) error) error {
	return s.Chain.Snapshot(ctx, chain.SnapshotParams{Child: child, ExtentSize: extentSize, Commit: commit})
}

// MergeCost implements volume.Server.
func (s *served) MergeCost(_ context.Context, lower int) (down, up int64, err error) {
	return s.Chain.MergeCost(lower)
}

// plant opens a datastore; boot names this run of the machine.
func plant(fs *sim.FS, typ host.DiskType, boot string) (*grove, error) {
	root, lun, err := rootOf(fs)
	if err != nil {
		return nil, err
	}
	store, err := datastore.Open(root, datastore.Options{})
	if err != nil {
		return nil, errors.Join(err, closeLUN(lun))
	}
	return &grove{fs: fs, root: root, lun: lun, typ: typ, store: store, open: map[string]*served{}, vols: volume.New(volume.Config{
		Store: store, Name: "ds", Host: lease.Identity{Host: "node-1", BootID: boot}, Engine: volume.VMDK{},
	})}, nil
}

func (g *grove) spec(name string) host.DiskSpec {
	return host.DiskSpec{Name: name, Datastore: "ds", Size: mib, Format: host.Thin, Type: g.typ}
}

// server is the worker of a disk that is attached; nil, and not a nil pointer, if it is not.
func (g *grove) server(name string) volume.Server {
	if s := g.open[name]; s != nil {
		return s
	}
	return nil
}

// do runs a step of a story: an operation and its arguments.
func (g *grove) do(step string) error {
	g.step++
	w := strings.Fields(step)
	arg := func(i int) string {
		if i < len(w) {
			return w[i]
		}
		return ""
	}
	switch w[0] {
	case "create":
		return g.create(arg(1))
	case "attach":
		_, err := g.attach(arg(1))
		return err
	case "write":
		return g.write(arg(1))
	case "flush":
		return g.flush(arg(1))
	case "detach":
		return g.detach(arg(1))
	case "snap":
		return g.snapshot(arg(1), arg(2))
	case "unsnap":
		return g.unsnapshot(arg(1))
	case "restore":
		return g.restore(arg(1), arg(2), arg(3) == "larger")
	case "clone":
		return g.clone(arg(1), arg(2), host.CloneMode(arg(3)))
	case "grow":
		return g.grow(arg(1))
	case "delete":
		return g.remove(arg(1))
	case "merge":
		return g.merge(arg(1), chain.Direction(arg(2)))
	}
	return fmt.Errorf("no step %q", step)
}

func (g *grove) create(name string) error {
	g.fs.Begin(deed{op: "create", disk: name, size: mib})
	_, err := g.vols.Create(ctx, g.spec(name))
	if err == nil {
		g.fs.Mark(deed{op: "create", done: true, disk: name, size: mib})
	}
	return err
}

// attach opens the disk as a worker does.
func (g *grove) attach(name string) (*served, error) {
	if s := g.open[name]; s != nil {
		return s, nil
	}
	o, err := g.vols.OpenForAttach(ctx, host.DiskID(name), false)
	if err != nil {
		return nil, err
	}
	return g.serve(name, o, volume.Refs(o.Links), &chain.MemoryPending{}, false)
}

func (g *grove) serve(name string, o *volume.Opened, refs []chain.Ref, pending chain.Pending, takeover bool) (*served, error) {
	if err := o.Dir.Close(); err != nil {
		return nil, err
	}
	dir, err := g.directory(name)
	if err != nil {
		return nil, err
	}
	c, err := chain.Open(dir, refs, chain.Options{Direct: true, Pending: pending, Takeover: takeover, Format: vmdk.Thin, Locks: true})
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	s := &served{Chain: c, dir: dir, epoch: o.Epoch, pending: pending}
	g.open[name] = s
	return s, nil
}

func (g *grove) directory(name string) (fsx.Dir, error) {
	volumes, err := g.root.Sub("volumes")
	if err != nil {
		return nil, err
	}
	defer volumes.Close()
	return volumes.Sub(host.DiskID(name))
}

// write changes sectors in the places where an implementation has to think: inside a grain that every step writes, across
// a border, a grain that only this step writes, and a discard of a grain that an earlier step wrote.
func (g *grove) write(name string) error {
	s, err := g.attach(name)
	if err != nil {
		return err
	}
	places := []struct{ off, n int64 }{
		{2*grain + int64(g.step%16)*sector, 2 * sector}, {5*grain - sector, 2 * sector}, {int64(6+g.step%8) * grain, sector},
	}
	for _, p := range places {
		g.stamp++
		if err := g.put(name, s, p.off, p.n, g.stamp); err != nil {
			return err
		}
	}
	return g.put(name, s, int64(6+(g.step+7)%8)*grain, grain, 0)
}

func (g *grove) put(name string, s *served, off, n int64, stamp byte) error {
	d := deed{op: "write", disk: name, off: off, n: n, stamp: stamp}
	g.fs.Begin(d)
	var err error
	if stamp == 0 {
		err = s.Discard(off, n)
	} else {
		_, err = s.WriteAt(bytes.Repeat([]byte{stamp}, int(n)), off)
	}
	if err == nil {
		// Acknowledged only: a power loss may still take it, so no state has to be looked at again.
		d.done = true
		g.fs.Begin(d)
	}
	return err
}

func (g *grove) flush(name string) error {
	s, err := g.attach(name)
	if err == nil {
		err = s.Flush()
	}
	if err == nil {
		g.fs.Mark(deed{op: "flush", done: true, disk: name})
	}
	return err
}

func (g *grove) detach(name string) error {
	s := g.open[name]
	if s == nil {
		return nil
	}
	delete(g.open, name)
	if err := errors.Join(s.Close(), s.dir.Close()); err != nil {
		return err
	}
	g.fs.Mark(deed{op: "flush", done: true, disk: name})
	return g.vols.Release(ctx, host.DiskID(name), s.epoch, false)
}

func (g *grove) snapshot(disk, name string) error {
	d := deed{op: "snapshot", disk: disk, snap: name}
	g.fs.Begin(d)
	_, err := g.vols.Snapshot(ctx, host.SnapshotSpec{Name: name, Disk: host.DiskID(disk)}, time.Time{}, g.server(disk))
	if err == nil {
		d.done = true
		g.fs.Mark(d)
	}
	return err
}

func (g *grove) unsnapshot(name string) error {
	d := deed{op: "unsnapshot", snap: name}
	g.fs.Begin(d)
	err := g.vols.DeleteSnapshot(ctx, host.SnapshotID(name))
	if err == nil {
		d.done = true
		g.fs.Mark(d)
	}
	return err
}

func (g *grove) restore(snap, disk string, larger bool) error {
	spec := g.spec(disk)
	spec.Source = &host.Source{Snapshot: host.SnapshotID(snap)}
	if larger {
		spec.Size = 3 * mib
	}
	return g.appear(spec, deed{op: "restore", snap: snap, disk: disk, size: spec.Size}, g.server(g.diskOf(snap)))
}

// diskOf is the disk of a snapshot: stories call them a1, a2, b1 ...
func (g *grove) diskOf(snap string) string { return snap[:1] }

func (g *grove) clone(from, disk string, mode host.CloneMode) error {
	spec := g.spec(disk)
	spec.Source, spec.CloneMode = &host.Source{Disk: host.DiskID(from)}, mode
	return g.appear(spec, deed{op: "clone", from: from, disk: disk, size: mib}, g.server(from))
}

func (g *grove) appear(spec host.DiskSpec, d deed, source volume.Server) error {
	g.fs.Begin(d)
	_, err := g.vols.CreateFrom(ctx, spec, source)
	if err == nil {
		d.done = true
		g.fs.Mark(d)
	}
	return err
}

func (g *grove) grow(name string) error {
	disk, err := g.vols.Get(ctx, host.DiskID(name))
	if err != nil {
		return err
	}
	d := deed{op: "expand", disk: name, size: disk.Size/mib*mib + mib}
	g.fs.Begin(d)
	if _, err = g.vols.Expand(ctx, host.DiskID(name), d.size, g.server(name)); err == nil {
		d.done = true
		g.fs.Mark(d)
	}
	return err
}

func (g *grove) remove(name string) error {
	if err := g.detach(name); err != nil {
		return err
	}
	d := deed{op: "delete", disk: name}
	g.fs.Begin(d)
	err := g.vols.Delete(ctx, host.DiskID(name))
	if err == nil {
		d.done = true
		g.fs.Mark(d)
	}
	return err
}

// merge consolidates until nothing is left to do, in one direction if one is given. Content does not change, so there is
// nothing to promise.
func (g *grove) merge(name string, dir chain.Direction) error {
	for range 2 * host.MaxLinks {
		r, err := g.vols.Consolidate(ctx, host.DiskID(name), volume.ConsolidateOptions{Direction: dir}, g.server(name))
		if err != nil || !r.Merged {
			return err
		}
	}
	return errors.New("consolidation does not end")
}

// die ends the process: memory is gone, files are closed, nothing is written.
func (g *grove) die() {
	for name, s := range g.open {
		_ = s.Abandon()
		_ = s.dir.Close()
		delete(g.open, name)
	}
	if g.store != nil {
		g.store.Close()
		g.store = nil
	}
	_ = closeLUN(g.lun) // the death of its owner: nothing is committed any more
	g.lun = nil
}

// story is steps of which the last one is judged; those before it are what it begins with.
type story struct {
	typ   host.DiskType
	lun   bool // the datastore is on a LUN
	steps []string
}

func (s story) String() string {
	on := ""
	if s.lun {
		on = " on a LUN"
	}
	return string(s.typ) + on + ": " + strings.Join(s.steps, ", ")
}

func (s story) last() string { return s.steps[len(s.steps)-1] }

// begin is a grove in which all steps but the last have happened; from there on the file system records.
func (s story) begin() (*grove, error) {
	fs := sim.New(sim.Options{})
	if s.lun {
		if err := makeLUN(fs); err != nil {
			return nil, err
		}
	}
	g, err := plant(fs, s.typ, "boot-1")
	if err != nil {
		return nil, err
	}
	// What was promised before is known from a recording of its own, which starts anew behind it.
	fs.Record()
	for i, step := range s.steps[:len(s.steps)-1] {
		if err := g.do(step); err != nil {
			g.die()
			return nil, fmt.Errorf("%s: step %d, %s: %w", s, i+1, step, err)
		}
	}
	return g, nil
}

// checkNamesOf compares what is listed with what must and may be there (I4).
func (g *grove) checkNamesOf(l *ledger) error {
	disks, _, err := g.vols.List(ctx, 0, "")
	if err != nil {
		return fmt.Errorf("list: %w", err)
	}
	found := map[string]bool{}
	for _, d := range disks {
		switch d.Phase {
		case host.Ready:
			found[d.ID] = true
		case host.Retired:
		default:
			return fmt.Errorf("disk %s is %s: %s", d.Spec.Name, d.Phase, d.Reason)
		}
	}
	names, snaps := l.names()
	for _, name := range names {
		if l.disks[name].there == present && !found[host.DiskID(name)] {
			return fmt.Errorf("I4: disk %s was promised and is gone", name)
		}
		delete(found, host.DiskID(name))
	}
	if len(found) > 0 {
		return fmt.Errorf("I4: disks %v are there that nobody asked for", found)
	}
	list, _, err := g.vols.ListSnapshots(ctx, "", 0, "")
	if err != nil {
		return fmt.Errorf("list snapshots: %w", err)
	}
	for _, s := range list {
		if !slices.Contains(snaps, s.Name) {
			return fmt.Errorf("I4: snapshot %s is there that nobody asked for", s.Name)
		}
	}
	for _, name := range snaps {
		has := slices.ContainsFunc(list, func(s host.Snapshot) bool { return s.Name == name })
		if l.snaps[name].there == present && !has {
			return fmt.Errorf("I4: snapshot %s was promised and is gone", name)
		}
		if _, err := g.vols.GetSnapshot(ctx, host.SnapshotID(name)); has != (err == nil) {
			return fmt.Errorf("snapshot %s: listed %v, get says: %w", name, has, err)
		}
		if !has && errors.Is(err, fault.Damaged) {
			return err
		}
	}
	return nil
}
