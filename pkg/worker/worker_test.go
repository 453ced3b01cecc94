package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/sys"
	"github.com/vmdk-csi/vmdk-csi/pkg/export"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/worker/table"
)

// TestMain is also the worker. What kind of worker, and how it misbehaves, says the environment.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "disk" {
		err := Main(context.Background(), Params{Files: Inherited(), Open: openTest,
			NewServer: func(dev *os.File, _ *slog.Logger) export.Server { return &pipeServer{dev: dev} }})
		if err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// testDisk is a file that can be told to fail.
type testDisk struct {
	dir  fsx.Dir
	f    fsx.File
	size atomic.Int64
}

func openTest(_ context.Context, r OpenRequest) (Disk, error) {
	switch os.Getenv("WORKER_TEST") {
	case "damaged":
		return nil, fault.New(fault.Damaged, "restore it", "as asked")
	case "hang":
		select {}
	case "crash":
		os.Exit(3)
	}
	f, err := r.Dir.Open("disk", fsx.ReadWrite)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	d := &testDisk{dir: r.Dir, f: f}
	d.size.Store(st.Size)
	return d, nil
}

func (d *testDisk) ReadAt(p []byte, off int64) (int, error)  { return d.f.ReadAt(p, off) }
func (d *testDisk) WriteAt(p []byte, off int64) (int, error) { return d.f.WriteAt(p, off) }
func (d *testDisk) Flush() error {
	switch os.Getenv("WORKER_TEST") {
	case "poison":
		return unix.EIO
	case "slow poison":
		for { // the test makes the file, or kills us
			if _, err := d.dir.Stat("go on"); err == nil {
				return unix.EIO
			}
			time.Sleep(time.Millisecond)
		}
	}
	return d.f.Datasync()
}
func (d *testDisk) Discard(off, n int64) error     { return d.f.Punch(off, n) }
func (d *testDisk) WriteZeroes(off, n int64) error { return d.f.Zero(off, n) }
func (d *testDisk) Size() int64                    { return d.size.Load() }
func (d *testDisk) Grow(ctx context.Context, n int64) error {
	if os.Getenv("WORKER_TEST") == "endless growth" {
		f, err := d.dir.Open("growing", fsx.ReadWrite|fsx.Create) // for the test to see
		if err != nil {
			return err
		}
		<-ctx.Done()
		return errors.Join(ctx.Err(), f.Close())
	}
	d.size.Store(n)
	return d.f.Truncate(n)
}
func (d *testDisk) Close() error { return d.f.Close() }

// pipeServer is an export.Server without a kernel: the "device" is a socket on which every byte that arrives is answered
// with one: what reading the disk gave.
type pipeServer struct{ dev *os.File }

func (s *pipeServer) Resized() error { return nil }

func (s *pipeServer) Serve(ctx context.Context, p export.Params) error {
	if p.State == nil {
		if err := p.SaveState([]byte("state")); err != nil {
			return err
		}
	} else if string(p.State) != "state" || !p.Takeover {
		return fmt.Errorf("state %q, take-over %v", p.State, p.Takeover)
	}
	p.Ready()
	if os.Getenv("WORKER_TEST") == "crash later" {
		return errors.New("as asked")
	}
	fd, err := sys.Fd(s.dev)
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, 5); err != nil || fds[0].Revents == 0 {
			continue
		}
		var b [1]byte
		n, err := unix.Read(fd, b[:])
		if err != nil || n == 0 {
			return err // the other end is closed
		}
		b[0] = 'y'
		if _, err := p.Disk.ReadAt(make([]byte, 1), 0); err != nil {
			b[0] = 'n'
		}
		if _, err := unix.Write(fd, b[:]); err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

