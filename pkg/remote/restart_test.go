package remote_test

import (
	"context"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/remote"
	"github.com/vmdk-csi/vmdk-csi/pkg/san"
)

// The server dies and another one takes its place, elsewhere, while NBD serves: a pause. The disk is a sparse one, whose owner loses with
// its process what it has not flushed; a thin disk has no block maps.
func TestServerDiesUnderNBD(t *testing.T) {
	r := newRig(t)
	d, err := r.api("mds").Create(ctx, host.DiskSpec{Name: "v", Datastore: "lun", Size: diskSize, Format: host.Thin, Type: host.TwoGbMaxExtentSparse})
	must(t, err)
	c, _ := r.config(d.ID, "node1")
	disk := r.open(c)
	if s := disk.State(); s.Transport != remote.NBD || len(s.Skipped) != 1 || s.Skipped[0].Reason.Kind != fault.Precondition {
		t.Fatalf("a thin disk: %+v", s)
	}
	l := startLoad(t, disk)
	for range 3 {
		l.more(200)
		r.kill()
		r.start()
	}
	l.more(200)
	l.finish(disk)
	must(t, disk.Close(), r.api("node1").CloseVolume(ctx, d.ID))
	r.stored(d.ID, l.want)
}

// The owner loses the disk and opens it anew, in the process in which it was: what it had acknowledged and not flushed is sent again.
func TestOwnerReopens(t *testing.T) {
	r := newRig(t)
	d, err := r.api("mds").Create(ctx, host.DiskSpec{Name: "v", Datastore: "lun", Size: diskSize, Format: host.Thin, Type: host.TwoGbMaxExtentSparse})
	must(t, err)
	c, _ := r.config(d.ID, "node1")
	disk := r.open(c)
	l := startLoad(t, disk)
	for range 5 {
		l.more(100)
		must(t, r.mds.lose(d.ID))
	}
	l.more(100)
	l.finish(disk)
	must(t, disk.Close(), r.api("node1").CloseVolume(ctx, d.ID))
	r.stored(d.ID, l.want)
}

// The server dies while a map is out: the node does not even pause, the successor has the disk open and gets the map back when it needs it.
func TestServerDiesUnderSAN(t *testing.T) {
	r := newRigWith(t, san.Config{Lease: 4 * time.Second, MaxIO: time.Second, Margin: 100 * time.Millisecond})
	id := r.create("v", host.EagerZeroedThick)
	c, _ := r.config(id, "node1")
	d := r.open(c)
	r.becomes(d, remote.SAN)
	l := startLoad(t, d)
	api := r.api("mds")
	for range 2 {
		l.more(200)
		r.kill()
		l.more(200)
		if s := d.State(); s.Transport != remote.SAN {
			t.Errorf("without a server: %+v", s)
		}
		r.start()
		until(t, "the successor has the disk open", func() bool { return r.mds.has(id) })
		if _, err := r.api("node2").OpenVolume(ctx, id, false); fault.KindOf(err) != fault.InUse {
			t.Errorf("another node opens it: %v", err)
		}
		begin := time.Now()
		snap, err := api.CreateSnapshot(ctx, host.SnapshotSpec{Name: "s", Disk: id})
		must(t, err)
		if took := time.Since(begin); took > time.Second {
			t.Errorf("a recall by the successor took %v", took)
		}
		r.becomes(d, remote.NBD)
		l.more(100)
		must(t, api.DeleteSnapshot(ctx, snap.ID), r.mds.consolidate(ctx, id))
		r.becomes(d, remote.SAN)
	}
	l.finish(d)
	must(t, d.Close(), r.api("node1").CloseVolume(ctx, id))
	r.stored(id, l.want)
}

