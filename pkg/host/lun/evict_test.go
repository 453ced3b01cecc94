package lun_test

import (
	"context"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/hosttest"
	"github.com/vmdk-csi/vmdk-csi/pkg/remote"
	"github.com/vmdk-csi/vmdk-csi/pkg/san"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/iscsi/iscsitest"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/lunpath"
)

// silent is a node that got a map, wrote by it, and says nothing any more.
func (m *machine) silent(id string) (*san.Map, fsx.File, *san.Mapper) {
	t := m.r.t
	t.Helper()
	s := m.server()
	_, err := s.Open(t.Context(), id, "silent", false)
	must(t, err)
	sent := san.BootTime{}.Now()
	sm, err := s.Maps().Get(t.Context(), san.Request{Volume: id, Node: "silent", Mode: san.ReadWrite})
	must(t, err)
	f, _, err := lunpath.Open(t.Context(), m.r.path, lunpath.Options{ReadWrite: true}.Want(sm.LUNs[0]))
	must(t, err)
	t.Cleanup(func() { _ = f.Close() }) // its session may be cut off
	node, err := san.NewMapper(sm, san.MapperConfig{LUNs: []fsx.File{f}, Sent: sent})
	must(t, err)
	_, err = node.WriteAt(pattern(1, 8192), 0)
	must(t, err)
	return sm, f, node
}

// Without reservations a disk leaves a silent node when its map's time is over, not before, and whoever serves the LUN then.
func TestEvictByTime(t *testing.T) {
	r := newRig(t)
	first, second, a := r.start("mds-1"), r.start("mds-2"), r.start("node-a")
	first.serve()
	d := a.create("x")
	m, _, node := first.silent(d.ID)
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := a.Evict(short, d.ID, "silent"); err == nil {
		t.Fatal("evicted while its map may be used")
	}
	_, err := a.Attach(t.Context(), host.AttachRequest{ID: d.ID}, hosttest.NoKernel(t, d.ID).Device())
	kind(t, err, fault.InUse, "attach before it is over")
	_, err = first.server().Maps().Renew(t.Context(), m.Grant, m.Generation, m.Digest)
	kind(t, err, fault.NotFound, "a renewal by whom the disk is taken from")
	_, err = first.server().Open(t.Context(), d.ID, "silent", false)
	kind(t, err, fault.InProgress, "an attach there meanwhile")
	first.quit()
	second.serve()
	must(t, a.Evict(t.Context(), d.ID, "silent"), a.Evict(t.Context(), d.ID, "silent"))
	if _, err := node.WriteAt(pattern(9, 8192), 0); err == nil {
		t.Fatal("the silent node writes")
	}
	_, w := a.attach(d.ID)
	check(t, w, 0, 1)
	a.detach(d.ID)
	kind(t, a.Evict(t.Context(), d.ID, "node-a"), fault.Precondition, "eviction of the host that is asked")
	must(t, a.Delete(t.Context(), d.ID))
}

// With reservations it leaves at once: what the node sends later does not reach the LUN.
func TestEvictByReservation(t *testing.T) {
	r := newRigAt(t, iscsitest.New(t, 256*mib).URL())
	mds, a := r.start("mds"), r.start("node-a")
	mds.serve()
	d := a.create("x")
	m, f, _ := mds.silent(d.ID)
	begun := time.Now()
	must(t, a.Evict(t.Context(), d.ID, "silent"))
	t.Logf("evicted within %s; a map has %s", time.Since(begun), m.Lease)
	if _, err := f.WriteAt(pattern(9, 8192), m.Extents[0].Place); fault.KindOf(err) != fault.Fenced {
		t.Fatalf("the late write of a node that was cut off: %v", err)
	}
	_, w := a.attach(d.ID)
	check(t, w, 0, 1)
	a.detach(d.ID)
}

// A node that lives after all gets errors, also while nobody else has the disk, until its host attaches the disk anew.
func TestEvictLiving(t *testing.T) {
	for _, order := range []string{remote.NBD, remote.SAN + ":" + remote.NBD} {
		t.Run(order, func(t *testing.T) {
			r := newRig(t)
			r.start("mds").serve()
			a, b := r.start("node-a"), r.start("node-b")
			d := a.create("x")
			attach := func() *worker {
				_, err := b.Attach(t.Context(), host.AttachRequest{ID: d.ID, Transport: order}, hosttest.NoKernel(t, d.ID).Device())
				must(t, err)
				return b.disk(d.ID)
			}
			w := attach()
			write(t, w, 0, 1)
			must(t, w.Flush(), a.Evict(t.Context(), d.ID, "node-b"))
			refused := func() {
				t.Helper()
				if _, err := w.WriteAt(pattern(9, 8192), 0); fault.KindOf(err) != fault.Fenced {
					t.Fatalf("a write of the node that lost the disk: %v", err)
				}
			}
			refused()
			_, mine := a.attach(d.ID)
			check(t, mine, 0, 1)
			write(t, mine, 0, 2)
			refused()
			a.detach(d.ID)
			refused()
			_ = b.Detach(t.Context(), d.ID) // it says what is lost
			w = attach()
			check(t, w, 0, 2)
			b.detach(d.ID)
		})
	}
}
