package wire_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/hosttest"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/wire"
)

// served is a hostd that can be ended and started again on one socket.
type served struct {
	path string
	stop func()
}

func serve(t *testing.T, path string, h host.Host) *served {
	t.Helper()
	return serveWith(t, path, h, wire.Options{})
}

func serveWith(t *testing.T, path string, h host.Host, o wire.Options) *served {
	t.Helper()
	if path == "" {
		path = filepath.Join(t.TempDir(), "s")
	}
	_ = os.Remove(path)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- wire.Serve(ctx, l, h, o) }()
	s := &served{path: path}
	s.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(s.stop)
	return s
}

func client(t *testing.T, s *served) *wire.Client {
	t.Helper()
	c := wire.NewClient(s.path)
	t.Cleanup(func() { c.Close() })
	return c
}

func descriptors(t *testing.T) int {
	t.Helper()
	l, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(l)
}

func TestConforms(t *testing.T) {
	before := descriptors(t)
	t.Run("port", func(t *testing.T) {
		open := func(t *testing.T) hosttest.Subject {
			m := hosttest.NewMemory("node-a", "node-b")
			t.Cleanup(m.Close)
			return hosttest.Subject{Host: client(t, serve(t, "", m)), Node: "node-a", Datastore: "local", OtherDatastore: "shared",
				Session: hosttest.NoKernel}
		}
		hosttest.Run(t, open)
		hosttest.RunSnapshots(t, open)
	})
	settle(t, before)
}

// settle waits until no more descriptors are open than before.
func settle(t *testing.T, before int) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		n := descriptors(t)
		if n <= before {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d descriptors are open, %d were", n, before)
		}
	}
}

func TestFaultsRoundTrip(t *testing.T) {
	m := hosttest.NewMemory("a")
	defer m.Close()
	want := fault.New(fault.Exhausted, "Do this.", "that happened: %w", os.ErrClosed)
	m.FailNext(func(method, _ string) error {
		if method == "get" {
			return want
		}
		return nil
	})
	_, err := client(t, serve(t, "", m)).Get(t.Context(), host.DiskID("x"))
	var f *fault.Fault
	if !errors.As(err, &f) || f.Kind != want.Kind || f.Remedy != want.Remedy || !errors.Is(err, fault.Exhausted) {
		t.Fatalf("%#v", err)
	}
}

func TestReconnects(t *testing.T) {
	m := hosttest.NewMemory("a")
	defer m.Close()
	s := serve(t, "", m)
	c := client(t, s)
	ctx := t.Context()
	if _, err := c.Datastores(ctx); err != nil {
		t.Fatal(err)
	}
	s.stop()
	if _, err := c.Datastores(ctx); !errors.Is(err, fault.Unavailable) {
		t.Fatalf("while hostd is away: %v", err)
	}
	if _, err := wire.Dial(ctx, s.path); !errors.Is(err, fault.Unavailable) {
		t.Fatalf("dial while hostd is away: %v", err)
	}
	serve(t, s.path, m)
	if _, err := c.Datastores(ctx); err != nil {
		t.Fatalf("after hostd's restart: %v", err)
	}
}

