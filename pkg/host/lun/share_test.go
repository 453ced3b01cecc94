package lun_test

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/block"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/hosttest"
)

const everything = "san:hotadd:nbd"

// byNBD is a host that attaches by NBD alone: through itself, if it has the disk.
type byNBD struct{ *neighbour }

func (h byNBD) Attach(ctx context.Context, req host.AttachRequest, dev host.Device) (host.Attachment, error) {
	req.Transport = "nbd"
	return h.neighbour.Attach(ctx, req, dev)
}

func lent(t *testing.T) hosttest.Subject {
	v := newVillage(t)
	v.start("node-b", false)
	return hosttest.Subject{Host: byNBD{v.start("node-a", false)}, Node: "node-a", Datastore: "shared", OtherDatastore: "own",
		Session: hosttest.NoKernel, Transports: []string{"nbd"}}
}

func TestLentConforms(t *testing.T)         { hosttest.Run(t, lent) }
func TestLentSnapshotsConform(t *testing.T) { hosttest.RunSnapshots(t, lent) }

func (n *neighbour) create(datastore, name string) host.Disk {
	n.v.t.Helper()
	d, err := n.Create(n.v.t.Context(), host.DiskSpec{Name: name, Datastore: datastore, Size: 8 * mib})
	must(n.v.t, err)
	return d
}

func (n *neighbour) try(t *testing.T, id, order string) (host.Attachment, error) {
	t.Helper()
	return n.Attach(t.Context(), host.AttachRequest{ID: id, Transport: order}, hosttest.NoKernel(t, id).Device())
}

func (n *neighbour) attach(t *testing.T, id, order string) (host.Attachment, block.Device) {
	t.Helper()
	a, err := n.try(t, id, order)
	must(t, err)
	return a, n.disk(id)
}

func put(t testing.TB, d block.Device, off int64, seed byte) {
	t.Helper()
	_, err := d.WriteAt(pattern(seed, 8192), off)
	must(t, err)
}

func have(t testing.TB, d block.Device, off int64, seed byte) {
	t.Helper()
	p := make([]byte, 8192)
	_, err := d.ReadAt(p, off)
	must(t, err)
	if !bytes.Equal(p, pattern(seed, len(p))) {
		t.Fatalf("at %d: %x..., want %x...", off, p[:4], pattern(seed, 4))
	}
}

// A shared directory is hidden from one node: it attaches by NBD through the other, which attaches the disk itself when it is let go.
func TestHiddenDirectory(t *testing.T) {
	v := newVillage(t)
	a, b := v.start("node-a", true), v.start("node-b", false)
	d := b.create("shared", "x")
	_, err := a.try(t, d.ID, "san:hotadd")
	kind(t, err, fault.Unavailable, "NBD is not asked for")
	_, err = a.try(t, d.ID, "")
	kind(t, err, fault.Unavailable, "the default is hotadd alone")

	att, w := a.attach(t, d.ID, everything)
	if att.Transport != "nbd" || att.Datastore != "shared" || att.Host != "node-a" || att.Epoch < 1 || len(att.Skipped) != 2 {
		t.Fatalf("%+v", att)
	}
	if s := att.Skipped; s[0].Transport != "san" || s[0].Kind != fault.Unsupported || s[1].Transport != "hotadd" || s[1].Kind != fault.Unavailable {
		t.Fatalf("skipped: %+v", s)
	}
	put(t, w, 0, 1)
	put(t, w, 5*mib+512, 2)

	// Node b lends it, and does not have it.
	if list, err := b.Attachments(t.Context()); err != nil || len(list) != 0 {
		t.Fatalf("attachments of who lends: %+v %v", list, err)
	}
	if held, err := b.Sync(t.Context(), nil); err != nil || len(held) != 0 {
		t.Fatalf("sync of who lends: %+v %v", held, err)
	}
	if got, err := b.Get(t.Context(), d.ID); err != nil || len(got.Attachments) != 1 || got.Attachments[0].Host != "node-a" {
		t.Fatalf("%+v %v", got.Attachments, err)
	}
	_, err = b.try(t, d.ID, everything)
	kind(t, err, fault.InUse, "attach of a disk that is lent")
	kind(t, b.Delete(t.Context(), d.ID), fault.InUse, "delete a disk that is lent")
	must(t, b.Detach(t.Context(), d.ID)) // not attached there
	have(t, w, 0, 1)

	// Snapshots and growth go to who has the files.
	_, err = a.CreateSnapshot(t.Context(), host.SnapshotSpec{Name: "s", Disk: d.ID})
	must(t, err)
	put(t, w, 0, 3)
	snap, err := a.GetSnapshot(t.Context(), host.SnapshotID("s"))
	if err != nil || snap.Disk != d.ID {
		t.Fatalf("%+v %v", snap, err)
	}
	_, err = a.Expand(t.Context(), d.ID, 16*mib)
	must(t, err)
	if att, err = a.Grown(t.Context(), d.ID); err != nil || att.Size != 16*mib {
		t.Fatalf("%+v %v", att, err)
	}
	put(t, w, 12*mib, 4)

	must(t, a.Detach(t.Context(), d.ID), a.Detach(t.Context(), d.ID))
	att, w = b.attach(t, d.ID, everything)
	if att.Transport != "hotadd" || len(att.Skipped) != 1 {
		t.Fatalf("%+v", att)
	}
	have(t, w, 0, 3)
	have(t, w, 5*mib+512, 2)
	have(t, w, 12*mib, 4)
	_, err = a.try(t, d.ID, everything)
	kind(t, err, fault.InUse, "attach of a disk that the other node has")
	must(t, b.Detach(t.Context(), d.ID))

	c, err := b.Create(t.Context(), host.DiskSpec{Name: "c", Datastore: "shared", Size: 16 * mib, Source: &host.Source{Snapshot: host.SnapshotID("s")}})
	must(t, err)
	_, w = a.attach(t, c.ID, everything)
	have(t, w, 0, 1)
	must(t, a.Detach(t.Context(), c.ID), b.Delete(t.Context(), c.ID), b.DeleteSnapshot(t.Context(), host.SnapshotID("s")), b.Delete(t.Context(), d.ID))
}

