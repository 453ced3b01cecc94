package worker

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"iter"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/sys"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/nbd"
	"github.com/vmdk-csi/vmdk-csi/pkg/remote"
	"github.com/vmdk-csi/vmdk-csi/pkg/san"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/store"
)

const remoteSize = 1 << 20

// owner has the one disk, a file on the LUN.
type owner struct {
	host.Disks     // of these nothing is asked
	host.Snapshots // neither
	dir            fsx.Dir
	f              fsx.File
	size           atomic.Int64
	maps           *san.Server
	closed         atomic.Int32
	refuse         atomic.Bool
}

func newOwner(lun fsx.File) (*owner, error) {
	s, err := store.Open(lun, store.Options{})
	if err != nil {
		return nil, err
	}
	o := &owner{dir: s.Root()}
	o.size.Store(remoteSize)
	if o.f, err = o.dir.Open("disk", fsx.ReadWrite|fsx.Create); err != nil {
		return nil, err
	}
	if err := o.f.Allocate(0, 2*remoteSize); err != nil {
		return nil, err
	}
	o.maps = san.NewServer(context.Background(), san.Config{Store: s, Source: ownerSource{o}, LeaseOnly: true})
	return o, nil
}

func (o *owner) Open(context.Context, string, string, bool) (remote.Served, error) {
	return remote.Served{Export: nbd.Export{Device: o, MultiConn: true}}, nil
}

func (o *owner) Close(context.Context, string, string) error {
	o.closed.Add(1)
	return nil
}

func (o *owner) Maps() *san.Server                           { return o.maps }
func (o *owner) Space(context.Context) (int64, int64, error) { return 1, 1, nil }
func (o *owner) ReadAt(p []byte, off int64) (int, error)     { return o.f.ReadAt(p, off) }
func (o *owner) WriteAt(p []byte, off int64) (int, error)    { return o.f.WriteAt(p, off) }
func (o *owner) Flush() error                                { return o.f.Datasync() }
func (o *owner) Discard(off, n int64) error                  { return o.f.Zero(off, n) }
func (o *owner) WriteZeroes(off, n int64) error              { return o.f.Zero(off, n) }
func (o *owner) Size() int64                                 { return o.size.Load() }

// ownerSource is the owner as its server of maps sees it.
type ownerSource struct{ o *owner }

type ownerSubject struct{ *owner }

func (s ownerSource) Open(context.Context, san.Request) (san.Subject, error) {
	if s.o.refuse.Load() {
		return nil, fault.New(fault.InProgress, "", "the disk is being changed")
	}
	return ownerSubject{s.o}, nil
}

func (s ownerSubject) Dir() fsx.Dir    { return s.dir }
func (s ownerSubject) Writable() error { return nil }
func (s ownerSubject) Close() error    { return nil }
func (s ownerSubject) Runs() iter.Seq2[san.Run, error] {
	return func(yield func(san.Run, error) bool) { yield(san.Run{Len: s.size.Load(), File: "disk"}, nil) }
}

// signer makes PEM.
type signer struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newSigner(t *testing.T) *signer {
	s := &signer{t: t}
	s.pem, _ = s.sign("ca")
	return s
}

// sign makes a certificate; the first one is the authority's.
func (s *signer) sign(name string) (cert, key []byte) {
	s.t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"hostd"}, KeyUsage: x509.KeyUsageDigitalSignature}
	parent, parentKey := s.cert, s.key
	if parent == nil {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
		parent, parentKey, s.key = c, k, k
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, k.Public(), parentKey)
	if err != nil {
		s.t.Fatal(err)
	}
	if s.cert == nil {
		if s.cert, err = x509.ParseCertificate(der); err != nil {
			s.t.Fatal(err)
		}
	}
	b, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		s.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: b})
}

// remoteRig is a disk's descriptors and its owner.
type remoteRig struct {
	*rig
	ca    *signer
	owner *owner
	lun   string
	stop  func() // ends the server
}

func newRemoteRig(t *testing.T) *remoteRig {
	t.Helper()
	r := &remoteRig{rig: newRig(t), ca: newSigner(t), lun: filepath.Join(t.TempDir(), "lun")}
	if err := errors.Join(os.WriteFile(r.lun, nil, 0o600), os.Truncate(r.lun, 64<<20)); err != nil {
		t.Fatal(err)
	}
	lun, err := fsx.OpenDevice(r.lun, fsx.ReadWrite|fsx.Direct)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Format(lun, store.FormatOptions{AreaSize: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	if r.owner, err = newOwner(lun); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lun.Close() })
	cert, key := r.ca.sign("n1")
	r.spec.Dir = nil
	r.spec.Remote = &RemoteSpec{Datastore: "lun", Volume: "d1", Node: "n1", Order: []string{remote.SAN, remote.NBD}, Peers: []string{r.serve(t)},
		Certificate: cert, Key: key, CA: r.ca.pem, ServerName: "hostd", LUNs: []string{r.lun}}
	return r
}

