package remote_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/nbd"
	"github.com/vmdk-csi/vmdk-csi/pkg/remote"
	"github.com/vmdk-csi/vmdk-csi/pkg/san"
)

func isKind(t *testing.T, what string, err error, want fault.Kind) {
	t.Helper()
	if fault.KindOf(err) != want {
		t.Errorf("%s: %v, wanted is %s", what, err, want)
	}
}

// Who is not who it says, and who has nothing to ask for, gets a typed answer.
func TestRefused(t *testing.T) {
	r := newRig(t)
	id := r.create("v", host.EagerZeroedThick)
	try := func(change func(c *remote.ClientConfig)) error {
		c := r.client("node1")
		change(&c)
		client := remote.NewClient(c)
		defer client.Close()
		_, err := client.OpenVolume(ctx, id, false)
		return err
	}
	isKind(t, "another node's certificate", try(func(c *remote.ClientConfig) { c.Node = "node2" }), fault.Denied)
	stranger := newAuthority(t)
	isKind(t, "a stranger's certificate", try(func(c *remote.ClientConfig) {
		c.TLS = stranger.config("node1")
		c.TLS.RootCAs = r.ca.pool
	}), fault.Denied)
	isKind(t, "a server of another authority", try(func(c *remote.ClientConfig) { c.TLS.RootCAs = stranger.pool }), fault.Denied)
	isKind(t, "no certificate", try(func(c *remote.ClientConfig) { c.TLS.Certificates = nil }), fault.Denied)
	isKind(t, "another name of the server", try(func(c *remote.ClientConfig) { c.TLS.ServerName = "elsewhere" }), fault.Denied)
	isKind(t, "a datastore that is not here", try(func(c *remote.ClientConfig) { c.Datastore = "x" }), fault.Unavailable)
	isKind(t, "no peers", try(func(c *remote.ClientConfig) { c.Peers = func(context.Context) ([]string, error) { return nil, nil } }), fault.Unavailable)
	isKind(t, "peers that are not there", try(func(c *remote.ClientConfig) {
		c.Peers = func(context.Context) ([]string, error) { return []string{"127.0.0.1:1"}, nil }
	}), fault.Unavailable)
	_, err := r.api("node1").OpenVolume(ctx, host.DiskID("none"), false)
	isKind(t, "a disk that is not there", err, fault.NotFound)
	if r.mds.has(id) {
		t.Error("the disk was opened for one of them")
	}
	_, err = r.api("node1").Create(ctx, host.DiskSpec{Name: "v", Datastore: "lun", Size: 2 * diskSize, Format: host.Thin, Type: host.MonolithicFlat})
	isKind(t, "a disk that is there", err, fault.Exists)
	must(t, r.api("node1").CloseVolume(ctx, id))
}

// A dead peer, a standby and the one that serves: the client finds it, also when it was another one before.
func TestFindsTheServer(t *testing.T) {
	r := newRig(t)
	id := r.create("v", host.Thin)
	r.mu.Lock()
	r.peers = append(r.peers, "127.0.0.1:1")
	r.mu.Unlock()
	api := r.api("node1")
	d, err := api.Get(ctx, id)
	must(t, err)
	if d.ID != id || d.Size != diskSize {
		t.Errorf("%+v", d)
	}
	r.kill()
	_, err = api.Get(ctx, id)
	isKind(t, "while there is none", err, fault.Unavailable)
	r.start()
	_, err = api.Get(ctx, id)
	must(t, err)
	list, _, err := api.List(ctx, 0, "")
	must(t, err)
	if len(list) != 1 || list[0].ID != id {
		t.Errorf("%+v", list)
	}
	total, free, err := api.Space(ctx)
	must(t, err)
	if total <= 0 || free <= 0 || free > total {
		t.Errorf("%d of %d bytes are free", free, total)
	}
}

// A ticket that was revoked, or is another node's, opens nothing.
func TestTickets(t *testing.T) {
	r := newRig(t)
	id := r.create("v", host.Thin)
	connect := func(node, ticket, address string) error {
		c, err := nbd.Connect(ctx, nbd.ClientOptions{Network: "tcp", Address: address, Export: ticket, TLS: r.ca.config(node)})
		if err == nil {
			err = c.Close()
		}
		return err
	}
	api := r.api("node1")
	ticket, address, err := api.Ticket(ctx, id)
	must(t, err)
	isKind(t, "another node", connect("node2", ticket, address), fault.Denied)
	isKind(t, "another certificate of the node", connect("node1", ticket, address), fault.Denied)
	must(t, api.CloseVolume(ctx, id))
	c, err := nbd.Connect(ctx, nbd.ClientOptions{Network: "tcp", Address: address, Export: ticket, TLS: api.TLS()})
	isKind(t, "a revoked ticket", err, fault.Denied)
	if err == nil {
		_ = c.Close()
	}
}