// A disk of a node's own directory is attached on another node that has a directory of the same name, or is told the name.
func TestAnotherNodesDirectory(t *testing.T) {
	v := newVillage(t)
	a, b := v.start("node-a", false), v.start("node-b", false)
	a.create("own", "mine")
	d := b.create("own", "x")
	_, err := a.try(t, d.ID, "hotadd")
	kind(t, err, fault.NotFound, "NBD is not asked for")
	_, err = a.try(t, host.DiskID("nobody"), everything)
	kind(t, err, fault.NotFound, "a disk that nobody has")
	att, w := a.attach(t, d.ID, "hotadd:nbd")
	if att.Transport != "nbd" || att.Datastore != "own" || len(att.Skipped) != 1 || att.Skipped[0].Kind != fault.NotFound {
		t.Fatalf("%+v", att)
	}
	put(t, w, mib, 1)
	must(t, a.Detach(t.Context(), d.ID))
	_, w = b.attach(t, d.ID, "")
	have(t, w, mib, 1)
	must(t, b.Detach(t.Context(), d.ID))

	c := v.start("node-c", false)
	c.quit(true)
	c.stores = c.stores[1:] // it has no such datastore
	c.hostd()
	_, err = c.try(t, d.ID, everything)
	kind(t, err, fault.Unavailable, "a datastore that is not known, and a host that is silent about the others")
	att, err = c.Attach(host.WithDatastore(t.Context(), "own"), host.AttachRequest{ID: d.ID, Transport: everything}, hosttest.NoKernel(t, d.ID).Device())
	if err != nil || att.Transport != "nbd" {
		t.Fatalf("%+v %v", att, err)
	}
	have(t, c.disk(d.ID), mib, 1)
	must(t, c.Detach(t.Context(), d.ID))
}

// The hostd that lends is started anew, or dies, while the disk is written: that is a pause, and nothing is lost.
func TestLenderRestarts(t *testing.T) {
	for name, clean := range map[string]bool{"clean": true, "killed": false} {
		t.Run(name, func(t *testing.T) {
			v := newVillage(t)
			a, b := v.start("node-a", true), v.start("node-b", false)
			v.start("node-c", false) // reaches the disk too, and must not be taken for its lender
			d := b.create("shared", "x")
			_, w := a.attach(t, d.ID, everything)
			remote, ok := w.(*worker)
			if !ok {
				t.Fatalf("%T", w)
			}
			x := writing(t, remote)
			for range 3 {
				b.quit(clean)
				b.hostd()
				for i := range 100 {
					put(t, w, mib, byte(i))
				}
			}
			put(t, w, mib, 9)
			_, err := b.try(t, d.ID, everything)
			kind(t, err, fault.InUse, "attach after the restart")
			x.end()
			must(t, a.Detach(t.Context(), d.ID))
			_, w = b.attach(t, d.ID, "")
			have(t, w, mib, 9)
			must(t, b.Detach(t.Context(), d.ID))
		})
	}
}

