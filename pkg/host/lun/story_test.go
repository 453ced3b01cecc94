package lun_test

import (
	"bytes"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/hosttest"
	"github.com/vmdk-csi/vmdk-csi/pkg/remote"
)

// create makes a disk that can be mapped.
func (m *machine) create(name string) host.Disk {
	t := m.r.t
	t.Helper()
	d, err := m.Create(t.Context(), host.DiskSpec{Name: name, Datastore: "lun", Size: 8 * mib, Format: host.EagerZeroedThick})
	must(t, err)
	return d
}

func (m *machine) attach(id string) (host.Attachment, *worker) {
	m.r.t.Helper()
	t, ok := m.r.t.(*testing.T)
	if !ok {
		m.r.t.Fatal("attach in a benchmark")
	}
	a, err := m.Attach(t.Context(), host.AttachRequest{ID: id, Transport: "san:hotadd:nbd"}, hosttest.NoKernel(t, id).Device())
	must(t, err)
	return a, m.disk(id)
}

func (m *machine) detach(id string) {
	m.r.t.Helper()
	must(m.r.t, m.Detach(m.r.t.Context(), id))
}

// transport is how the disk is reached now.
func (m *machine) transport(id string) string {
	list, err := m.Attachments(m.r.t.Context())
	must(m.r.t, err)
	for _, a := range list {
		if a.ID == id {
			return a.Transport
		}
	}
	return ""
}

func pattern(seed byte, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = seed + byte(i%251)
	}
	return p
}

func write(t testing.TB, w *worker, off int64, seed byte) {
	t.Helper()
	_, err := w.WriteAt(pattern(seed, 8192), off)
	must(t, err)
}

func check(t testing.TB, w *worker, off int64, seed byte) {
	t.Helper()
	p := make([]byte, 8192)
	_, err := w.ReadAt(p, off)
	must(t, err)
	if !bytes.Equal(p, pattern(seed, len(p))) {
		t.Fatalf("at %d: %x..., want %x...", off, p[:4], pattern(seed, 4))
	}
}

// What one node writes on the LUN another reads, with the metadata server on a third; each has it alone.
func TestTwoNodes(t *testing.T) {
	r := newRig(t)
	r.start("mds").serve()
	a, b := r.start("node-a"), r.start("node-b")
	d := a.create("x")
	att, w := a.attach(d.ID)
	if att.Transport != remote.SAN || att.Datastore != "lun" || len(att.Skipped) != 0 {
		t.Fatalf("%+v", att)
	}
	write(t, w, 0, 1)
	write(t, w, 5*mib+512, 2)
	_, err := b.Attach(t.Context(), host.AttachRequest{ID: d.ID}, hosttest.NoKernel(t, d.ID).Device())
	if !errors.Is(err, fault.InUse) || !strings.Contains(err.Error(), "node-a") {
		t.Fatalf("attach of another node's disk: %v", err)
	}
	kind(t, b.Delete(t.Context(), d.ID), fault.InUse, "delete of another node's disk")
	if got, err := b.Get(t.Context(), d.ID); err != nil || len(got.Attachments) != 1 || got.Attachments[0].Host != "node-a" {
		t.Fatalf("%+v %v", got.Attachments, err)
	}
	a.detach(d.ID)
	att, w = b.attach(d.ID)
	check(t, w, 0, 1)
	check(t, w, 5*mib+512, 2)
	if att.Transport != remote.SAN {
		t.Fatalf("%+v", att)
	}
	b.detach(d.ID)
	must(t, b.Delete(t.Context(), d.ID))
}