// While a read-write map is out nothing is served by NBD, not even to the node that has it, and no other node opens the disk, also not
// at a server that was started anew and knows its node no more.
func TestMapKeepsOthersOut(t *testing.T) {
	r := newRig(t)
	id := r.create("v", host.EagerZeroedThick)
	c, _ := r.config(id, "node1")
	only := r.peers[0]
	c.Peers = func(context.Context) ([]string, error) { return []string{only}, nil } // it does not find the next one
	d := r.open(c)
	r.becomes(d, remote.SAN)
	api := r.api("node1")
	ticket, address, err := api.Ticket(ctx, id)
	must(t, err)
	n, err := nbd.Connect(ctx, nbd.ClientOptions{Network: "tcp", Address: address, Export: ticket, TLS: api.TLS()})
	isKind(t, "NBD beside a map", err, fault.Unavailable)
	if err == nil {
		_ = n.Close()
	}
	r.kill()
	r.start()
	_, err = r.api("node2").OpenVolume(ctx, id, false)
	isKind(t, "another node, at another server", err, fault.InUse)
	must(t, r.api("node1").CloseVolume(ctx, id))
	_, err = r.api("node2").OpenVolume(ctx, id, false)
	must(t, err, r.api("node2").CloseVolume(ctx, id))
}

// The answer with a map is lost: the node goes on by NBD at once, and a request that is late ends no later map.
func TestLostMap(t *testing.T) {
	r := newRig(t)
	id := r.create("v", host.EagerZeroedThick)
	api := r.api("node1")
	must(t, api.Map(ctx, id, 1), api.Map(ctx, id, 2))
	isKind(t, "a late request", api.Mapless(ctx, id, 1), fault.InProgress)
	if n := len(r.mds.maps.Outstanding()); n != 1 {
		t.Errorf("%d maps are out after a late request", n)
	}
	must(t, api.Mapless(ctx, id, 3))
	if n := len(r.mds.maps.Outstanding()); n != 0 {
		t.Errorf("%d maps are out, the node has none", n)
	}
	must(t, api.CloseVolume(ctx, id))
}

// Two nodes cannot have one disk, two sessions of a node neither: the later one takes over what the first had.
func TestOneUser(t *testing.T) {
	r := newRig(t)
	id := r.create("v", host.EagerZeroedThick)
	c1, _ := r.config(id, "node1")
	first := r.open(c1)
	r.becomes(first, remote.SAN)
	c2, _ := r.config(id, "node2")
	_, err := remote.OpenDisk(ctx, c2)
	isKind(t, "another node", err, fault.InUse)
	_, err = first.WriteAt([]byte("first"), 0)
	must(t, err)
	second := r.open(c1)
	if s := second.State(); s.Transport != remote.SAN {
		t.Errorf("the second session: %+v", s)
	}
	p := make([]byte, 5)
	_, err = second.ReadAt(p, 0)
	must(t, err)
	if string(p) != "first" {
		t.Errorf("the second session reads %q", p)
	}
	until(t, "the first session ends", func() bool { _, err := first.ReadAt(p, 0); return errors.Is(err, fault.Fenced) })
	_, err = second.WriteAt([]byte("later"), 0)
	must(t, err, second.Close(), r.api("node1").CloseVolume(ctx, id))
	third := r.open(c2)
	_, err = third.ReadAt(p, 0)
	must(t, err)
	if string(p) != "later" {
		t.Errorf("the other node reads %q", p)
	}
}

// A disk is closed on behalf of a node whose worker has died: its map ends at once.
func TestClosedForTheDead(t *testing.T) {
	r := newRig(t)
	id := r.create("v", host.EagerZeroedThick)
	c, _ := r.config(id, "node1")
	open := c.OpenLUN
	c.OpenLUN = func(ctx context.Context, l san.LUN) (fsx.File, error) { // once: it is not as dead as it should be
		f, err := open(ctx, l)
		open = func(context.Context, san.LUN) (fsx.File, error) { return nil, fault.New(fault.NotFound, "", "dead") }
		return f, err
	}
	d := r.open(c)
	r.becomes(d, remote.SAN)
	must(t, r.api("node1").CloseVolume(ctx, id))
	if out := r.mds.maps.Outstanding(); len(out) > 0 {
		t.Errorf("%+v", out)
	}
}

