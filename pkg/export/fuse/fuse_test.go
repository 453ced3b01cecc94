package fuse

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/sys"
	"github.com/vmdk-csi/vmdk-csi/pkg/block"
	"github.com/vmdk-csi/vmdk-csi/pkg/export"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// memory is a disk in memory whose requests can be made to wait or fail.
type memory struct {
	mu      sync.Mutex
	data    []byte
	flushes int
	fail    error
	block   chan struct{} // if set, reads wait for it
	reading chan struct{} // if set, gets a token from every read that begins
}

var _ block.Device = (*memory)(nil)

func newMemory(size int) *memory { return &memory{data: make([]byte, size)} }

func (m *memory) do(off, n int64, f func()) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return m.fail
	}
	if off < 0 || n < 0 || off > int64(len(m.data))-n {
		return fault.New(fault.OutOfRange, "", "%d bytes at %d", n, off)
	}
	f()
	return nil
}

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	if m.reading != nil {
		m.reading <- struct{}{}
	}
	if m.block != nil {
		<-m.block
	}
	return len(p), m.do(off, int64(len(p)), func() { copy(p, m.data[off:]) })
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	return len(p), m.do(off, int64(len(p)), func() { copy(m.data[off:], p) })
}

func (m *memory) Flush() error { return m.do(0, 0, func() { m.flushes++ }) }
func (m *memory) Discard(off, n int64) error {
	return m.do(off, n, func() { clear(m.data[off : off+n]) })
}
func (m *memory) WriteZeroes(off, n int64) error { return m.Discard(off, n) }
func (m *memory) Size() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return int64(len(m.data))
}

// served is a session with a server in this process.
type served struct {
	*Session
	server *Server
	state  []byte
	cancel context.CancelCauseFunc
	done   chan error
}

func need(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it makes detached mounts")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("this machine has no /dev/fuse")
	}
}

