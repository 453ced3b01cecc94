package fuse

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/export"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// TestNoServer: opening a disk that nobody serves ends at the deadline, for certain.
func TestNoServer(t *testing.T) {
	s := newSession(t)
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	f, err := s.OpenDisk(ctx, os.O_RDWR)
	if fault.KindOf(err) != fault.Timeout {
		t.Fatalf("%v, %v", f, err)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("it took %v", d)
	}
	if _, err := s.OpenDisk(within(t), os.O_RDWR); err == nil {
		t.Error("an aborted session can be opened")
	}
	// A server that comes too late finds the session gone.
	v := serve(t, s, export.Params{Disk: newMemory(4096)})
	if err := v.wait(t); err != nil {
		t.Errorf("Serve of an aborted session: %v", err)
	}
}

// TestStalledServer: the server answered INIT and then hangs.
func TestStalledServer(t *testing.T) {
	m := newMemory(1 << 20)
	s := newSession(t)
	release := m.Hold() // Size waits, and so does LOOKUP
	v := serve(t, s, export.Params{Disk: m})
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if f, err := s.OpenDisk(ctx, os.O_RDWR); fault.KindOf(err) != fault.Timeout {
		t.Errorf("%v, %v", f, err)
	}
	release()
	if err := v.wait(t); err != nil {
		t.Errorf("Serve: %v", err)
	}
}

// TestStopBeforeInit: a server that nobody wants to mount can be stopped.
func TestStopBeforeInit(t *testing.T) {
	s := newSession(t)
	swallow(t, s) // INIT
	v := serve(t, s, export.Params{Disk: newMemory(4096)})
	why := errors.New("enough")
	v.cancel(why)
	if err := v.wait(t); !errors.Is(err, why) {
		t.Errorf("Serve: %v", err)
	}
}

// swallow reads one request and never answers it, as a server that is killed does.
func swallow(t *testing.T, s *Session) uint32 {
	t.Helper()
	b := make([]byte, MaxIO+4096)
	n, err := unix.Read(int(s.Dev.Fd()), b)
	if err != nil || n < inHeader {
		t.Fatalf("%d, %v", n, err)
	}
	return native.Uint32(b[4:])
}

// TestResend: what a dead server had read comes again, INIT included.
func TestResend(t *testing.T) {
	m := newMemory(1 << 20)
	s := newSession(t)
	if op := swallow(t, s); op != opInit {
		t.Fatalf("the first request is %d", op)
	}
	first := serve(t, s, export.Params{Disk: m, Takeover: true})
	f := first.open(t, os.O_RDWR|unix.O_DIRECT)
	if _, resent := first.server.Requests(); resent == 0 {
		t.Error("INIT was not sent again")
	}
	why := errors.New("enough")
	first.cancel(why)
	if err := first.wait(t); !errors.Is(err, why) {
		t.Fatal(err)
	}

	buf := aligned(t, 8192)
	for i := range buf {
		buf[i] = byte(i)
	}
	wrote := make(chan error, 1)
	go func() { _, err := f.WriteAt(buf, 8192); wrote <- err }()
	for swallow(t, s) != opWrite { // messages that stopped the first server's threads may come before
	}
	second := serve(t, s, export.Params{Disk: m, State: first.state, Takeover: true})
	select {
	case err := <-wrote:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the write of a dead server was not served again")
	}
	if _, resent := second.server.Requests(); resent != 1 {
		t.Errorf("%d requests came again, want 1", resent)
	}
	if second.state != nil {
		t.Error("the successor negotiated again")
	}
	if m.Content(8193, 1)[0] != 1 {
		t.Error("the write did not reach the disk")
	}
	second.gone(t, f)
}

func TestBadState(t *testing.T) {
	s := newSession(t)
	v := serve(t, s, export.Params{Disk: newMemory(4096), State: []byte("nonsense")})
	if err := v.wait(t); fault.KindOf(err) != fault.Damaged {
		t.Errorf("Serve: %v", err)
	}
}

// TestDiedBeforeInitAnswer: the first server saved INIT's outcome and died before it answered.
func TestDiedBeforeInitAnswer(t *testing.T) {
	s := newSession(t)
	swallow(t, s)
	n := negotiated{minor: 45, flags: initHasResend, maxWrite: MaxIO}
	v := serve(t, s, export.Params{Disk: newMemory(1 << 20), State: n.marshal(), Takeover: true})
	v.gone(t, v.open(t, os.O_RDWR))
}

// TestStopBeforeOpen: the session is up and nobody has looked for the file yet.
func TestStopBeforeOpen(t *testing.T) {
	v := serve(t, newSession(t), export.Params{Disk: newMemory(1 << 20)})
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if all, _ := v.server.Requests(); all > 0 {
			break
		}
	}
	why := errors.New("enough")
	v.cancel(why)
	if err := v.wait(t); !errors.Is(err, why) {
		t.Errorf("Serve: %v", err)
	}
}

// TestCloseNeverWaits: closing the file, also by execve, does not wait for a server.
func TestCloseNeverWaits(t *testing.T) {
	v := serve(t, newSession(t), export.Params{Disk: newMemory(1 << 20)})
	f := v.open(t, os.O_RDWR)
	why := errors.New("enough")
	v.cancel(why)
	if err := v.wait(t); !errors.Is(err, why) {
		t.Fatal(err)
	}
	done := make(chan error, 2)
	go func() { done <- exec.Command("/bin/true").Run() }() // closes its copy of f
	go func() {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		done <- errors.Join(err, unix.Close(fd))
	}()
	for range 2 {
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(10 * time.Second):
			t.Error("close waits for a server")
			if err := v.Abort(); err != nil {
				t.Error(err)
			}
		}
	}
}
