package hostd_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/wire"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/store"
)

// newAuthority writes a certificate authority as a Secret of type kubernetes.io/tls has it.
func newAuthority(t *testing.T, dir string) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, c, c, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	for path, b := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "EC PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// freePort is a port of the loopback that nobody has just now.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// newCluster is nodes that share a LUN.
func newCluster(t *testing.T, names ...string) (nodes []*node) {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "lun")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 256*mib); err != nil {
		t.Fatal(err)
	}
	f, err := fsx.OpenDevice(path, fsx.ReadWrite|fsx.Direct)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Format(f, store.FormatOptions{AreaSize: mib}); err != nil {
		t.Fatal(err)
	}
	f.Close()
	cert, key := newAuthority(t, dir)
	var control []string
	for range names {
		control = append(control, freePort(t))
	}
	for i, name := range names {
		n := newNode(t)
		n.name, n.port = name, n.port+1000*i
		n.args = []string{"--datastore=lun=lun:" + path + ",fencing=lease-only", "--listen-control=" + control[i], "--listen-nbd=" + freePort(t),
			"--peers=" + strings.Join(control, ","), "--tls-ca-cert=" + cert, "--tls-ca-key=" + key}
		nodes = append(nodes, n)
	}
	return nodes
}

// owns says whether a hostd is the metadata server.
func (p *process) owns(t *testing.T) bool {
	t.Helper()
	return strings.Contains(p.metrics(t), `vmdk_hostd_lun_owner{datastore="lun"} 1`)
}

func (p *process) metrics(t *testing.T) string {
	t.Helper()
	r, err := http.Get("http://" + p.health + "/metrics")
	if err != nil {
		return "" // it does not listen yet
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	http.DefaultClient.CloseIdleConnections()
	return string(b)
}

// transport is how an attached disk is reached.
func transport(t *testing.T, c *wire.Client, id string) string {
	t.Helper()
	list, err := c.Attachments(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range list {
		if a.ID == id {
			return a.Transport
		}
	}
	return ""
}

func createOnLUN(t *testing.T, c *wire.Client, name string) host.Disk {
	t.Helper()
	d, err := c.Create(t.Context(), host.DiskSpec{Name: name, Datastore: "lun", Size: 8 * mib, Format: host.EagerZeroedThick})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func attachLUN(t *testing.T, c *wire.Client, id, by string) *disk {
	t.Helper()
	k := newSession(t, id)
	a, err := c.Attach(t.Context(), host.AttachRequest{ID: id, Transport: "san:nbd"}, k.Device())
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(by, a.Transport) {
		t.Fatalf("attached by %+v", a)
	}
	k.Open(t)
	return &disk{id: id, k: k}
}

// Two real hostds on one LUN: what is written through the kernel on one node is read on the other; a snapshot turns the disk to NBD
// and its deletion turns it back while it is written; the metadata server is killed, and the disk's own hostd.
func TestLUN(t *testing.T) {
	nodes := newCluster(t, "node-a", "node-b")
	a, b := nodes[0], nodes[1]
	pb := b.start(t)
	eventually(t, "node-b owns the LUN", func() bool { return pb.owns(t) })
	pa := a.start(t)
	ca, cb := a.client(t), b.client(t)
	d := createOnLUN(t, ca, "x")
	x := attachLUN(t, ca, d.ID, "san")
	x.write(t, 0, "one")

	var wg sync.WaitGroup
	stop := make(chan struct{})
	n := 0
	wg.Go(func() {
		for ; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			if err := x.k.write(4*mib+int64(n%500)*4096, fmt.Sprintf("%08d", n)); err != nil {
				t.Errorf("write %d: %v", n, err)
				return
			}
		}
	})
	s, err := cb.CreateSnapshot(t.Context(), host.SnapshotSpec{Name: "s", Disk: d.ID})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the disk is reached by NBD", func() bool { return transport(t, ca, d.ID) == "nbd" })
	x.write(t, 0, "two")
	if m := pa.metrics(t); !strings.Contains(m, `vmdk_hostd_disk_transport{disk="`+d.ID+`",transport="nbd"} 1`) || !strings.Contains(m, "vmdk_hostd_transport_falls_total 1") {
		t.Errorf("metrics: %s", m)
	}

	pb.kill(t)
	eventually(t, "node-a owns the LUN", func() bool { return pa.owns(t) })
	x.write(t, 8192, "three")
	pb = b.start(t)
	if err := cb.DeleteSnapshot(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the disk is reached by its LUN again", func() bool { return transport(t, ca, d.ID) == "san" })
	close(stop)
	wg.Wait()
	if n < 50 {
		t.Errorf("only %d writes", n)
	}

	held, err := ca.Sync(t.Context(), nil)
	if err != nil || len(held) != 1 {
		t.Fatalf("sync: %d disks, %v", len(held), err)
	}
	pa.kill(t) // the metadata server, and the worker of the disk
	eventually(t, "node-b owns the LUN", func() bool { return pb.owns(t) })
	a.start(t)
	next, err := ca.Sync(t.Context(), held)
	if err != nil || len(next) != 1 {
		t.Fatalf("sync with the next hostd: %d disks, %v", len(next), err)
	}
	host.CloseAll(held)
	host.CloseAll(next)
	for off, text := range map[int64]string{0: "two", 8192: "three"} {
		x.check(t, off, text)
	}
	for i := max(0, n-500); i < n; i++ {
		x.check(t, 4*mib+int64(i%500)*4096, fmt.Sprintf("%08d", i))
	}
	x.k.Release(t)
	if err := ca.Detach(t.Context(), d.ID); err != nil {
		t.Fatal(err)
	}
	y := attachLUN(t, cb, d.ID, "san nbd") // a new server grants maps for writing only after a while
	y.check(t, 0, "two")
	y.k.Release(t)
	if err := cb.Detach(t.Context(), d.ID); err != nil {
		t.Fatal(err)
	}
	if err := cb.Delete(t.Context(), d.ID); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains([]byte(pb.log.String()), []byte("PRIVATE KEY")) {
		t.Error("a key is in the log")
	}
}

// An upgrade of a hostd that is the metadata server and has a disk: the successor takes the disk, and then the LUN.
func TestLUNSuccession(t *testing.T) {
	n := newCluster(t, "node-a")[0]
	old := n.start(t)
	eventually(t, "it owns the LUN", func() bool { return old.owns(t) })
	c := n.client(t)
	d := createOnLUN(t, c, "x")
	x := attachLUN(t, c, d.ID, "san")
	x.write(t, 0, "one")
	next := n.start(t)
	x.write(t, 4096, "two")
	if err := old.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	old.kill(t)
	eventually(t, "the successor owns the LUN", func() bool { return next.owns(t) })
	x.check(t, 0, "one")
	x.check(t, 4096, "two")
	x.write(t, 8192, "three")
	x.check(t, 8192, "three")
	x.k.Release(t)
	eventually(t, "it is detached", func() bool { return c.Detach(t.Context(), d.ID) == nil })
}