// serve begins a server and ends the one before; it returns where control is.
func (r *remoteRig) serve(t *testing.T) string {
	t.Helper()
	if r.stop != nil {
		r.stop()
	}
	cert, key := r.ca.sign("n0")
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(r.ca.pem)
	control, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	blocks, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := remote.NewServer(remote.ServerConfig{Lookup: func(string) (remote.Datastore, error) { return r.owner, nil },
		TLS:        &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13},
		NBDAddress: ":" + strconv.Itoa(blocks.Addr().(*net.TCPAddr).Port)})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, control, blocks) }()
	stopped := false
	r.stop = func() {
		if !stopped {
			stopped = true
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(r.stop)
	return control.Addr().String()
}

func becomes(t *testing.T, h *Handle, transport string) {
	t.Helper()
	eventually(t, "the disk is reached by "+transport, func() bool { return h.State().Transport == transport })
}

// A worker serves a disk of another host: from the LUN, by NBD when the map is recalled, from the LUN again with its successor, and from
// another server when it is told of one, behind its walls.
func TestRemote(t *testing.T) {
	r := newRemoteRig(t)
	h := start(t, supervisor(t, ""), r.rig)
	becomes(t, h, remote.SAN)
	if w := h.State().Walls; !w.Seccomp || sys.LandlockABI() > 0 && w.Landlock == 0 && !strings.Contains(fmt.Sprint(w.Missing), "cgo") {
		t.Errorf("walls: %+v", w)
	}
	if b := r.ask(t); b != 'y' {
		t.Errorf("by SAN: %c", b)
	}
	kill(t, h) // its map is out: the successor gets another one all the same
	becomes(t, h, remote.SAN)
	if n := len(r.owner.maps.Outstanding()); n != 1 {
		t.Errorf("%d maps are out", n)
	}
	r.owner.refuse.Store(true)
	if err := r.owner.maps.Recall(within(t, long), "d1"); err != nil {
		t.Fatal(err)
	}
	becomes(t, h, remote.NBD)
	if s := h.State().Skipped; len(s) != 1 || s[0].Transport != remote.SAN || s[0].Reason == nil {
		t.Errorf("%+v", s)
	}
	if b := r.ask(t); b != 'y' {
		t.Errorf("by NBD: %c", b)
	}
	cert, key := r.ca.sign("n1")
	next := *r.spec.Remote
	next.Peers, next.Certificate, next.Key = []string{r.serve(t)}, cert, key
	if err := h.SetRemote(next); err != nil {
		t.Fatal(err)
	}
	if b := r.ask(t); b != 'y' {
		t.Errorf("by NBD, from another server: %c", b)
	}
	r.owner.size.Store(2 * remoteSize)
	if n, err := h.Grow(within(t, long), 2*remoteSize); err != nil || n != 2*remoteSize {
		t.Errorf("Grow: %d, %v", n, err)
	}
	if err := h.call(within(t, long), opSnapshot, snapshotBody{Child: "x"}, nil); fault.KindOf(err) != fault.Unsupported {
		t.Errorf("a snapshot in the worker: %v", err)
	}
	kill(t, h) // the successor knows the new peer
	r.owner.refuse.Store(false)
	becomes(t, h, remote.SAN)
	if err := h.Stop(within(t, long)); err != nil {
		t.Error(err)
	}
	if out := r.owner.maps.Outstanding(); len(out) > 0 {
		t.Errorf("maps are out: %+v", out)
	}
	if r.owner.closed.Load() > 0 {
		t.Error("a worker released the disk")
	}
}

// The LUN is not there, then it is: the worker's walls let it be opened.
func TestRemoteLUNComesLater(t *testing.T) {
	r := newRemoteRig(t)
	hidden := r.lun + ".hidden"
	if err := os.Rename(r.lun, hidden); err != nil {
		t.Fatal(err)
	}
	h := start(t, supervisor(t, ""), r.rig)
	becomes(t, h, remote.NBD)
	if s := h.State().Skipped; len(s) != 1 || s[0].Reason == nil || s[0].Reason.Kind != fault.NotFound || s[0].Reason.Remedy == "" {
		t.Errorf("%+v", s)
	}
	if err := os.Rename(hidden, r.lun); err != nil {
		t.Fatal(err)
	}
	becomes(t, h, remote.SAN)
	if err := h.Stop(within(t, long)); err != nil {
		t.Error(err)
	}
}

// What is wrong with a remote disk is told by Start, with its kind.
func TestRemoteRefused(t *testing.T) {
	r := newRemoteRig(t)
	s := supervisor(t, "")
	good := *r.spec.Remote
	for what, c := range map[string]struct {
		change func(*RemoteSpec)
		want   fault.Kind
	}{
		"no certificate":         {func(x *RemoteSpec) { x.Certificate = nil }, fault.Invalid},
		"another node's":         {func(x *RemoteSpec) { x.Node = "n2" }, fault.Denied},
		"no authority":           {func(x *RemoteSpec) { x.CA = nil }, fault.Invalid},
		"san alone, and no path": {func(x *RemoteSpec) { x.Order, x.LUNs = []string{remote.SAN}, nil }, fault.Unsupported},
	} {
		bad := good
		c.change(&bad)
		r.spec.Remote = &bad
		if h, err := s.Start(within(t, long), r.spec); fault.KindOf(err) != c.want {
			t.Errorf("%s: %v, %v", what, h, err)
		}
	}
}