// An idle connection that died with a former hostd is not the caller's business.
func TestRestartBetweenCalls(t *testing.T) {
	m := hosttest.NewMemory("a")
	defer m.Close()
	s := serve(t, "", m)
	c := client(t, s)
	for range 5 {
		if _, err := c.Datastores(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.stop()
		s = serve(t, s.path, m)
	}
}

// A predecessor that has handed over still has its clients' connections: they must find the successor by themselves.
func TestFollowsTheSuccessor(t *testing.T) {
	m := hosttest.NewMemory("a")
	defer m.Close()
	old := serve(t, "", m)
	c := client(t, old)
	if _, err := c.Datastores(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.FailNext(func(string, string) error { return fault.New(fault.Unavailable, "", "handed over") })
	if _, err := c.Datastores(t.Context()); !errors.Is(err, fault.Unavailable) {
		t.Fatalf("without a successor: %v", err)
	}
	m.FailNext(nil)
	if _, err := c.Datastores(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.FailNext(func(string, string) error { return fault.New(fault.Unavailable, "", "handed over") })
	next := hosttest.NewMemory("a")
	defer next.Close()
	serve(t, old.path, next)
	if _, err := c.Datastores(t.Context()); err != nil {
		t.Fatalf("with a successor: %v", err)
	}
}

// slow blocks Get until its context ends.
type slow struct {
	*hosttest.Memory
	entered  chan struct{}
	deadline chan bool
}

func (s slow) Get(ctx context.Context, _ string) (host.Disk, error) {
	_, has := ctx.Deadline()
	s.entered <- struct{}{}
	<-ctx.Done()
	s.deadline <- has
	return host.Disk{}, fault.Wrap(ctx.Err(), "get")
}

func TestCancellationAndDeadline(t *testing.T) {
	m := hosttest.NewMemory("a")
	defer m.Close()
	h := slow{m, make(chan struct{}), make(chan bool)}
	c := client(t, serve(t, "", h))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { _, err := c.Get(ctx, "x"); done <- err }()
	<-h.entered
	cancel()
	if err := <-done; !errors.Is(err, fault.Timeout) {
		t.Fatalf("canceled: %v", err)
	}
	if has := <-h.deadline; has {
		t.Fatal("a call without a deadline got one")
	}
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	go func() { _, err := c.Get(ctx, "x"); done <- err }()
	<-h.entered
	if has := <-h.deadline; !has {
		t.Fatal("the deadline did not arrive")
	}
	if err := <-done; !errors.Is(err, fault.Timeout) {
		t.Fatalf("after the deadline: %v", err)
	}
	if _, err := c.Datastores(t.Context()); err != nil {
		t.Fatalf("the next call: %v", err)
	}
}

// Ending the server cancels what runs and waits for it.
func TestServeWaits(t *testing.T) {
	m := hosttest.NewMemory("a")
	defer m.Close()
	h := slow{m, make(chan struct{}), make(chan bool, 1)}
	s := serve(t, "", h)
	c := client(t, s)
	done := make(chan error, 1)
	go func() { _, err := c.Get(context.Background(), "x"); done <- err }()
	<-h.entered
	s.stop()
	select {
	case <-h.deadline:
	default:
		t.Fatal("Serve returned while a request ran")
	}
	if err := <-done; err == nil {
		t.Fatal("the canceled call succeeded")
	}
}

func TestManyAtOnce(t *testing.T) {
	m := hosttest.NewMemory("a")
	defer m.Close()
	c := client(t, serve(t, "", m))
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			for range 10 {
				d, err := c.Create(t.Context(), host.DiskSpec{Name: string(rune('a' + i)), Datastore: "local", Size: 1 << 20})
				if err != nil {
					t.Error(err)
					return
				}
				if got, err := c.Get(t.Context(), d.ID); err != nil || got.ID != d.ID {
					t.Errorf("got %s, want %s: %v", got.ID, d.ID, err)
				}
			}
		})
	}
	wg.Wait()
}

func TestHandover(t *testing.T) {
	before := descriptors(t)
	m := hosttest.NewMemory("a")
	s := serve(t, "", m)
	c := wire.NewClient(s.path)
	ctx := t.Context()
	for _, n := range []string{"x", "y", "z"} {
		d, err := c.Create(ctx, host.DiskSpec{Name: n, Datastore: "local", Size: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Attach(ctx, host.AttachRequest{ID: d.ID}, host.Device{Fuse: r, Table: w}); err != nil {
			t.Fatal(err)
		}
		r.Close()
		w.Close()
	}
	n := 0
	err := c.Handover(ctx, func(h host.Held) error {
		defer h.Close()
		n++
		if n == 2 {
			return fault.New(fault.NoSpace, "", "no room")
		}
		// The two ends of the pipe must be this disk's, in this order.
		if _, err := h.Device.Table.WriteString("!"); err != nil {
			t.Error(err)
		}
		b := make([]byte, 1)
		if _, err := h.Device.Fuse.Read(b); err != nil || b[0] != '!' {
			t.Errorf("read %q %v", b, err)
		}
		return nil
	})
	if !errors.Is(err, fault.NoSpace) || n != 2 {
		t.Fatalf("handover with a refusal after %d disks: %v", n, err)
	}
	if err := c.Handover(ctx, func(h host.Held) error { h.Close(); n++; return nil }); err != nil || n != 4 {
		t.Fatalf("%d disks, %v", n, err)
	}
	m.Close()
	c.Close()
	s.stop()
	settle(t, before)
}