// The server is away for longer than the lease: requests wait, and go on by NBD when there is one again.
func TestLeaseEnds(t *testing.T) {
	r := newRigWith(t, san.Config{Lease: 500 * time.Millisecond, MaxIO: 100 * time.Millisecond, Margin: 10 * time.Millisecond})
	id := r.create("v", host.EagerZeroedThick)
	c, told := r.config(id, "node1")
	d := r.open(c)
	r.becomes(d, remote.SAN)
	l := startLoad(t, d)
	l.more(100)
	r.kill()
	last, since := int64(-1), time.Now()
	until(t, "requests wait", func() bool {
		if now := l.ops.Load(); now != last {
			last, since = now, time.Now()
		}
		return time.Since(since) > 300*time.Millisecond
	})
	r.start()
	l.more(100)
	nbd := false
	for _, s := range told.list() {
		nbd = nbd || s.Transport == remote.NBD
	}
	if !nbd {
		t.Errorf("it went on by SAN after its lease: %+v", told.list())
	}
	r.becomes(d, remote.SAN)
	l.more(100)
	l.finish(d)
	must(t, d.Close(), r.api("node1").CloseVolume(ctx, id))
	r.stored(id, l.want)
}

// badLUN fails when it is told to.
type badLUN struct {
	fsx.File
	bad *atomic.Int32 // errors of which requests: 1 reads, 2 writes, 4 flushes
}

func (b badLUN) fails(what int32) error {
	if b.bad.Load()&what != 0 {
		return syscall.EIO
	}
	return nil
}

func (b badLUN) ReadAt(p []byte, off int64) (int, error) {
	if err := b.fails(1); err != nil {
		return 0, err
	}
	return b.File.ReadAt(p, off)
}

func (b badLUN) WriteAt(p []byte, off int64) (int, error) {
	if err := b.fails(2); err != nil {
		return len(p) / 2, err
	}
	return b.File.WriteAt(p, off)
}

func (b badLUN) Zero(off, n int64) error {
	if err := b.fails(2); err != nil {
		return err
	}
	return b.File.Zero(off, n)
}

func (b badLUN) Datasync() error {
	if err := b.fails(4); err != nil {
		return err
	}
	return b.File.Datasync()
}

// The path to the LUN fails: NBD serves, and nobody sees an error. It works again: SAN serves.
func TestLUNFails(t *testing.T) {
	r := newRig(t)
	id := r.create("v", host.EagerZeroedThick)
	c, _ := r.config(id, "node1")
	bad := &atomic.Int32{}
	open := c.OpenLUN
	c.OpenLUN = func(ctx context.Context, l san.LUN) (fsx.File, error) {
		f, err := open(ctx, l)
		return badLUN{f, bad}, err
	}
	d := r.open(c)
	l := startLoad(t, d)
	for _, what := range []int32{1, 2, 4, 7} {
		r.becomes(d, remote.SAN)
		l.more(100)
		bad.Store(what)
		if what&1 == 0 { // who can be read is tried again at once
			l.more(100)
		} else {
			r.becomes(d, remote.NBD)
			if s := d.State().Skipped; len(s) != 1 || s[0].Reason == nil {
				t.Errorf("errors %d: %+v", what, s)
			}
		}
		l.more(100)
		bad.Store(0)
	}
	r.becomes(d, remote.SAN)
	l.finish(d)
	must(t, d.Close(), r.api("node1").CloseVolume(ctx, id))
	r.stored(id, l.want)
}

// The LUN is hidden from the node, or another one is there: NBD serves, and the reason is told.
func TestLUNHidden(t *testing.T) {
	r, other := newRig(t), newRig(t)
	id := r.create("v", host.EagerZeroedThick)
	c, _ := r.config(id, "node1")
	var see atomic.Int32
	open, wrong := c.OpenLUN, func() (fsx.File, error) { return fsx.OpenDevice(other.path, fsx.ReadWrite|fsx.Direct) }
	c.OpenLUN = func(ctx context.Context, l san.LUN) (fsx.File, error) {
		switch see.Load() {
		case 0:
			return nil, fault.New(fault.NotFound, "", "no LUN of store %s is here", l.Store)
		case 1:
			return wrong()
		}
		return open(ctx, l)
	}
	d := r.open(c)
	if s := d.State(); s.Transport != remote.NBD || len(s.Skipped) != 1 || s.Skipped[0].Reason.Kind != fault.NotFound {
		t.Fatalf("a hidden LUN: %+v", s)
	}
	l := startLoad(t, d)
	l.more(50)
	see.Store(1)
	until(t, "the wrong LUN is told", func() bool { return d.State().Skipped[0].Reason.Kind == fault.Precondition })
	l.more(50)
	see.Store(2)
	r.becomes(d, remote.SAN)
	l.more(50)
	l.finish(d)
}
