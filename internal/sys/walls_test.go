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
	"seccomp": behindSeccomp, "landlock": behindLandlock, "capabilities": behindNoCaps, "internet": behindInternet, "paths": behindPaths,
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
		for _, nr := range append(denied, unix.SYS_SOCKET) {
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

func behindInternet(string) error {
	if err := DenySyscallsButInternet(); err != nil {
		return err
	}
	return onManyThreads(func() error {
		for _, domain := range []int{unix.AF_INET, unix.AF_INET6} {
			fd, err := unix.Socket(domain, unix.SOCK_STREAM, 0)
			if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
				return fmt.Errorf("a socket of domain %d: %w", domain, err)
			}
			_ = unix.Close(fd)
		}
		for _, domain := range []int{unix.AF_UNIX, unix.AF_NETLINK, unix.AF_PACKET, unix.AF_VSOCK} {
			if fd, err := unix.Socket(domain, unix.SOCK_RAW, 0); !errors.Is(err, unix.EPERM) {
				return fmt.Errorf("a socket of domain %d: %d, %v", domain, fd, err)
			}
		}
		if _, _, e := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0); e != unix.EPERM {
			return fmt.Errorf("fork: %v", e)
		}
		return nil
	})
}

func behindPaths(dir string) error {
	later := filepath.Join(dir, "later")
	if err := errors.Join(os.Mkdir(later, 0o700), NoNewPrivileges()); err != nil {
		return err
	}
	inside := filepath.Join(dir, "inside")
	if _, err := RestrictToPaths([]Path{{inside, true}, {filepath.Join(later, "lun"), true}, {"/etc/passwd", false}, {"/dev/no such", true}}); err != nil {
		return err
	}
	return onManyThreads(func() error {
		for name, flags := range map[string]int{inside: unix.O_RDWR, "/etc/passwd": unix.O_RDONLY} {
			fd, err := unix.Open(name, flags|unix.O_CLOEXEC, 0)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			_ = unix.Close(fd)
		}
		if _, err := unix.Open(filepath.Join(later, "lun"), unix.O_RDWR|unix.O_CLOEXEC, 0); !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("what comes later: %w", err)
		}
		for _, name := range []string{"/etc/passwd", "/dev/null", filepath.Join(dir, "new")} {
			if fd, err := unix.Open(name, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600); !errors.Is(err, unix.EACCES) {
				return fmt.Errorf("opening %s gave %d, %v", name, fd, err)
			}
		}
		return nil
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
