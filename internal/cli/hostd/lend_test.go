package hostd_test

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// newNeighbours are nodes with directories of their own that lend each other disks.
func newNeighbours(t *testing.T, names ...string) (nodes []*node) {
	t.Helper()
	cert, key := newAuthority(t, t.TempDir())
	var control []string
	for range names {
		control = append(control, freePort(t))
	}
	for i, name := range names {
		n := newNode(t)
		n.name, n.port = name, n.port+1000*i
		n.args = []string{"--listen-control=" + control[i], "--listen-nbd=" + freePort(t), "--peers=" + strings.Join(control, ","),
			"--tls-ca-cert=" + cert, "--tls-ca-key=" + key}
		nodes = append(nodes, n)
	}
	return nodes
}

// A disk in a directory of one node is used on another one, through real hostds, workers behind their walls, and the kernel: the hostd
// that lends it is killed, started and succeeded while it is written, and so is the node's own.
func TestLend(t *testing.T) {
	nodes := newNeighbours(t, "node-a", "node-b")
	a, b := nodes[0], nodes[1]
	pb := b.start(t)
	pa := a.start(t)
	ca, cb := a.client(t), b.client(t)
	d, err := cb.Create(t.Context(), host.DiskSpec{Name: "x", Datastore: "a", Size: 8 * mib, Type: host.TwoGbMaxExtentSparse})
	if err != nil {
		t.Fatal(err)
	}
	k := newSession(t, d.ID)
	if _, err := ca.Attach(t.Context(), host.AttachRequest{ID: d.ID, Transport: "hotadd"}, k.Device()); fault.KindOf(err) != fault.NotFound {
		t.Fatalf("NBD is not asked for: %v", err)
	}
	att, err := ca.Attach(t.Context(), host.AttachRequest{ID: d.ID, Transport: "san:hotadd:nbd"}, k.Device())
	if err != nil || att.Transport != "nbd" || len(att.Skipped) != 2 {
		t.Fatalf("%+v %v", att, err)
	}
	k.Open(t)
	x := &disk{id: d.ID, k: k}
	x.write(t, 0, "one")

	var wg sync.WaitGroup
	stop := make(chan struct{})
	var written atomic.Int64
	wg.Go(func() {
		for n := int64(0); ; n = written.Add(1) {
			select {
			case <-stop:
				return
			default:
			}
			if err := k.write(4*mib+n%500*4096, fmt.Sprintf("%08d", n)); err != nil {
				t.Errorf("write %d: %v", n, err)
				return
			}
		}
	})
	more := func() {
		t.Helper()
		want := written.Load() + 30
		eventually(t, "it is written on", func() bool { return t.Failed() || written.Load() > want })
	}
	if _, err := ca.CreateSnapshot(t.Context(), host.SnapshotSpec{Name: "s", Disk: d.ID}); err != nil {
		t.Fatal(err)
	}
	x.write(t, 0, "two")
	more()
	pb.kill(t)
	pb = b.start(t)
	x.write(t, 8192, "three")
	more()
	next := b.start(t) // takes over, and listens when its predecessor ends
	if err := pb.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	pb.kill(t)
	x.write(t, 16384, "four")
	more()
	if err := cb.DeleteSnapshot(t.Context(), host.SnapshotID("s")); err != nil {
		t.Fatal(err)
	}
	close(stop)
	wg.Wait()
	if list, err := cb.Attachments(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("attachments of who lends: %+v %v", list, err)
	}

	held, err := ca.Sync(t.Context(), nil)
	if err != nil || len(held) != 1 {
		t.Fatalf("sync: %d disks, %v", len(held), err)
	}
	pa.kill(t)
	a.start(t)
	again, err := ca.Sync(t.Context(), held)
	if err != nil || len(again) != 1 {
		t.Fatalf("sync with the next hostd: %d disks, %v", len(again), err)
	}
	host.CloseAll(held)
	host.CloseAll(again)
	for off, text := range map[int64]string{0: "two", 8192: "three", 16384: "four"} {
		x.check(t, off, text)
	}
	for n, i := written.Load(), max(0, written.Load()-500); i < n; i++ {
		x.check(t, 4*mib+i%500*4096, fmt.Sprintf("%08d", i))
	}
	k.Release(t)
	if err := ca.Detach(t.Context(), d.ID); err != nil {
		t.Fatal(err)
	}
	k = newSession(t, d.ID)
	if att, err = cb.Attach(t.Context(), host.AttachRequest{ID: d.ID, Transport: "san:hotadd:nbd"}, k.Device()); err != nil || att.Transport != "hotadd" {
		t.Fatalf("%+v %v", att, err)
	}
	k.Open(t)
	(&disk{id: d.ID, k: k}).check(t, 16384, "four")
	k.Release(t)
	if err := cb.Detach(t.Context(), d.ID); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(next.log.String(), "PRIVATE KEY") {
		t.Error("a key is in the log")
	}
}