func TestOrders(t *testing.T) {
	r := newRig(t)
	id := r.create("v", host.EagerZeroedThick)
	open := func(change func(c *remote.DiskConfig)) (*remote.Disk, error) {
		c, _ := r.config(id, "node1")
		change(&c)
		return remote.OpenDisk(ctx, c)
	}
	d, err := open(func(c *remote.DiskConfig) { c.Order = []string{remote.NBD, remote.SAN} })
	must(t, err)
	if s := d.State(); s.Transport != remote.NBD || len(s.Skipped) > 0 {
		t.Errorf("nbd first: %+v", s)
	}
	must(t, d.Close())
	_, err = open(func(c *remote.DiskConfig) { c.Order, c.OpenLUN = []string{remote.SAN}, nil })
	isKind(t, "san alone, without a path", err, fault.Unsupported)
	d, err = open(func(c *remote.DiskConfig) { c.Order = []string{"hotadd", remote.SAN, remote.NBD} })
	must(t, err)
	if s := d.State(); s.Transport != remote.SAN || len(s.Skipped) != 1 || s.Skipped[0].Transport != "hotadd" || s.Skipped[0].Reason.Kind != fault.Unsupported {
		t.Errorf("hotadd first: %+v", s)
	}
	must(t, d.Close())
}

// A disk grows while it is used, on either transport.
func TestGrows(t *testing.T) {
	r := newRig(t)
	for i, order := range [][]string{{remote.SAN, remote.NBD}, {remote.NBD}} {
		id := r.create(order[0], host.EagerZeroedThick)
		c, _ := r.config(id, "node1")
		c.Order = order
		d := r.open(c)
		l := startLoad(t, d)
		l.more(50)
		size := int64(diskSize + (i+1)<<20)
		isKind(t, "it grows before its server", d.Grow(ctx, size), fault.Precondition)
		_, err := r.api("mds").Expand(ctx, id, size)
		must(t, err)
		must(t, d.Grow(ctx, size))
		if d.Size() != size || d.State().Size != size {
			t.Errorf("it has %d bytes, %+v", d.Size(), d.State())
		}
		_, err = d.WriteAt([]byte("end"), size-3)
		must(t, err)
		r.becomes(d, order[0])
		l.more(50)
		l.stop()
		must(t, d.Close(), r.api("node1").CloseVolume(ctx, id))
	}
}

// A reader has a composed map of a disk with snapshots, and cannot write.
func TestReader(t *testing.T) {
	r := newRig(t)
	id := r.create("v", host.EagerZeroedThick)
	c, _ := r.config(id, "node1")
	d := r.open(c)
	l := startLoad(t, d)
	l.more(100)
	_, err := r.api("mds").CreateSnapshot(ctx, host.SnapshotSpec{Name: "s", Disk: id})
	must(t, err)
	l.more(100)
	l.finish(d)
	must(t, d.Close(), r.api("node1").CloseVolume(ctx, id))
	c.ReadOnly = true
	for _, order := range [][]string{{remote.SAN, remote.NBD}, {remote.NBD}} {
		c.Order = order
		d := r.open(c)
		r.becomes(d, order[0])
		got := make([]byte, diskSize)
		_, err := d.ReadAt(got, 0)
		must(t, err)
		if !slices.Equal(got, l.want) {
			t.Errorf("by %s it reads something else", order[0])
		}
		_, err = d.WriteAt([]byte{1}, 0)
		isKind(t, "a write", err, fault.ReadOnly)
		must(t, d.Close(), r.api("node1").CloseVolume(ctx, id))
	}
}

// Close while there is no server: what was written by SAN is on the LUN, and that is what counts.
func TestCloseWithoutServer(t *testing.T) {
	r := newRig(t)
	id := r.create("v", host.EagerZeroedThick)
	c, _ := r.config(id, "node1")
	d := r.open(c)
	r.becomes(d, remote.SAN)
	_, err := d.WriteAt([]byte("there"), 0)
	must(t, err)
	r.kill()
	begin := time.Now()
	must(t, d.Close())
	if took := time.Since(begin); took > 15*time.Second {
		t.Errorf("it took %v", took)
	}
	r.start()
	must(t, r.api("node1").CloseVolume(ctx, id))
	want := make([]byte, diskSize)
	copy(want, "there")
	r.stored(id, want)
}