// Any number of nodes read a disk at once, by maps of their own, and nobody writes it meanwhile.
func TestReaders(t *testing.T) {
	r := newRig(t)
	r.start("mds").serve()
	a, b := r.start("node-a"), r.start("node-b")
	d := a.create("x")
	_, w := a.attach(d.ID)
	write(t, w, mib, 7)
	a.detach(d.ID)
	for _, m := range []*machine{a, b} {
		att, err := m.Attach(t.Context(), host.AttachRequest{ID: d.ID, ReadOnly: true}, hosttest.NoKernel(t, d.ID).Device())
		if err != nil || att.Epoch != 0 || att.Transport != remote.SAN {
			t.Fatalf("%+v %v", att, err)
		}
		check(t, m.disk(d.ID), mib, 7)
	}
	a.detach(d.ID)
	check(t, b.disk(d.ID), mib, 7)
	_, err := a.Attach(t.Context(), host.AttachRequest{ID: d.ID}, hosttest.NoKernel(t, d.ID).Device())
	kind(t, err, fault.InUse, "attach for writing beside a reader")
	b.detach(d.ID)
	_, w = a.attach(d.ID)
	check(t, w, mib, 7)
	a.detach(d.ID)
}

// writer writes until it is told to stop, and checks that everything it was told is written is there.
type writer struct {
	t    testing.TB
	w    *worker
	stop chan struct{}
	wg   sync.WaitGroup
	n    int
	done atomic.Int64 // writes
}

func writing(t testing.TB, w *worker) *writer {
	x := &writer{t: t, w: w, stop: make(chan struct{})}
	x.wg.Go(func() {
		for ; ; x.n++ {
			select {
			case <-x.stop:
				return
			default:
			}
			if _, err := w.WriteAt(pattern(byte(x.n), 4096), x.at(x.n)); err != nil {
				t.Errorf("write %d: %v", x.n, err)
				return
			}
			x.done.Add(1)
		}
	})
	return x
}

// at spreads writes over the second half of the disk, each place again and again.
func (x *writer) at(n int) int64 { return 4*mib + int64(n*37%1000)*4096 }

// end stops the writer, when it has written something at all, and compares the last thousand places.
func (x *writer) end() {
	x.t.Helper()
	eventually(x.t, "writes", func() bool { return x.done.Load() >= 50 || x.t.Failed() })
	close(x.stop)
	x.wg.Wait()
	p := make([]byte, 4096)
	for n := max(0, x.n-1000); n < x.n; n++ {
		if _, err := x.w.ReadAt(p, x.at(n)); err != nil || !bytes.Equal(p, pattern(byte(n), 4096)) {
			x.t.Errorf("write %d of %d at %d is lost: %x (%v)", n, x.n, x.at(n), p[:4], err)
			return
		}
	}
}

// A snapshot turns a disk that is written from its LUN to NBD, and consolidation turns it back; it grows; its snapshot and a clone
// have what they should.
func TestSnapshotTurnsToNBD(t *testing.T) {
	r := newRig(t)
	r.start("mds").serve()
	a, b := r.start("node-a"), r.start("node-b")
	d := a.create("x")
	_, w := a.attach(d.ID)
	write(t, w, 0, 1)
	x := writing(t, w)
	snap, err := b.CreateSnapshot(t.Context(), host.SnapshotSpec{Name: "s", Disk: d.ID})
	must(t, err)
	eventually(t, "the disk is reached by NBD", func() bool { return a.transport(d.ID) == remote.NBD })
	eventually(t, "it is told why SAN is not used", func() bool {
		list, err := a.Attachments(t.Context())
		must(t, err)
		s := list[0].Skipped
		return len(s) == 2 && s[0].Transport == remote.SAN && strings.Contains(s[0].Reason, "has snapshots") && s[1].Transport == "hotadd"
	})
	write(t, w, 0, 2)
	c, err := b.Create(t.Context(), host.DiskSpec{Name: "clone", Datastore: "lun", Size: 8 * mib, Source: &host.Source{Snapshot: snap.ID}})
	must(t, err)
	_, wc := b.attach(c.ID)
	check(t, wc, 0, 1)
	write(t, wc, 0, 3)
	check(t, w, 0, 2)
	b.detach(c.ID)
	must(t, b.Delete(t.Context(), c.ID))
	if _, err := b.Expand(t.Context(), d.ID, 16*mib); err != nil {
		t.Fatal(err)
	}
	if g, err := a.Grown(t.Context(), d.ID); err != nil || g.Size != 16*mib {
		t.Fatalf("%+v %v", g, err)
	}
	write(t, w, 12*mib, 4)
	must(t, b.DeleteSnapshot(t.Context(), snap.ID))
	eventually(t, "the disk is reached by its LUN again", func() bool { return a.transport(d.ID) == remote.SAN })
	x.end()
	check(t, w, 0, 2)
	check(t, w, 12*mib, 4)
	if _, err := b.Expand(t.Context(), d.ID, 24*mib); err != nil {
		t.Fatal(err)
	}
	if g, err := a.Grown(t.Context(), d.ID); err != nil || g.Size != 24*mib {
		t.Fatalf("%+v %v", g, err)
	}
	write(t, w, 20*mib, 5)
	a.detach(d.ID)
	_, w = b.attach(d.ID)
	for off, seed := range map[int64]byte{0: 2, 12 * mib: 4, 20 * mib: 5} {
		check(t, w, off, seed)
	}
	b.detach(d.ID)
}

