package remotetest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"iter"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/nbd"
	"github.com/vmdk-csi/vmdk-csi/pkg/remote"
	"github.com/vmdk-csi/vmdk-csi/pkg/san"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/store"
)

// ServerName is what servers prove to be.
const ServerName = "hostd"

const file = "disk"

// LUN has one disk, whatever it is called.
type LUN struct {
	Path string // of the LUN's file
	Maps *san.Server
	*Authority

	t      testing.TB
	dir    fsx.Dir
	f      fsx.File
	size   atomic.Int64
	closed atomic.Int32
	refuse atomic.Bool

	mu   sync.Mutex
	stop func()
}

// New makes a LUN with a disk of size bytes, which may grow to most. Nothing is served yet.
func New(t testing.TB, size, most int64) *LUN {
	t.Helper()
	l := &LUN{t: t, Path: filepath.Join(t.TempDir(), "lun"), Authority: newAuthority(t)}
	must(t, os.WriteFile(l.Path, nil, 0o600), os.Truncate(l.Path, most+64<<20))
	lun, err := fsx.OpenDevice(l.Path, fsx.ReadWrite|fsx.Direct)
	must(t, err)
	t.Cleanup(func() { lun.Close() })
	_, err = store.Format(lun, store.FormatOptions{AreaSize: 1 << 20})
	must(t, err)
	s, err := store.Open(lun, store.Options{})
	must(t, err)
	l.dir = s.Root()
	l.f, err = l.dir.Open(file, fsx.ReadWrite|fsx.Create)
	must(t, err, l.f.Allocate(0, most))
	l.size.Store(size)
	l.Maps = san.NewServer(context.Background(), san.Config{Store: s, Source: source{l}, LeaseOnly: true})
	return l
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// Serve begins a server, after the end of the one before, and returns where its control is.
func (l *LUN) Serve() string {
	l.t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stop != nil {
		l.stop()
	}
	cert, key := l.Sign("owner")
	pair, err := tls.X509KeyPair(cert, key)
	must(l.t, err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(l.CA)
	control, err := net.Listen("tcp", "127.0.0.1:0")
	must(l.t, err)
	blocks, err := net.Listen("tcp", "127.0.0.1:0")
	must(l.t, err)
	s := remote.NewServer(remote.ServerConfig{Lookup: func(string) (remote.Datastore, error) { return owner{LUN: l}, nil },
		TLS:        &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13},
		NBDAddress: ":" + strconv.Itoa(blocks.Addr().(*net.TCPAddr).Port)})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, control, blocks) }()
	l.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			l.t.Error(err)
		}
	})
	l.t.Cleanup(l.stop)
	return control.Addr().String()
}

// Recall gets the map back, and refuses others until Allow.
func (l *LUN) Recall(ctx context.Context) error {
	l.refuse.Store(true)
	for _, o := range l.Maps.Outstanding() {
		if err := l.Maps.Recall(ctx, o.Volume); err != nil {
			return err
		}
	}
	return nil
}

// Allow grants maps again.
func (l *LUN) Allow() { l.refuse.Store(false) }

// Grow makes the disk larger; no map may be out.
func (l *LUN) Grow(size int64) { l.size.Store(size) }

// Closed is how often a node has closed the disk.
func (l *LUN) Closed() int { return int(l.closed.Load()) }

// ReadAt reads the disk as its owner has it.
func (l *LUN) ReadAt(p []byte, off int64) (int, error) { return l.f.ReadAt(p, off) }

// owner is the LUN as a server has it.
type owner struct {
	host.Disks     // of these nothing is asked
	host.Snapshots // neither
	*LUN
}

func (o owner) Open(context.Context, string, string, bool) (remote.Served, error) {
	return remote.Served{Export: nbd.Export{Device: device{o.LUN}, MultiConn: true}}, nil
}

func (o owner) Close(context.Context, string, string) error {
	o.closed.Add(1)
	return nil
}

func (o owner) Maps() *san.Server { return o.LUN.Maps }

func (o owner) Space(context.Context) (total, free int64, err error) { return o.dir.Space() }

// device is the disk.
type device struct{ *LUN }

func (d device) WriteAt(p []byte, off int64) (int, error) { return d.f.WriteAt(p, off) }
func (d device) Flush() error                             { return d.f.Datasync() }
func (d device) Discard(off, n int64) error               { return d.f.Zero(off, n) }
func (d device) WriteZeroes(off, n int64) error           { return d.f.Zero(off, n) }
func (d device) Size() int64                              { return d.size.Load() }

// source is the LUN as its server of maps sees it.
type source struct{ *LUN }

func (s source) Open(context.Context, san.Request) (san.Subject, error) {
	if s.refuse.Load() {
		return nil, fault.New(fault.InProgress, "", "the disk is being changed")
	}
	return subject(s), nil
}

type subject struct{ *LUN }

func (s subject) Dir() fsx.Dir    { return s.dir }
func (s subject) Writable() error { return nil }
func (s subject) Close() error    { return nil }
func (s subject) Size() int64     { return s.size.Load() }
func (s subject) Runs() iter.Seq2[san.Run, error] {
	return func(yield func(san.Run, error) bool) { yield(san.Run{Len: s.size.Load(), File: file}, nil) }
}
