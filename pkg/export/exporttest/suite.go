package exporttest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/sys"
	"github.com/vmdk-csi/vmdk-csi/pkg/export"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Session is the kernel's end of one disk, as the adapter under test makes it.
type Session interface {
	// Server is a new server of the session; the one before has returned from Serve.
	Server() export.Server
	// Open opens the disk as its user does; flags are those of open(2).
	Open(ctx context.Context, flags int) (*os.File, error)
	// Close takes the kernel's end away, after every file was closed: Serve must then return nil.
	Close() error
}

const (
	mib   = 1 << 20
	patch = 10 * time.Second // how long anything may take

	punch = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	zero  = unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE
)

// Run checks the port. open makes a new session for each part; name is what Params.Name must be.
func Run(t *testing.T, name string, open func(t *testing.T) Session) {
	for _, part := range []struct {
		name string
		run  func(*testing.T, rig)
	}{
		{"Requests", requests},
		{"Errors", failures},
		{"ReadOnly", readOnly},
		{"Resized", resized},
		{"Stop", stop},
		{"StateIsKept", stateIsKept},
		{"StopUnused", stopUnused},
	} {
		t.Run(part.name, func(t *testing.T) { part.run(t, rig{Session: open(t), name: name}) })
	}
}

type rig struct {
	Session
	name string
}

// served is a server at work.
type served struct {
	rig
	server export.Server
	state  []byte
	ready  chan struct{}
	cancel context.CancelCauseFunc
	done   chan error
}

func (r rig) serve(p export.Params) *served {
	v := &served{rig: r, server: r.Server(), done: make(chan error, 1), ready: make(chan struct{})}
	ctx, cancel := context.WithCancelCause(context.Background())
	v.cancel = cancel
	p.Name = r.name
	p.SaveState = func(b []byte) error { v.state = append([]byte(nil), b...); return nil }
	p.Ready = func() { close(v.ready) }
	go func() { v.done <- v.server.Serve(ctx, p) }()
	return v
}

func (v *served) open(t *testing.T, flags int) *os.File {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patch)
	defer cancel()
	f, err := v.Open(ctx, flags)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func (v *served) wait(t *testing.T) error {
	t.Helper()
	select {
	case err := <-v.done:
		return err
	case <-time.After(patch):
		t.Fatal("Serve did not return")
		return nil
	}
}

// gone closes everything on the kernel's side.
func (v *served) gone(t *testing.T, f *os.File) {
	t.Helper()
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if err := v.Close(); err != nil {
		t.Error(err)
	}
	if err := v.wait(t); err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func aligned(t *testing.T, n int) []byte {
	t.Helper()
	b, err := sys.AlignedBuffer(n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sys.FreeBuffer(b) })
	return b
}

// requests compares random requests with a model, then ends the session from the kernel's side.
func requests(t *testing.T, r rig) {
	seed := rand.Uint64()
	if v := os.Getenv("SEED"); v != "" {
		seed, _ = strconv.ParseUint(v, 10, 64)
	}
	t.Logf("SEED=%d", seed)
	rnd := rand.New(rand.NewPCG(seed, seed))
	const size = 4 * mib
	m := NewMemory(size)
	v := r.serve(export.Params{Disk: m})
	f := v.open(t, os.O_RDWR|unix.O_DIRECT)
	model, buf := make([]byte, size), aligned(t, 2*mib)
	for range 500 {
		off := rnd.Int64N(size/512) * 512
		n := min(rnd.Int64N(int64(len(buf))/512)*512, size-off)
		request(t, rnd, f, model, buf[:n], off)
	}
	if !bytes.Equal(m.Content(0, size), model) {
		t.Error("the disk differs from what was written")
	}
	if m.Flushes() == 0 {
		t.Error("fsync did not flush")
	}
	if n, err := f.ReadAt(buf[:512], size); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("read at the end: %d, %v", n, err)
	}
	v.gone(t, f)
}

