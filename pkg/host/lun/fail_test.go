package lun_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/hosttest"
	"github.com/vmdk-csi/vmdk-csi/pkg/remote"
)

// A store whose sync fails is opened anew by the same owner. Who writes a disk, by the LUN or over NBD, hears of no error, and what was not
// durable is written again; only who made something meanwhile hears of it.
func TestStoreFails(t *testing.T) {
	r := newRig(t)
	mds, a := r.start("mds"), r.start("node-a")
	mds.serve()
	d := a.create("x")
	_, w := a.attach(d.ID)
	thin, err := a.Create(t.Context(), host.DiskSpec{Name: "thin", Datastore: "lun", Size: 8 * mib})
	must(t, err)
	_, v := a.attach(thin.ID)
	x, y := writing(t, w), writing(t, v)
	before := mds.server()
	n := 0
	eventually(t, "the store is opened anew", func() bool {
		s, err := mds.owner.Server()
		mds.failSync.Store(err == nil && s == before) // the next sync may be one of the lease's beats, which is no failure of the store
		if s == before {
			_, _ = a.Create(t.Context(), host.DiskSpec{Name: fmt.Sprint("y", n), Datastore: "lun", Size: mib})
			n++
		}
		return err == nil && s != before
	})
	mds.failSync.Store(false)
	write(t, w, 0, 1)
	x.end()
	y.end()
	a.detach(thin.ID)
	must(t, a.Detach(t.Context(), d.ID))
	_, w = a.attach(d.ID)
	check(t, w, 0, 1)
	a.detach(d.ID)
	if _, err := a.Create(t.Context(), host.DiskSpec{Name: "z", Datastore: "lun", Size: mib}); err != nil {
		t.Fatal(err)
	}
}

// What a holder brings back is served only if the disk is its node's still.
func TestStaleHolders(t *testing.T) {
	r := newRig(t)
	r.start("mds").serve()
	a, b := r.start("node-a"), r.start("node-b")
	d := a.create("x")
	_, w := a.attach(d.ID)
	write(t, w, 0, 1)
	held, err := a.Sync(t.Context(), nil)
	if err != nil || len(held) != 1 || held[0].Attachment.Datastore != "lun" {
		t.Fatalf("%+v %v", held, err)
	}
	defer host.CloseAll(held)
	must(t, w.Close())
	a.hostd() // its hostd was killed
	kind(t, a.Delete(t.Context(), d.ID), fault.InUse, "delete before the holder came")
	got, err := a.Sync(t.Context(), held)
	if err != nil || len(got) != 1 || got[0].Attachment.Restarts != 1 || got[0].Attachment.Slot != held[0].Attachment.Slot {
		t.Fatalf("adopted %+v %v", got, err)
	}
	host.CloseAll(got)
	check(t, a.disk(d.ID), 0, 1)
	a.detach(d.ID)
	if got, err = a.Sync(t.Context(), held); err != nil || len(got) != 0 {
		t.Fatalf("of a disk that was detached: %+v %v", got, err)
	}
	b.attach(d.ID)
	if got, err = a.Sync(t.Context(), held); err != nil || len(got) != 0 {
		t.Fatalf("of another node's disk: %+v %v", got, err)
	}
	b.detach(d.ID)
	_, err = a.Attach(t.Context(), host.AttachRequest{ID: d.ID, Transport: "sneakernet"}, hosttest.NoKernel(t, d.ID).Device())
	kind(t, err, fault.Invalid, "an unknown transport")
}

// Handover gives every disk to the successor; what it cannot give is served on.
func TestHandover(t *testing.T) {
	r := newRig(t)
	r.start("mds").serve()
	a := r.start("node-a")
	x, y := a.create("x"), a.create("y")
	a.attach(x.ID)
	a.attach(y.ID)
	old := a.Host
	failure := fault.New(fault.Internal, "", "no memory")
	if err := old.Handover(t.Context(), func(h host.Held) error { h.Close(); return failure }); !errors.Is(err, fault.Internal) {
		t.Fatalf("a failed take-over: %v", err)
	}
	if list, err := old.Attachments(t.Context()); err != nil || len(list) != 2 {
		t.Fatalf("after a failed handover the old one has %+v %v", list, err)
	}
	a.hostd()
	must(t, old.Handover(t.Context(), func(h host.Held) error {
		defer h.Close()
		return a.Adopt(t.Context(), h)
	}))
	kind(t, old.Delete(t.Context(), x.ID), fault.Unavailable, "delete by the old one")
	for _, d := range []host.Disk{x, y} {
		write(t, a.disk(d.ID), 0, 5)
		check(t, a.disk(d.ID), 0, 5)
		if got := a.transport(d.ID); got != remote.SAN {
			t.Errorf("reached by %q", got)
		}
		a.detach(d.ID)
	}
}