// rig is a disk's descriptors.
type rig struct {
	spec   Spec
	kernel *os.File // the other end of the device
	dir    string
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{dir: t.TempDir()}
	if err := os.WriteFile(filepath.Join(r.dir, "disk"), make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	tab, err := table.Create()
	if err != nil {
		t.Fatal(err)
	}
	d, err := os.Open(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	dev := os.NewFile(uintptr(fds[1]), "device")
	r.kernel = os.NewFile(uintptr(fds[0]), "kernel")
	r.spec = Spec{ID: "d1", Dir: d, Device: Device{Fuse: dev, Table: tab}}
	t.Cleanup(func() {
		for _, f := range []*os.File{d, dev, tab, r.kernel} {
			f.Close()
		}
	})
	return r
}

// ask makes one request as the kernel would.
func (r *rig) ask(t *testing.T) byte {
	t.Helper()
	fd := int(r.kernel.Fd())
	tv := unix.NsecToTimeval((10 * time.Second).Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		t.Fatal(err)
	}
	b := []byte{'?'}
	if _, err := unix.Write(fd, b); err != nil {
		t.Fatal(err)
	}
	if n, err := unix.Read(fd, b); n != 1 || err != nil {
		t.Fatalf("no answer: %d, %v", n, err)
	}
	return b[0]
}

func supervisor(t *testing.T, behave string) *Supervisor {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := NewSupervisor(Options{Command: []string{self, "disk"}, Env: append(os.Environ(), "WORKER_TEST="+behave),
		Backoff: 50 * time.Millisecond})
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

const long = 20 * time.Second

func start(t *testing.T, s *Supervisor, r *rig) *Handle {
	t.Helper()
	h, err := s.Start(within(t, long), r.spec)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(long); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", long, what)
		}
	}
}

func kill(t *testing.T, h *Handle) {
	t.Helper()
	before := h.State()
	if err := unix.Kill(before.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a successor", func() bool {
		st := h.State()
		return st.Phase == Serving && st.PID != before.PID
	})
}

func TestServeRestartStop(t *testing.T) {
	r := newRig(t)
	h := start(t, supervisor(t, ""), r)
	first, err := h.PidFD()
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	for i := range 3 {
		if r.ask(t) != 'y' {
			t.Fatal("the disk cannot be read")
		}
		kill(t, h)
		st := h.State()
		if st.Restarts != i+1 || st.Size != 8192 || st.LastErr == nil || !strings.Contains(st.LastErr.Error(), "killed") {
			t.Errorf("after death %d: %+v", i+1, st)
		}
	}
	if err := sys.PidfdWait(within(t, long), first); err != nil {
		t.Errorf("the first worker is not dead: %v", err)
	}
	if r.ask(t) != 'y' {
		t.Error("the disk cannot be read")
	}
	stats, err := h.Stats(within(t, long))
	if err != nil || stats.Generation != 4 || stats.Size != 8192 {
		t.Errorf("%+v, %v", stats, err)
	}
	if size, err := h.Grow(within(t, long), 16384); err != nil || size != 16384 {
		t.Errorf("Grow: %d, %v", size, err)
	}
	kill(t, h)
	if st := h.State(); st.Size != 16384 {
		t.Errorf("a successor sees %d bytes", st.Size)
	}
	if err := errors.Join(h.Flush(within(t, long)), h.Stop(within(t, long)), h.Stop(within(t, long)), h.Kill()); err != nil {
		t.Error(err)
	}
	if st := h.State(); st.Phase != Ended || st.PID != 0 {
		t.Errorf("%+v", st)
	}
	if _, err := h.PidFD(); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("PidFD of an ended disk: %v", err)
	}
}

func TestGone(t *testing.T) {
	r := newRig(t)
	h := start(t, supervisor(t, ""), r)
	r.kernel.Close()
	eventually(t, "Gone", func() bool { return h.State().Phase == Gone })
	if err := h.Stop(within(t, long)); err != nil {
		t.Error(err)
	}
}

func TestCannotOpen(t *testing.T) {
	r := newRig(t)
	s := supervisor(t, "damaged")
	h, err := s.Start(within(t, long), r.spec)
	if fault.KindOf(err) != fault.Damaged || !strings.Contains(err.Error(), "restore it") {
		t.Errorf("%v, %v", h, err)
	}
	if len(s.handles) != 0 {
		t.Error("something is left")
	}
}

func TestStartDeadline(t *testing.T) {
	r := newRig(t)
	for _, behave := range []string{"hang", "crash"} { // a worker that dies before it could say why is tried again
		if h, err := supervisor(t, behave).Start(within(t, 300*time.Millisecond), r.spec); fault.KindOf(err) != fault.Timeout {
			t.Errorf("%s: %v, %v", behave, h, err)
		}
	}
	// Nothing of these was a service: the next worker opens afresh.
	tab, err := table.Open(r.spec.Device.Table)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tab.Close() }()
	if tab.Served() || tab.Generation() == 0 {
		t.Errorf("served %v, generation %d", tab.Served(), tab.Generation())
	}
}

