package fsx_test

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx/fsxtest"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

func TestConformance(t *testing.T) {
	fsxtest.Run(t, func(t *testing.T) fsx.Dir { d, _ := root(t); return d })
}

// TestConformanceTmpfs: another file system, without the same direct I/O.
func TestConformanceTmpfs(t *testing.T) {
	path, err := os.MkdirTemp("/dev/shm", "fsx")
	if err != nil {
		t.Skipf("no tmpfs at /dev/shm: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(path) })
	fsxtest.Run(t, func(t *testing.T) fsx.Dir {
		sub, err := os.MkdirTemp(path, "")
		if err != nil {
			t.Fatal(err)
		}
		d, err := fsx.OpenRoot(sub)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		return d
	})
}

// TestOnlyRegularFiles: nothing but regular files opens, and no link leads out.
func TestOnlyRegularFiles(t *testing.T) {
	d, path := root(t)
	secret := filepath.Join(t.TempDir(), "secret")
	for _, err := range []error{
		os.WriteFile(secret, []byte("outside"), 0o600),
		os.Symlink(secret, filepath.Join(path, "link")),
		os.Symlink(filepath.Dir(secret), filepath.Join(path, "dirlink")),
		os.Symlink("nothing", filepath.Join(path, "dangling")),
		unix.Mkfifo(filepath.Join(path, "fifo"), 0o600),
		unix.Mknod(filepath.Join(path, "socket"), unix.S_IFSOCK|0o600, 0),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	names := []string{"link", "dangling", "dirlink", "fifo", "socket", "null"}
	if err := unix.Mknod(filepath.Join(path, "null"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))); err != nil {
		t.Logf("no device node is tried: %v", err)
		names = names[:len(names)-1]
	}
	for _, name := range names {
		for _, flag := range []fsx.Flag{fsx.ReadOnly, fsx.ReadWrite | fsx.Create, fsx.ReadOnly | fsx.Direct} {
			f, err := d.Open(name, flag)
			if err == nil {
				f.Close()
			}
			if !errors.Is(err, fault.Invalid) {
				t.Errorf("open %s: %v, want Invalid", name, err)
			}
		}
	}
	if _, err := d.Sub("dirlink"); !errors.Is(err, fault.Invalid) {
		t.Errorf("Sub through a link: %v", err)
	}
	if info, err := d.Stat("link"); err != nil || info.Mode.Type() != os.ModeSymlink {
		t.Errorf("Stat of a link: %v, %v", info, err)
	}
}

// TestFromFD: the directory survives as a descriptor, as a worker gets it.
func TestFromFD(t *testing.T) {
	d, path := root(t)
	open(t, d, "f", fsx.ReadWrite|fsx.Create)
	passed, err := fsx.Descriptor(fsx.WithoutLocks(d))
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Dup(int(passed.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	passed.Close()
	got, err := fsx.FromFD(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	if names, err := got.List(); err != nil || len(names) != 1 || names[0] != "f" {
		t.Errorf("%v, %v", names, err)
	}
	file, err := os.Open(filepath.Join(path, "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := fsx.FromFD(int(file.Fd())); !errors.Is(err, fault.Invalid) {
		t.Errorf("FromFD of a file: %v", err)
	}
	other := struct{ fsx.Dir }{d}
	if _, err := fsx.Descriptor(other); !errors.Is(err, fault.Unsupported) {
		t.Errorf("Descriptor of a directory without one: %v", err)
	}
}

// TestDirectIsDirect: pages written through a Direct file are not in the page cache, where the file system has
// direct I/O at all.
func TestDirectIsDirect(t *testing.T) {
	d, path := root(t)
	f := open(t, d, "f", fsx.ReadWrite|fsx.Create|fsx.Direct)
	align := fsx.DirectAlignment(f)
	probe, err := unix.Open(filepath.Join(path, "f"), unix.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		t.Skipf("the file system of %s refuses O_DIRECT: %v", path, err)
	}
	unix.Close(probe)
	if align == 0 {
		t.Fatal("O_DIRECT works here, but the file is buffered")
	}
	if _, err := f.WriteAt(fsx.AlignedBuffer(1<<20), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := f.ReadAt(fsx.AlignedBuffer(1<<20), 0); err != nil {
		t.Fatal(err)
	}
	if n := cachedPages(t, filepath.Join(path, "f"), 1<<20); n > 0 {
		t.Errorf("%d pages of a file used with direct I/O are in the page cache", n)
	}
	b := open(t, d, "f", fsx.ReadWrite)
	if _, err := b.ReadAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	if cachedPages(t, filepath.Join(path, "f"), 1<<20) == 0 {
		t.Error("the measure is broken: a buffered read left no page in the cache")
	}
}

// cachedPages counts the pages in the page cache (mincore(2)).
func cachedPages(t *testing.T, path string, size int) int {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0) // mincore tells the truth only to who may write
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(m)
	vec := make([]byte, size/os.Getpagesize())
	if err := mincore(m, vec); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, v := range vec {
		n += int(v & 1)
	}
	return n
}

// TestWithoutLocks: two writers, where locks would refuse the second; and everything else still works.
func TestWithoutLocks(t *testing.T) {
	real, _ := root(t)
	d := fsx.WithoutLocks(fsx.WithoutLocks(real))
	a := open(t, d, "f", fsx.ReadWrite|fsx.Create)
	b := open(t, d, "f", fsx.ReadWrite)
	if err := errors.Join(a.Lock(fsx.LockWrite), b.Lock(fsx.LockWrite)); err != nil {
		t.Error(err)
	}
	c := open(t, real, "f", fsx.ReadWrite)
	if err := c.Lock(fsx.LockWrite); err != nil {
		t.Errorf("a lock was taken all the same: %v", err)
	}
	for _, check := range fsxtest.Checks() {
		if check.Name == "locks exclude" || check.Name == "locks change" || check.Name == "closed" {
			continue
		}
		sub, _ := root(t)
		if err := check.Run(fsx.WithoutLocks(sub)); err != nil {
			t.Errorf("%s: %v", check.Name, err)
		}
	}
}

// TestLockEndsWithClose: also while another process still has a copy of the descriptor, as every child has between fork and exec.
func TestLockEndsWithClose(t *testing.T) {
	d, path := root(t)
	f := open(t, d, "f", fsx.ReadWrite|fsx.Create)
	if err := f.Lock(fsx.LockWrite); err != nil {
		t.Fatal(err)
	}
	copies := 0
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err != nil || to != filepath.Join(path, "f") {
			continue
		}
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			t.Fatal(err)
		}
		c, err := unix.Dup(n)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(c)
		copies++
	}
	if copies == 0 {
		t.Fatal("the file's descriptor was not found")
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := open(t, d, "f", fsx.ReadWrite).Lock(fsx.LockWrite); err != nil {
		t.Error(err)
	}
}

func TestFull(t *testing.T) {
	path := t.TempDir()
	if err := unix.Mount("tmpfs", path, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("cannot mount a small tmpfs: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(path, unix.MNT_DETACH) })
	d, err := fsx.OpenRoot(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	f := open(t, d, "f", fsx.ReadWrite|fsx.Create)
	_, err = f.WriteAt(make([]byte, 2<<20), 0)
	for _, is := range []error{fault.NoSpace, unix.ENOSPC} {
		if !errors.Is(err, is) {
			t.Errorf("write to a full file system: %v, want %v", err, is)
		}
	}
	if err := f.Allocate(0, 2<<20); !errors.Is(err, fault.NoSpace) {
		t.Errorf("Allocate on a full file system: %v", err)
	}
	if err := unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err == nil {
		t.Error("remounted read-only with a writer")
	}
	f.Close()
	if err := unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if err := d.Mkdir("x"); !errors.Is(err, fault.ReadOnly) {
		t.Errorf("Mkdir on a read-only file system: %v", err)
	}
}
