package fuse

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/sys"
	"github.com/vmdk-csi/vmdk-csi/pkg/export"
	"github.com/vmdk-csi/vmdk-csi/pkg/export/exporttest"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

func newMemory(size int) *exporttest.Memory { return exporttest.NewMemory(size) }

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

// session is what the conformance suite sees.
type session struct {
	*Session
	t *testing.T
}

func (s session) Server() export.Server {
	return NewServer(s.Dev, Options{Threads: 4, Log: slog.New(slog.NewTextHandler(s.t.Output(), nil))})
}

func (s session) Open(ctx context.Context, flags int) (*os.File, error) {
	return s.OpenDisk(ctx, flags)
}

func (s session) Close() error { return s.CloseMount() }

func TestConformance(t *testing.T) {
	exporttest.Run(t, "disk", func(t *testing.T) exporttest.Session { return session{newSession(t), t} })
}

// An open that was given up, and could not be aborted, succeeds when a server comes after all: its file must not stay open.
func TestAbandonedOpenIsClosed(t *testing.T) {
	s := newSession(t)
	minor := s.minor
	s.minor = 1 << 20 // a connection that does not exist: the abort fails
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	f, err := s.OpenDisk(ctx, os.O_RDWR)
	if fault.KindOf(err) != fault.Timeout || !strings.Contains(err.Error(), "cannot be aborted") {
		t.Fatalf("OpenDisk without a server: %v, %v", f, err)
	}
	s.minor = minor
	v := serve(t, s, export.Params{Disk: newMemory(1 << 20)})
	// The session's file system ends with the mount, unless somebody has the file open.
	v.open(t, os.O_RDWR).Close()
	if err := s.CloseMount(); err != nil {
		t.Fatal(err)
	}
	if err := v.wait(t); err != nil {
		t.Error(err)
	}
}

// A size is not the guest's to change through the file.
func TestTruncate(t *testing.T) {
	v := serve(t, newSession(t), export.Params{Disk: newMemory(1 << 20)})
	f := v.open(t, os.O_RDWR)
	if err := f.Truncate(1 << 19); !errors.Is(err, unix.EPERM) {
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