// The node's hostd is started anew: what its holder kept is adopted, and what nobody kept is let go by a detach.
func TestBorrowerRestarts(t *testing.T) {
	v := newVillage(t)
	a, b := v.start("node-a", true), v.start("node-b", false)
	d := b.create("shared", "x")
	_, w := a.attach(t, d.ID, everything)
	put(t, w, 0, 1)
	held, err := a.Sync(t.Context(), nil)
	if err != nil || len(held) != 1 {
		t.Fatalf("%+v %v", held, err)
	}
	defer host.CloseAll(held)
	a.quit(true)
	a.hostd()
	again, err := a.Sync(t.Context(), held)
	if err != nil || len(again) != 1 || again[0].Attachment.Transport != "nbd" || len(again[0].Attachment.Skipped) != 2 {
		t.Fatalf("%+v %v", again, err)
	}
	host.CloseAll(again)
	have(t, a.disk(d.ID), 0, 1)
	a.quit(true)
	a.hostd()
	_, err = b.try(t, d.ID, "")
	kind(t, err, fault.InUse, "the node has it still")
	must(t, a.Detach(t.Context(), d.ID))
	_, w = b.attach(t, d.ID, "")
	have(t, w, 0, 1)
	must(t, b.Detach(t.Context(), d.ID))
}

// The mount comes back while the disk is attached by NBD: it stays so until it is detached.
func TestMountComesBack(t *testing.T) {
	v := newVillage(t)
	a, b := v.start("node-a", true), v.start("node-b", false)
	d := b.create("shared", "x")
	_, w := a.attach(t, d.ID, everything)
	put(t, w, 0, 1)
	must(t, os.Symlink(v.shared, a.stores[1].Path))
	att, _ := a.attach(t, d.ID, everything)
	got, err := a.Get(t.Context(), d.ID)
	if att.Transport != "nbd" || err != nil || len(got.Attachments) != 1 || got.Attachments[0].Transport != "nbd" {
		t.Fatalf("%+v %+v %v", att, got, err)
	}
	must(t, a.Detach(t.Context(), d.ID))
	att, w = a.attach(t, d.ID, everything)
	if att.Transport != "hotadd" {
		t.Fatalf("%+v", att)
	}
	have(t, w, 0, 1)
	must(t, a.Detach(t.Context(), d.ID))
}

// Several nodes read a disk through one host.
func TestLentToReaders(t *testing.T) {
	v := newVillage(t)
	a, c, b := v.start("node-a", true), v.start("node-c", true), v.start("node-b", false)
	d := b.create("shared", "x")
	_, w := a.attach(t, d.ID, everything)
	put(t, w, 0, 1)
	must(t, a.Detach(t.Context(), d.ID))
	for _, n := range []*neighbour{a, c} {
		_, err := n.Attach(t.Context(), host.AttachRequest{ID: d.ID, ReadOnly: true, Transport: everything}, hosttest.NoKernel(t, d.ID).Device())
		must(t, err)
		have(t, n.disk(d.ID), 0, 1)
	}
	must(t, a.Detach(t.Context(), d.ID))
	have(t, c.disk(d.ID), 0, 1)
	_, err := a.try(t, d.ID, everything)
	kind(t, err, fault.InUse, "attach for writing beside a reader")
	must(t, c.Detach(t.Context(), d.ID))
}

// What hosts tell of a directory.
func TestTransportsOfDirectory(t *testing.T) {
	v := newVillage(t)
	a := v.start("node-a", true)
	nbd := func() host.TransportView {
		list, err := a.Datastores(t.Context())
		must(t, err)
		for _, d := range list {
			if d.Name == "shared" {
				return d.Hosts[0].Transports[2]
			}
		}
		return host.TransportView{}
	}
	if n := nbd(); n.Transport != "nbd" || n.Usable || n.Reason == nil || !strings.Contains(n.Reason.Error(), "shared") {
		t.Fatalf("%+v", n)
	}
	v.start("node-b", false)
	if n := nbd(); !n.Usable || n.Reason != nil {
		t.Fatalf("%+v", n)
	}
}

// A disk that a node has itself is not lent before its holder has brought it back to the hostd that was started anew.
func TestNotLentBeforeItIsBroughtBack(t *testing.T) {
	v := newVillage(t)
	a, b := v.start("node-a", true), v.start("node-b", false)
	d := b.create("shared", "x")
	_, w := b.attach(t, d.ID, "")
	put(t, w, 0, 1)
	_, err := a.try(t, d.ID, everything)
	kind(t, err, fault.InUse, "the other node has it")
	held, err := b.Sync(t.Context(), nil)
	must(t, err)
	defer host.CloseAll(held)
	b.quit(false)
	b.hostd()
	_, err = a.try(t, d.ID, everything)
	kind(t, err, fault.Unavailable, "the other node had it")
	again, err := b.Sync(t.Context(), held)
	if err != nil || len(again) != 1 {
		t.Fatalf("%+v %v", again, err)
	}
	host.CloseAll(again)
	have(t, b.disk(d.ID), 0, 1)
	must(t, b.Detach(t.Context(), d.ID))
	_, w = a.attach(t, d.ID, everything)
	have(t, w, 0, 1)
	must(t, a.Detach(t.Context(), d.ID))
}