// The metadata server dies while disks are written, one by its LUN and one, with a snapshot, over NBD: another machine takes over,
// nobody hears of an error, and nothing that was answered is lost. Before the nodes have come back it gives their disks to nobody, and
// what changes a disk finds the map that is out.
func TestServerDies(t *testing.T) {
	r := newRig(t)
	first, second, a, b := r.start("mds-1"), r.start("mds-2"), r.start("node-a"), r.start("node-b")
	first.serve()
	x, y := a.create("x"), a.create("y")
	snap, err := b.CreateSnapshot(t.Context(), host.SnapshotSpec{Name: "s", Disk: y.ID})
	must(t, err)
	_, wx := a.attach(x.ID)
	_, wy := a.attach(y.ID)
	if tx, ty := a.transport(x.ID), a.transport(y.ID); tx != remote.SAN || ty != remote.NBD {
		t.Fatalf("reached by %s and %s", tx, ty)
	}
	writers := []*writer{writing(t, wx), writing(t, wy)}
	for round, m := range []*machine{first, second} {
		next := []*machine{second, r.start("mds-3")}[round]
		go m.kill()
		next.serve()
		if got := next.serves(); len(got) != 2 {
			t.Fatalf("round %d: the next server knows of %v", round, got)
		}
		_, err := b.Attach(t.Context(), host.AttachRequest{ID: x.ID}, hosttest.NoKernel(t, x.ID).Device())
		kind(t, err, fault.InUse, "attach of another node's disk")
		kind(t, b.Delete(t.Context(), y.ID), fault.InUse, "delete of another node's disk")
		write(t, wx, int64(round)*8192, byte(10+round))
		write(t, wy, int64(round)*8192, byte(20+round))
	}
	eventually(t, "a snapshot of the mapped disk", func() bool { // whose map may be out until its lease is over
		_, err := b.CreateSnapshot(t.Context(), host.SnapshotSpec{Name: "t", Disk: x.ID})
		return err == nil
	})
	write(t, wx, 4096*4, 30)
	for _, w := range writers {
		w.end()
	}
	must(t, b.DeleteSnapshot(t.Context(), snap.ID), b.DeleteSnapshot(t.Context(), host.SnapshotID("t")))
	eventually(t, "both disks are reached by the LUN again", func() bool { return a.transport(x.ID) == remote.SAN && a.transport(y.ID) == remote.SAN })
	a.detach(x.ID)
	a.detach(y.ID)
	_, wx = b.attach(x.ID)
	_, wy = b.attach(y.ID)
	check(t, wx, 8192, 11)
	check(t, wx, 4096*4, 30)
	check(t, wy, 0, 20)
	check(t, wy, 8192, 21)
	b.detach(x.ID)
	b.detach(y.ID)
}
