package node

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/stage"
)

// Roles that the test program plays in other processes.
const (
	roleVariable = "VMDK_CSI_NODE_TEST_ROLE"
	roleTests    = "tests"  // run the tests, in a mount namespace of their own
	roleHelper   = "helper" // FreezeHelper
	rolePlugin   = "plugin" // a Freezer that stops a file system and then waits
)

func TestMain(m *testing.M) {
	switch os.Getenv(roleVariable) {
	case roleHelper:
		if err := FreezeHelper(os.Args[1:], os.Stdin, os.Stdout); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	case rolePlugin:
		os.Exit(plugin(os.Args[1], os.Args[2], os.Args[3]))
	case roleTests:
		os.Exit(m.Run())
	}
	if os.Getuid() != 0 {
		os.Exit(m.Run()) // what needs root says so
	}
	// What the tests mount, no other process can hold; what they leave goes with the last of their processes.
	cmd := exec.Command(self(), os.Args[1:]...)
	cmd.Env = append(os.Environ(), roleVariable+"="+roleTests)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(cmd.ProcessState.ExitCode())
}

// plugin stops the file system at path and then waits until it is killed.
func plugin(dir, path, lasts string) int {
	d, err := time.ParseDuration(lasts)
	var f *Freezer
	if err == nil {
		f, err = NewFreezer(context.Background(), FreezerConfig{Dir: dir, Command: helperCommand()})
	}
	if err == nil {
		_, err = f.Freeze(context.Background(), "disk", path, time.Now().Add(d))
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	f.mu.Lock()
	fmt.Println("helper", f.running["disk"].cmd.Process.Pid)
	f.mu.Unlock()
	select {}
}

func self() string {
	path, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return path
}

func helperCommand() []string {
	return []string{"/usr/bin/env", roleVariable + "=" + roleHelper, self()}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it mounts file systems")
	}
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// loopDevice makes a loop device over a new sparse file in dir, which goes with its last user once it is mounted.
func loopDevice(t *testing.T, dir string, size int64) string {
	t.Helper()
	path := filepath.Join(dir, "image")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, size)); err != nil {
		t.Fatal(err)
	}
	dev := command(t, "losetup", "--find", "--show", path)
	t.Cleanup(func() { _ = exec.Command("losetup", "--detach", dev).Run() }) // gone already, or goes with its last user
	return dev
}

// mounted is a new file system on a loop device over a file in dir.
func mounted(t *testing.T, dir, fsType string) string {
	t.Helper()
	dev := loopDevice(t, dir, 320<<20)
	if err := (Tools{}).Make(t.Context(), dev, fsType); err != nil {
		t.Fatal(err)
	}
	at := filepath.Join(dir, "mnt")
	if err := os.Mkdir(at, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(dev, at, fsType, 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		eventually(t, at+" is unmounted", func() bool { return unix.Unmount(at, 0) == nil })
	})
	return at
}

