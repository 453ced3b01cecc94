package crash

import (
	"bytes"
	"context"
	"errors"
	"fmt"

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

const (
	mib      = 1 << 20
	grain    = 64 << 10
	diskName = "pvc-1"
)

var ctx = context.Background()

// world is one host with one datastore on which one disk lives.
type world struct {
	fs    *sim.FS
	typ   host.DiskType
	store *datastore.Datastore
	vols  *volume.Volumes
	disk  *attached
	step  int // operations run, for stamps and places
	stamp byte
	size  int64 // bytes, the capacity asked for last
}

// attached is the disk, open.
type attached struct {
	*chain.Chain
	fs      *sim.FS
	dir     fsx.Dir
	epoch   int64
	pending chain.Pending
}

// open starts a host on a file system; boot names its run of the machine.
func open(fs *sim.FS, typ host.DiskType, boot string) (*world, error) {
	store, err := datastore.Open(fs.Root(), datastore.Options{})
	if err != nil {
		return nil, err
	}
	w := &world{fs: fs, typ: typ, size: mib}
	w.use(store, boot)
	return w, nil
}

func (w *world) spec() host.DiskSpec {
	return host.DiskSpec{Name: diskName, Datastore: "ds", Size: mib, Format: host.Thin, Type: w.typ}
}

func (w *world) id() string { return host.DiskID(diskName) }

// do runs an operation by name.
func (w *world) do(op string) error {
	w.step++
	return map[string]func() error{
		"open": w.reopen, "create": w.create, "write": w.write, "flush": w.flush, "expand": w.expand, "delete": w.delete, "detach": w.detach,
	}[op]()
}

// reopen opens the datastore, which makes it if it is not there.
func (w *world) reopen() error {
	store, err := datastore.Open(w.fs.Root(), datastore.Options{})
	if err != nil {
		return err
	}
	w.use(store, "boot-1")
	w.fs.Mark(event{op: "open", done: true, uuid: store.UUID()})
	return nil
}

func (w *world) use(store *datastore.Datastore, boot string) {
	w.store = store
	w.vols = volume.New(volume.Config{
		Store: store, Name: "ds", Host: lease.Identity{Host: "node-1", BootID: boot}, Engine: engine{fs: w.fs},
	})
}

func (w *world) create() error {
	w.fs.Begin(event{op: "create", size: mib})
	d, err := w.vols.Create(ctx, w.spec())
	if err == nil {
		w.fs.Mark(event{op: "create", done: true, size: mib, uuid: d.UUID})
	}
	return err
}

// attach opens the disk as a worker does. Without a disk there is none, and no error.
func (w *world) attach() (*attached, error) {
	if w.disk != nil {
		return w.disk, nil
	}
	o, err := w.vols.OpenForAttach(ctx, w.id(), false)
	if errors.Is(err, fault.NotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := o.Dir.Close(); err != nil {
		return nil, err
	}
	dir, err := w.directory()
	if err != nil {
		return nil, err
	}
	if err := w.noteContent(dir); err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	pending := &chain.MemoryPending{}
	c, err := chain.Open(dir, volume.Refs(o.Links), chain.Options{Direct: true, Pending: pending, Format: vmdk.Thin, Locks: true})
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	w.disk = &attached{Chain: c, fs: w.fs, dir: dir, epoch: o.Epoch, pending: pending}
	return w.disk, nil
}

// noteContent notes the content ID under which the content now on disk is known.
func (w *world) noteContent(dir fsx.Dir) error {
	l, err := vmdk.Open(dir, "disk.vmdk", vmdk.Options{})
	if err != nil {
		return err
	}
	w.fs.Begin(event{op: "attach", cid: l.Info().CID})
	return l.Close()
}

// directory is the volume's directory, opened by name: sim hands no descriptors over.
func (w *world) directory() (fsx.Dir, error) {
	volumes, err := w.fs.Root().Sub("volumes")
	if err != nil {
		return nil, err
	}
	defer volumes.Close()
	return volumes.Sub(w.id())
}

// write changes sectors in the places where an implementation has to think: the start of a grain, a border between two,
// sectors written before, and a discard of a grain that has content.
func (w *world) write() error {
	d, err := w.attach()
	if err != nil || d == nil {
		return err
	}
	places := []struct{ off, n int64 }{
		{2*grain + int64(w.step)*sector, 3 * sector},
		{5*grain - 2*sector, 4 * sector},
		{int64(6+w.step) * grain, grain},
	}
	for _, p := range places {
		w.stamp++
		if err := w.put(d, p.off, p.n, w.stamp); err != nil {
			return err
		}
	}
	if w.step > 1 {
		return w.put(d, int64(5+w.step)*grain, grain, 0)
	}
	return nil
}

func (w *world) put(d *attached, off, n int64, stamp byte) error {
	w.fs.Begin(event{op: "write", off: off, n: n, stamp: stamp})
	var err error
	if stamp == 0 {
		err = d.Discard(off, n)
	} else {
		_, err = d.WriteAt(bytes.Repeat([]byte{stamp}, int(n)), off)
	}
	if err == nil {
		// Acknowledged only: a power loss may still take it, so no state has to be looked at again.
		w.fs.Begin(event{op: "write", done: true, off: off, n: n, stamp: stamp})
	}
	return err
}

func (w *world) flush() error {
	d, err := w.attach()
	if err != nil || d == nil {
		return err
	}
	if err := d.Flush(); err != nil {
		return err
	}
	w.fs.Mark(event{op: "flush", done: true})
	return nil
}

func (w *world) expand() error {
	size := w.size + mib
	w.fs.Begin(event{op: "expand", size: size})
	var server volume.Grower
	if w.disk != nil {
		server = w.disk
	}
	_, err := w.vols.Expand(ctx, w.id(), size, server)
	if errors.Is(err, fault.NotFound) {
		w.fs.Mark(event{op: "delete", done: true}) // there is nothing that could have grown
		return nil
	}
	if err == nil {
		w.size = size
		w.fs.Mark(event{op: "expand", done: true, size: size})
	}
	return err
}

func (w *world) detach() error {
	d := w.disk
	if d == nil {
		return nil
	}
	w.disk = nil
	if err := errors.Join(d.Close(), d.dir.Close()); err != nil {
		return err
	}
	w.fs.Mark(event{op: "flush", done: true})
	return w.vols.Release(ctx, w.id(), d.epoch, false)
}

func (w *world) delete() error {
	if err := w.detach(); err != nil {
		return err
	}
	w.fs.Begin(event{op: "delete"})
	if err := w.vols.Delete(ctx, w.id()); err != nil {
		return err
	}
	w.size = mib
	w.fs.Mark(event{op: "delete", done: true})
	return nil
}

// die ends the process: memory is gone, files are closed, nothing is written.
func (w *world) die() {
	if w.disk != nil {
		_ = w.disk.Abandon()
		_ = w.disk.dir.Close()
		w.disk = nil
	}
	if w.store != nil {
		w.store.Close()
		w.store = nil
	}
}

// start is a world in which a sequence that begins with op makes sense: nothing before an open, an empty datastore
// before a create, else a disk that was used and released. From here on the file system records.
func start(typ host.DiskType, op string) (*world, error) {
	fs := sim.New(sim.Options{})
	if op == "open" {
		fs.Record()
		return &world{fs: fs, typ: typ, size: mib}, nil
	}
	w, err := open(fs, typ, "boot-1")
	if err != nil {
		return nil, err
	}
	before := []event{{op: "open", done: true, uuid: w.store.UUID()}}
	if op != "create" {
		made, err := w.prepare()
		if err != nil {
			return nil, fmt.Errorf("prepare: %w", err)
		}
		before = append(before, made...)
	}
	fs.Record()
	for _, e := range before {
		fs.Begin(e)
	}
	return w, nil
}

// prepare makes the disk that is there before, and what is promised about it.
func (w *world) prepare() ([]event, error) {
	made, err := w.vols.Create(ctx, w.spec())
	if err != nil {
		return nil, err
	}
	d, err := w.attach()
	if err != nil {
		return nil, err
	}
	const off, n, stamp = 5 * grain, grain, 200
	if _, err := d.WriteAt(bytes.Repeat([]byte{stamp}, n), off); err != nil {
		return nil, err
	}
	if err := w.detach(); err != nil {
		return nil, err
	}
	return []event{
		{op: "create", size: mib}, {op: "create", done: true, size: mib, uuid: made.UUID},
		{op: "write", off: off, n: n, stamp: stamp}, {op: "write", done: true, off: off, n: n, stamp: stamp},
		{op: "flush", done: true},
	}, nil
}