func newSession(t *testing.T) *Session {
	t.Helper()
	need(t)
	s, err := NewSession("disk")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func serve(t *testing.T, s *Session, p export.Params) *served {
	t.Helper()
	v := &served{Session: s, server: NewServer(s.Dev, Options{Threads: 4, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}), done: make(chan error, 1)}
	ctx, cancel := context.WithCancelCause(context.Background())
	v.cancel = cancel
	p.Name = "disk"
	p.SaveState = func(b []byte) error { v.state = append([]byte(nil), b...); return nil }
	go func() { v.done <- v.server.Serve(ctx, p) }()
	return v
}

func (v *served) open(t *testing.T, flags int) *os.File {
	t.Helper()
	f, err := v.OpenDisk(within(t), flags)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func (v *served) wait(t *testing.T) error {
	t.Helper()
	select {
	case err := <-v.done:
		return err
	case <-time.After(10 * time.Second):
		t.Fatal("Serve did not return")
		return nil
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

// TestServe compares random requests with a model, then ends the session from the kernel's side.
func TestServe(t *testing.T) {
	seed := rand.Uint64()
	if v := os.Getenv("SEED"); v != "" {
		seed, _ = strconv.ParseUint(v, 10, 64)
	}
	t.Logf("SEED=%d", seed)
	rnd := rand.New(rand.NewPCG(seed, seed))
	const size = 4 << 20
	m := newMemory(size)
	v := serve(t, newSession(t), export.Params{Disk: m})
	f := v.open(t, os.O_RDWR|unix.O_DIRECT)
	fd := int(f.Fd())
	model, buf := make([]byte, size), aligned(t, 2<<20)
	for range 500 {
		off := rnd.Int64N(size/512) * 512
		n := min(rnd.Int64N(int64(len(buf))/512)*512, size-off)
		switch rnd.IntN(6) {
		case 0:
			if n > 0 {
				if err := unix.Fallocate(fd, fallocPunch, off, n); err != nil {
					t.Fatal(err)
				}
				clear(model[off : off+n])
			}
		case 1:
			if n > 0 {
				if err := unix.Fallocate(fd, fallocZero, off, n); err != nil {
					t.Fatal(err)
				}
				clear(model[off : off+n])
			}
		case 2:
			if err := f.Sync(); err != nil {
				t.Fatal(err)
			}
		case 3, 4:
			b := buf[:n]
			for i := 0; i < len(b); i += 64 {
				b[i] = byte(rnd.Uint32())
			}
			if _, err := f.WriteAt(b, off); err != nil {
				t.Fatal(err)
			}
			copy(model[off:], b)
		default:
			if _, err := f.ReadAt(buf[:n], off); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(buf[:n], model[off:off+n]) {
				t.Fatalf("%d bytes at %d differ", n, off)
			}
		}
	}
	m.mu.Lock() // the race detector does not see that the kernel orders all this
	if !bytes.Equal(m.data, model) {
		t.Error("the disk differs from what was written")
	}
	if m.flushes == 0 {
		t.Error("fsync did not flush")
	}
	m.mu.Unlock()
	if n, err := f.ReadAt(buf[:512], size); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("read at the end: %d, %v", n, err)
	}
	if err := f.Truncate(size / 2); !errors.Is(err, unix.EPERM) {
		t.Errorf("truncate: %v", err)
	}
	v.gone(t, f)
}

// gone closes everything on the kernel's side; Serve must then return nil.
func (v *served) gone(t *testing.T, f *os.File) {
	t.Helper()
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if err := v.CloseMount(); err != nil {
		t.Error(err)
	}
	if err := v.wait(t); err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func TestErrors(t *testing.T) {
	m := newMemory(1 << 20)
	v := serve(t, newSession(t), export.Params{Disk: m})
	f := v.open(t, os.O_RDWR|unix.O_DIRECT)
	buf := aligned(t, 4096)
	for _, c := range []struct {
		kind fault.Kind
		want unix.Errno
	}{{fault.NoSpace, unix.ENOSPC}, {fault.ReadOnly, unix.EROFS}, {fault.Poisoned, unix.EIO}, {fault.Internal, unix.EIO}} {
		m.mu.Lock()
		m.fail = fault.New(c.kind, "", "as asked")
		m.mu.Unlock()
		_, rerr := f.ReadAt(buf, 0)
		_, werr := f.WriteAt(buf, 0)
		for what, err := range map[string]error{"read": rerr, "write": werr, "fsync": f.Sync(),
			"discard": unix.Fallocate(int(f.Fd()), fallocPunch, 0, 4096)} {
			if !errors.Is(err, c.want) {
				t.Errorf("%s of a disk that says %s: %v, want %v", what, c.kind, err, c.want)
			}
		}
	}
	v.gone(t, f)
}

func TestReadOnly(t *testing.T) {
	v := serve(t, newSession(t), export.Params{Disk: newMemory(1 << 20), ReadOnly: true})
	if f, err := v.OpenDisk(within(t), os.O_RDWR); !errors.Is(err, unix.EROFS) {
		t.Errorf("open for writing: %v, %v", f, err)
	}
	f := v.open(t, os.O_RDONLY)
	if _, err := f.ReadAt(make([]byte, 512), 0); err != nil {
		t.Error(err)
	}
	v.gone(t, f)
}

func TestResized(t *testing.T) {
	m := newMemory(1 << 20)
	v := serve(t, newSession(t), export.Params{Disk: m})
	f := v.open(t, os.O_RDWR)
	for _, size := range []int{1 << 20, 3 << 20, 7 << 20} {
		m.mu.Lock()
		m.data = make([]byte, size)
		m.mu.Unlock()
		if err := v.server.Resized(); err != nil {
			t.Fatal(err)
		}
		if st, err := f.Stat(); err != nil || st.Size() != int64(size) {
			t.Errorf("size %v, %v, want %d", st.Size(), err, size)
		}
	}
	v.gone(t, f)
}

func TestNames(t *testing.T) {
	need(t)
	for _, name := range []string{"", ".", "..", "a/b", "a\x00b", string(make([]byte, 256))} {
		if s, err := NewSession(name); fault.KindOf(err) != fault.Invalid {
			t.Errorf("session %q: %v, %v", name, s, err)
		}
	}
}

// Nodes that share a kernel tell their devices apart by what follows the disk's id.
func TestFileNameHasATag(t *testing.T) {
	need(t)
	for name, ok := range map[string]bool{"disk@node-2": true, "disk@": true, "disc@node-2": false, "dis@k": false} {
		s, err := NewSession(name)
		if err != nil {
			t.Fatal(err)
		}
		v := serve(t, s, export.Params{Disk: newMemory(1 << 20)})
		f, err := v.OpenDisk(within(t), os.O_RDONLY)
		if (err == nil) != ok {
			t.Errorf("%s: %v", name, err)
		}
		if f != nil {
			if f.Name() != "/"+name {
				t.Errorf("the file is %s", f.Name())
			}
			_ = f.Close()
		}
		v.cancel(nil)
		_ = v.wait(t) // says that it was asked to end
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}