// isFrozen asks by the only way there is: a file system that is frozen cannot be frozen again.
func isFrozen(t *testing.T, at string) bool {
	t.Helper()
	fs, err := openMountPoint(at)
	if err != nil {
		t.Fatal(err)
	}
	defer fs.Close()
	err = ioctl(fs, ioctlFreeze)
	if err == unix.EBUSY {
		return true
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := thaw(fs); err != nil && err != unix.EINVAL { // a late helper thaws what it finds frozen
		t.Fatal(err)
	}
	return false
}

func testFreezer(t *testing.T, dir string) *Freezer {
	t.Helper()
	f, err := NewFreezer(t.Context(), FreezerConfig{Dir: filepath.Join(dir, "freezes"), Command: helperCommand()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	return f
}

func noRecords(t *testing.T, f *Freezer) {
	t.Helper()
	if left, err := os.ReadDir(f.Dir); err != nil || len(left) > 0 {
		t.Errorf("records %v, %v", left, err)
	}
}

// A write waits as long as the file system stands still, and is there afterwards.
func TestFreeze(t *testing.T) {
	needRoot(t)
	for _, fsType := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(fsType, func(t *testing.T) {
			dir := t.TempDir()
			at, f := mounted(t, dir, fsType), testFreezer(t, dir)
			thaw, err := f.Freeze(t.Context(), "disk", at, time.Now().Add(time.Minute))
			if err != nil {
				t.Fatal(err)
			}
			if !isFrozen(t, at) {
				t.Fatal("it does not stand still")
			}
			if _, err := f.Freeze(t.Context(), "disk", at, time.Now().Add(time.Minute)); !errors.Is(err, fault.InProgress) {
				t.Errorf("a second freeze: %v", err)
			}
			wrote := make(chan error, 1)
			go func() { wrote <- os.WriteFile(filepath.Join(at, "file"), []byte("x"), 0o600) }()
			if err := thaw(t.Context()); err != nil {
				t.Errorf("thaw: %v", err)
			}
			if err := <-wrote; err != nil || isFrozen(t, at) {
				t.Errorf("write: %v, or it stands still", err)
			}
			noRecords(t, f)
		})
	}
}

// Nobody thaws: it goes on at the deadline, not before, and who thaws then hears of it.
func TestFreezeEndsAtItsDeadline(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	at, f := mounted(t, dir, "ext4"), testFreezer(t, dir)
	deadline := time.Now().Add(time.Second)
	thaw, err := f.Freeze(t.Context(), "disk", at, deadline)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(at, "file"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if early := time.Until(deadline); early > 0 {
		t.Errorf("a write went through %s before the deadline", early)
	}
	eventually(t, "the helper ends", func() bool { return errors.Is(thaw(t.Context()), fault.Timeout) })
	noRecords(t, f)
}

// What is not a mount point is not stopped: that would be the file system above it, here the machine's own.
func TestFreezeNeedsAMount(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	f := testFreezer(t, dir)
	if _, err := f.Freeze(t.Context(), "disk", dir, time.Now().Add(time.Second)); err == nil || !strings.Contains(err.Error(), "nothing is mounted") {
		t.Errorf("got %v", err)
	}
	noRecords(t, f)
}

// Whatever happens to the node plugin or its helper, the file system goes on: without any process left by the next start.
func TestFreezeSurvivesNobody(t *testing.T) {
	needRoot(t)
	const long = "1h"
	for _, tc := range []struct {
		name, lasts string
		do          func(t *testing.T, plugin, helper int)
	}{
		{"plugin stopped", "6s", func(t *testing.T, plugin, _ int) { send(t, plugin, unix.SIGSTOP) }},
		{"plugin killed", long, func(t *testing.T, plugin, _ int) { send(t, plugin, unix.SIGKILL) }},
		{"helper killed", long, func(t *testing.T, _, helper int) { send(t, helper, unix.SIGKILL) }},
		{"helper terminated", long, func(t *testing.T, _, helper int) { send(t, helper, unix.SIGTERM) }},
		{"both killed", long, func(t *testing.T, plugin, helper int) {
			send(t, plugin, unix.SIGSTOP) // so that it does not notice
			send(t, helper, unix.SIGKILL)
			send(t, plugin, unix.SIGKILL)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			at, records := mounted(t, dir, "ext4"), filepath.Join(dir, "freezes")
			cmd := exec.Command(self(), records, at, tc.lasts)
			cmd.Env = append(os.Environ(), roleVariable+"="+rolePlugin)
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			out, err := cmd.StdoutPipe()
			if err == nil {
				err = cmd.Start()
			}
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				_ = cmd.Process.Kill() // it may be dead
				_ = cmd.Wait()         // says that it was killed
			})
			var helper int
			lines := bufio.NewScanner(out)
			if !lines.Scan() {
				t.Fatal("the plugin says nothing")
			}
			if _, err := fmt.Sscanf(lines.Text(), "helper %d", &helper); err != nil {
				t.Fatalf("%v: %s", err, lines.Text())
			}
			if !isFrozen(t, at) {
				t.Fatal("it does not stand still")
			}
			tc.do(t, cmd.Process.Pid, helper)
			if tc.name == "both killed" {
				eventually(t, "the helper is dead", func() bool { return unix.Kill(helper, 0) == unix.ESRCH })
				if !isFrozen(t, at) {
					t.Fatal("the case is not what its name says: something thawed it")
				}
				testFreezer(t, dir)
			}
			eventually(t, "it goes on", func() bool { return !isFrozen(t, at) })
			// A successor finds nothing to do.
			noRecords(t, testFreezer(t, dir))
		})
	}
}

func send(t *testing.T, pid int, s syscall.Signal) {
	t.Helper()
	if err := unix.Kill(pid, s); err != nil {
		t.Fatal(err)
	}
}

// hung is a file system whose device does not answer: it lies in a file of another one, which is frozen. It has something to
// write. answer has the device answer again.
func hung(t *testing.T, fsType string) (at string, answer func()) {
	t.Helper()
	below := mounted(t, t.TempDir(), "ext4")
	inner := filepath.Join(below, "inner")
	if err := os.Mkdir(inner, 0o700); err != nil {
		t.Fatal(err)
	}
	at = mounted(t, inner, fsType)
	if err := os.WriteFile(filepath.Join(at, "dirty"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	fs, err := openMountPoint(below)
	if err == nil {
		err = ioctl(fs, ioctlFreeze)
	}
	if err != nil {
		t.Fatal(err)
	}
	frozen := true
	answer = func() {
		if !frozen {
			return
		}
		frozen = false
		if err := errors.Join(thaw(fs), fs.Close()); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(answer)
	return at, answer
}

// On a file system that hangs the deadline is met, and nothing is left stopped once it hangs no more.
func TestFreezeOfAHungFileSystem(t *testing.T) {
	needRoot(t)
	for _, fsType := range []string{"ext4", "xfs"} {
		t.Run(fsType, func(t *testing.T) {
			at, answer := hung(t, fsType)
			f := testFreezer(t, t.TempDir())
			begun := time.Now()
			_, err := f.Freeze(t.Context(), "disk", at, begun.Add(time.Second))
			if took := time.Since(begun); !errors.Is(err, fault.Timeout) || took > 4*time.Second {
				t.Fatalf("after %s: %v", took, err)
			}
			if _, err := f.Freeze(t.Context(), "disk", at, time.Now().Add(time.Minute)); !errors.Is(err, fault.InProgress) {
				t.Errorf("a second one meanwhile: %v", err)
			}
			answer()
			if err := os.WriteFile(filepath.Join(at, "file"), []byte("x"), 0o600); err != nil {
				t.Error(err)
			}
			eventually(t, "the helper ends", func() bool {
				f.mu.Lock()
				defer f.mu.Unlock()
				return len(f.running) == 0
			})
			noRecords(t, f)
			thaw, err := f.Freeze(t.Context(), "disk", at, time.Now().Add(time.Minute))
			if err != nil {
				t.Fatal(err)
			}
			if err := thaw(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// A node plugin that ends, or starts, beside a file system that hangs does so all the same.
func TestFreezerBesideAHungFileSystem(t *testing.T) {
	needRoot(t)
	at, answer := hung(t, "xfs")
	dir := t.TempDir()
	f := testFreezer(t, dir)
	if _, err := f.Freeze(t.Context(), "disk", at, time.Now().Add(time.Second)); !errors.Is(err, fault.Timeout) {
		t.Fatal(err)
	}
	begun := time.Now()
	f.Close()
	next := testFreezer(t, dir)
	if took := time.Since(begun); took > 4*helperTime {
		t.Errorf("end and start took %s", took)
	}
	answer()
	eventually(t, "it goes on", func() bool { return !isFrozen(t, at) })
	if err := next.Thaw(t.Context(), "disk"); err != nil {
		t.Error(err)
	}
	noRecords(t, next)
}

// Unmounting what stands still would leave the superblock so: Unstage lets it go on first.
func TestUnstageThaws(t *testing.T) {
	needRoot(t)
	m := newMachine(t)
	m.dir = t.TempDir() // its staging path is real here
	at := mounted(t, m.dir, "ext4")
	s := m.service()
	s.Freezer = testFreezer(t, m.dir)
	v := m.volume(stage.Mount, stage.PartitionNone)
	v.StagingPath = at
	ctx := t.Context()
	if _, err := s.Freeze(ctx, v.ID, time.Now().Add(time.Minute)); !errors.Is(err, fault.NotFound) {
		t.Errorf("freeze of what is not staged: %v", err)
	}
	if err := s.Stage(ctx, v); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Freeze(ctx, v.ID, time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if !isFrozen(t, at) {
		t.Fatal("it does not stand still")
	}
	if err := s.Unstage(ctx, v.ID, v.StagingPath); err != nil {
		t.Fatal(err)
	}
	if isFrozen(t, at) {
		t.Error("it stands still after Unstage")
	}
	noRecords(t, s.Freezer)
}
