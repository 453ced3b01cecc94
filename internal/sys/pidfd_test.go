package sys

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// killFromInside makes the test binary the process in the other namespace (TestMain).
const killFromInside = "VMDK_CSI_TEST_KILL_FROM_INSIDE"

func sleeper(t *testing.T) (*exec.Cmd, *os.File) {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	fd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	t.Cleanup(func() { _ = f.Close() })
	return cmd, f
}

func TestPidfdKillInAnotherNamespace(t *testing.T) {
	_, pidfd := sleeper(t)
	inside := exec.Command("/proc/self/exe")
	inside.Env = append(os.Environ(), killFromInside+"=1")
	inside.ExtraFiles = []*os.File{pidfd}
	inside.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	if out, err := inside.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := PidfdWait(ctx, pidfd); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("wait for a process that lives: %v", err)
	}
}

func TestPidfdKillAndWait(t *testing.T) {
	_, pidfd := sleeper(t)
	for range 2 { // a dead process is success
		if err := PidfdKill(pidfd); err != nil {
			t.Fatal(err)
		}
		if err := PidfdWait(t.Context(), pidfd); err != nil {
			t.Fatal(err)
		}
	}
}