func request(t *testing.T, rnd *rand.Rand, f *os.File, model, b []byte, off int64) {
	t.Helper()
	n := int64(len(b))
	here := model[off : off+n]
	var err error
	switch kind := rnd.IntN(6); {
	case kind < 2 && n > 0:
		err = unix.Fallocate(int(f.Fd()), []uint32{punch, zero}[kind], off, n)
		clear(here)
	case kind == 2:
		err = f.Sync()
	case kind < 5:
		for i := 0; i < len(b); i += 64 {
			b[i] = byte(rnd.Uint32())
		}
		_, err = f.WriteAt(b, off)
		copy(here, b)
	default:
		if _, err = f.ReadAt(b, off); err == nil && !bytes.Equal(b, here) {
			t.Fatalf("%d bytes at %d differ", n, off)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

// failures: the disk's user is told of a full datastore and a read-only disk as such, of everything else as EIO.
func failures(t *testing.T, r rig) {
	m := NewMemory(mib)
	v := r.serve(export.Params{Disk: m})
	f := v.open(t, os.O_RDWR|unix.O_DIRECT)
	buf := aligned(t, 4096)
	for _, c := range []struct {
		kind fault.Kind
		want unix.Errno
	}{{fault.NoSpace, unix.ENOSPC}, {fault.ReadOnly, unix.EROFS}, {fault.Poisoned, unix.EIO}, {fault.Internal, unix.EIO}} {
		m.Fail(fault.New(c.kind, "", "as asked"))
		_, rerr := f.ReadAt(buf, 0)
		_, werr := f.WriteAt(buf, 0)
		for what, err := range map[string]error{"read": rerr, "write": werr, "fsync": f.Sync(),
			"discard": unix.Fallocate(int(f.Fd()), punch, 0, 4096)} {
			if !errors.Is(err, c.want) {
				t.Errorf("%s of a disk that says %s: %v, want %v", what, c.kind, err, c.want)
			}
		}
	}
	m.Fail(nil)
	if _, err := f.WriteAt(buf, 0); err != nil {
		t.Errorf("a write after the failures: %v", err)
	}
	v.gone(t, f)
}

func readOnly(t *testing.T, r rig) {
	v := r.serve(export.Params{Disk: NewMemory(mib), ReadOnly: true})
	ctx, cancel := context.WithTimeout(context.Background(), patch)
	defer cancel()
	if f, err := v.Open(ctx, os.O_RDWR); !errors.Is(err, unix.EROFS) {
		t.Errorf("open for writing: %v, %v", f, err)
	}
	f := v.open(t, os.O_RDONLY)
	if _, err := f.ReadAt(make([]byte, 512), 0); err != nil {
		t.Error(err)
	}
	v.gone(t, f)
}

func resized(t *testing.T, r rig) {
	m := NewMemory(mib)
	v := r.serve(export.Params{Disk: m})
	f := v.open(t, os.O_RDWR)
	for _, size := range []int{mib, 3 * mib, 7 * mib} {
		m.Resize(size)
		if err := v.server.Resized(); err != nil {
			t.Fatal(err)
		}
		if got, err := f.Seek(0, io.SeekEnd); err != nil || got != int64(size) {
			t.Errorf("size %v, %v, want %d", got, err, size)
		}
	}
	v.gone(t, f)
}

var errEnough = errors.New("enough")

// stop: a cancelled server answers what it has read, leaves the rest, and a successor carries on.
func stop(t *testing.T, r rig) {
	m := NewMemory(mib)
	if _, err := m.WriteAt([]byte{42}, 4096); err != nil {
		t.Fatal(err)
	}
	m.Block, m.Reading = make(chan struct{}), make(chan struct{}, 16)
	first := r.serve(export.Params{Disk: m})
	f := first.open(t, os.O_RDWR|unix.O_DIRECT)
	buf := aligned(t, 4096)
	read := make(chan error, 1)
	go func() { _, err := f.ReadAt(buf, 4096); read <- err }()
	<-m.Reading // it is inside the disk
	first.cancel(errEnough)
	select {
	case err := <-first.done:
		t.Fatalf("Serve returned (%v) with a request in flight", err)
	case <-time.After(100 * time.Millisecond):
	}
	close(m.Block)
	if err := <-read; err != nil || buf[0] != 42 {
		t.Errorf("the request in flight: %v, %d", err, buf[0])
	}
	if err := first.wait(t); !errors.Is(err, errEnough) {
		t.Errorf("Serve: %v", err)
	}

	go func() { _, err := f.ReadAt(buf, 0); read <- err }() // nobody serves now
	second := r.serve(export.Params{Disk: m, State: first.state, Takeover: true})
	if err := <-read; err != nil || buf[0] != 0 {
		t.Errorf("a request between two servers: %v, %d", err, buf[0])
	}
	second.gone(t, f)
}

// stateIsKept: what a server saves is small, and enough for any number of successors.
func stateIsKept(t *testing.T, r rig) {
	m := NewMemory(mib)
	v := r.serve(export.Params{Disk: m})
	f := v.open(t, os.O_RDWR|unix.O_DIRECT)
	buf := aligned(t, 512)
	state := v.state
	if len(state) > export.StateSize {
		t.Fatalf("%d bytes of state", len(state))
	}
	for i := range 3 {
		v.cancel(errEnough)
		if err := v.wait(t); !errors.Is(err, errEnough) {
			t.Fatalf("Serve: %v", err)
		}
		v = r.serve(export.Params{Disk: m, State: state, Takeover: true})
		select {
		case <-v.ready:
		case <-time.After(patch):
			t.Fatal("the successor does not become ready")
		}
		buf[0] = byte(i + 1)
		if _, err := f.WriteAt(buf, 512); err != nil || m.Content(512, 1)[0] != byte(i+1) {
			t.Fatalf("successor %d: %v", i+1, err)
		}
	}
	v.gone(t, f)
}

// stopUnused: a server that nobody has asked for anything ends when it is told to.
func stopUnused(t *testing.T, r rig) {
	v := r.serve(export.Params{Disk: NewMemory(mib)})
	v.cancel(errEnough)
	if err := v.wait(t); !errors.Is(err, errEnough) {
		t.Errorf("Serve: %v", err)
	}
	if err := v.Close(); err != nil {
		t.Error(err)
	}
}
