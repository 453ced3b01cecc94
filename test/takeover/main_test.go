package takeover

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/export"
	"github.com/vmdk-csi/vmdk-csi/pkg/export/fuse"
	"github.com/vmdk-csi/vmdk-csi/pkg/export/loop"
	"github.com/vmdk-csi/vmdk-csi/pkg/worker"
)

// TestMain is five programs: the tests; vmdk-hostd and a node service; a worker with other disks than hostd's, and a small
// hostd that does nothing but supervise one.
func TestMain(m *testing.M) {
	switch {
	case os.Getenv(asHostd) != "":
		exit(realHostd())
	case len(os.Args) == 5 && os.Args[1] == "node":
		exit(nodeService(os.Args[2], os.Args[3], os.Args[4] == "ro"))
	case len(os.Args) == 3 && os.Args[1] == "stepping":
		exit(steppingHostd(os.Args[2]))
	case len(os.Args) > 2 && os.Args[1] == "disk":
		exit(worker.Main(context.Background(), worker.Params{
			Files: worker.Inherited(), Open: openers[os.Getenv("TAKEOVER_OPENER")],
			NewServer: func(dev *os.File, log *slog.Logger) export.Server { return fuse.NewServer(dev, fuse.Options{Log: log}) },
			Log:       slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
		}))
	case len(os.Args) > 2 && os.Args[1] == "hostd":
		exit(hostd())
	}
	before := descriptors()
	code := m.Run()
	if programDir != "" {
		os.RemoveAll(programDir)
	}
	if err := leaks(before); err != nil {
		fmt.Println("LEAK:", err)
		code = 1
	}
	os.Exit(code)
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "takeover:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// openers by name; nil is worker.OpenChain.
var openers = map[string]worker.Opener{"raw": openRaw, "chain": nil, "forgetful": openForgetful, "stepping": openStepping}

// leaks looks for what the tests left: loop devices of theirs, children, descriptors, goroutines. The kernel takes a moment
// for some of them.
func leaks(before map[string]string) error {
	var err error
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err = leaksNow(before); err == nil {
			return nil
		}
	}
	return err
}

func leaksNow(before map[string]string) error {
	var errs []error
	all, err := loop.List()
	errs = append(errs, err)
	for _, a := range all {
		if strings.HasPrefix(a.Backing, "/"+prefix()) || slices.Contains(made, strings.TrimPrefix(a.Backing, "/")) {
			errs = append(errs, fmt.Errorf("loop device %s over %s", a.Path, a.Backing))
		}
	}
	var ws unix.WaitStatus
	if pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil); !errors.Is(err, unix.ECHILD) {
		errs = append(errs, fmt.Errorf("child process %d %v", pid, err))
	}
	for fd, target := range descriptors() {
		if before[fd] != target && !strings.HasPrefix(target, "anon_inode:[event") { // the runtime's poller
			errs = append(errs, fmt.Errorf("descriptor %s of %s", fd, target))
		}
	}
	if n := runtime.NumGoroutine(); n > 2 {
		buf := make([]byte, 1<<16)
		errs = append(errs, fmt.Errorf("%d goroutines\n%s", n, buf[:runtime.Stack(buf, true)]))
	}
	return errors.Join(errs...)
}

func descriptors() map[string]string {
	all := map[string]string{}
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		if target, err := os.Readlink(filepath.Join("/proc/self/fd", e.Name())); err == nil {
			all[e.Name()] = target
		}
	}
	return all
}

// made are the names of disks that do not start with prefix.
var (
	madeMu sync.Mutex
	made   []string
)

// prefix starts the names of this process's disks.
func prefix() string { return fmt.Sprintf("takeover-%d-", os.Getpid()) }

// seeded is the test's source of chance; SEED replays it.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	s := rand.Uint64()
	if v := os.Getenv("SEED"); v != "" {
		var err error
		if s, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatalf("SEED: %v", err)
		}
	}
	t.Logf("SEED=%d", s)
	return rand.New(rand.NewPCG(s, s))
}

// kills is how many deaths a case has.
func kills() int {
	if full() {
		return 10
	}
	return 3
}

func full() bool { return os.Getenv("VMDK_CSI_TAKEOVER") == "full" }

// need skips where the machine truly lacks what every test here is about.
func need(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it makes loop devices and detached mounts")
	}
	for _, p := range []string{"/dev/fuse", "/dev/loop-control"} {
		if _, err := os.Stat(p); err != nil {
			t.Skipf("this machine has no %s", p)
		}
	}
}

// within is a context that ends with the test or after d.
func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// waitLong bounds waits for the kernel.
const waitLong = 20 * time.Second

func after(ms int) <-chan time.Time { return time.After(time.Duration(ms) * time.Millisecond) }
