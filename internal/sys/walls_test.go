package sys

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// TestMain: a wall stands for the rest of a process, so what happens behind one happens in a child.
func TestMain(m *testing.M) {
	if dir := os.Getenv("SYS_TEST_WALLED"); dir != "" {
		err := walls[os.Getenv("SYS_TEST_WALL")](dir)
		if fault.KindOf(err) == fault.Unsupported {
			fmt.Println("SKIP", err)
		} else if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Getenv(killFromInside) != "" {
		if err := PidfdKill(os.NewFile(3, "pidfd")); !errors.Is(err, ErrOtherNamespace) {
			fmt.Println("PidfdKill:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

var walls = map[string]func(dir string) error{
	"seccomp": behindSeccomp, "landlock": behindLandlock, "capabilities": behindNoCaps,
}

func TestWalls(t *testing.T) {
	for wall := range walls {
		t.Run(wall, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "inside"), []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(os.Environ(), "SYS_TEST_WALLED="+dir, "SYS_TEST_WALL="+wall)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if strings.HasPrefix(string(out), "SKIP") {
				t.Skip(string(out))
			}
		})
	}
}

// onManyThreads runs f at the same time on more threads than there were when the wall was put up.
func onManyThreads(f func() error) error {
	var wg sync.WaitGroup
	errs := make([]error, 8)
	start := make(chan struct{})
	for i := range errs {
		wg.Go(func() {
			runtime.LockOSThread()
			<-start
			errs[i] = f()
		})
	}
	close(start)
	wg.Wait()
	return errors.Join(errs...)
}

func behindSeccomp(string) error {
	if err := DenySyscalls(); err != nil {
		return err
	}
	return onManyThreads(func() error {
		for _, nr := range denied {
			bad := ^uintptr(0) // a call that got through would fail in another way and do no harm
			if _, _, e := unix.RawSyscall6(uintptr(nr), bad, bad, bad, bad, bad, bad); e != unix.EPERM {
				return fmt.Errorf("system call %d: %v, not EPERM", nr, e)
			}
		}
		if _, _, e := unix.RawSyscall(unix.SYS_CLONE3, 0, 0, 0); e != unix.ENOSYS {
			return fmt.Errorf("clone3: %v", e)
		}
		if _, _, e := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0); e != unix.EPERM {
			return fmt.Errorf("fork: %v", e)
		}
		_, err := os.ReadFile("/proc/self/status")
		return err
	})
}

func behindLandlock(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err := NoNewPrivileges(); err != nil {
		return err
	}
	if _, err := RestrictTo(d); err != nil {
		return err
	}
	fd, err := Fd(d)
	if err != nil {
		return err
	}
	return onManyThreads(func() error {
		in, err := unix.Openat(fd, "inside", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("inside: %w", err)
		}
		defer func() { _ = unix.Close(in) }()
		for _, out := range []string{"/etc/passwd", "/", "/dev/null", ".."} {
			if f, err := unix.Openat(fd, out, unix.O_RDONLY|unix.O_CLOEXEC, 0); !errors.Is(err, unix.EACCES) {
				return fmt.Errorf("opening %s gave %d, %v", out, f, err)
			}
		}
		return nil
	})
}

func behindNoCaps(string) error {
	if err := errors.Join(DropCapabilities(), Undumpable()); err != nil {
		return err
	}
	return onManyThreads(func() error {
		b, err := os.ReadFile("/proc/thread-self/status")
		if err == nil && !strings.Contains(string(b), "CapEff:\t0000000000000000") {
			return fmt.Errorf("capabilities left:\n%s", b)
		}
		return err
	})
}