// TestBackoff: workers that die at once are restarted ever more slowly, and the disk can be stopped from that.
func TestBackoff(t *testing.T) {
	r := newRig(t)
	h := start(t, supervisor(t, "crash later"), r)
	eventually(t, "Waiting", func() bool { return h.State().Phase == Waiting })
	if st := h.State(); st.LastErr == nil || !strings.Contains(st.LastErr.Error(), "as asked") {
		t.Errorf("%+v", st)
	}
	if err := h.Kill(); err != nil {
		t.Error(err)
	}
}

// TestPoison: a failed flush survives the worker, and is what Stop reports.
func TestPoison(t *testing.T) {
	r := newRig(t)
	h := start(t, supervisor(t, "poison"), r)
	if r.ask(t) != 'y' {
		t.Fatal("the disk cannot be read")
	}
	if err := h.Flush(within(t, long)); err == nil {
		t.Fatal("Flush succeeded")
	}
	eventually(t, "Poisoned", func() bool { return h.State().Poisoned })
	eventually(t, "the trouble is told", func() bool {
		st := h.State()
		return st.Trouble != nil && st.Trouble.Message != "" && !st.TroubleAt.IsZero()
	})
	for range 2 {
		if r.ask(t) != 'n' {
			t.Error("a poisoned disk is read")
		}
		kill(t, h)
		if !h.State().Poisoned {
			t.Error("the successor does not know")
		}
	}
	var answered *fault.Fault
	if err := h.Stop(within(t, long)); fault.KindOf(err) != fault.Poisoned || !errors.As(err, &answered) {
		t.Errorf("Stop: %v", err)
	}
	<-h.Done()
}

// TestAdopt: another supervisor takes over from one that still runs, and from one that is gone.
func TestAdopt(t *testing.T) {
	r := newRig(t)
	first := start(t, supervisor(t, ""), r)
	old, err := first.PidFD()
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	s := supervisor(t, "")
	if h, err := s.Adopt(within(t, 100*time.Millisecond), r.spec, old, false); fault.KindOf(err) != fault.Timeout {
		t.Fatalf("adopted from the living: %v, %v", h, err)
	}
	if err := first.Kill(); err != nil {
		t.Fatal(err)
	}
	second, err := s.Adopt(within(t, long), r.spec, old, true)
	if err != nil {
		t.Fatal(err)
	}
	if r.ask(t) != 'y' {
		t.Error("the disk cannot be read")
	}
	stats, err := second.Stats(within(t, long))
	if err != nil || stats.Generation != 2 {
		t.Errorf("%+v, %v", stats, err)
	}
	// Without any pidfd the claim keeps a third one waiting.
	third := supervisor(t, "")
	if h, err := third.Start(within(t, 200*time.Millisecond), r.spec); fault.KindOf(err) != fault.Timeout {
		t.Errorf("two workers serve one disk: %v, %v", h, err)
	}
	if err := second.Stop(within(t, long)); err != nil {
		t.Error(err)
	}
}

func TestReadOnlyAndWalls(t *testing.T) {
	r := newRig(t)
	r.spec.ReadOnly = true
	h := start(t, supervisor(t, ""), r)
	w := h.State().Walls
	t.Logf("%+v", w)
	if !w.Seccomp {
		t.Errorf("no system call filter: %v", w.Missing)
	}
	if sys.LandlockABI() > 0 && w.Landlock == 0 && !strings.Contains(fmt.Sprint(w.Missing), "cgo") {
		t.Errorf("no Landlock: %v", w.Missing)
	}
	if err := h.Stop(within(t, long)); err != nil {
		t.Error(err)
	}
}

func TestClosed(t *testing.T) {
	r := newRig(t)
	s := supervisor(t, "")
	h := start(t, s, r)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if st := h.State(); st.Phase != Ended {
		t.Errorf("%+v", st)
	}
	if h, err := s.Start(within(t, long), r.spec); fault.KindOf(err) != fault.Precondition {
		t.Errorf("%v, %v", h, err)
	}
}

// TestNoDescriptorLeaks: what a supervisor opens for a disk it closes with it.
func TestNoDescriptorLeaks(t *testing.T) {
	r := newRig(t)
	count := func() int {
		e, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(e)
	}
	s := supervisor(t, "")
	start(t, s, r).Kill() // the runtime's poller
	before := count()
	for range 5 {
		h := start(t, s, r)
		kill(t, h)
		if err := h.Stop(within(t, long)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, fmt.Sprintf("%d descriptors again", before), func() bool { return count() <= before })
}
