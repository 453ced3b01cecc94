package loop

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

func backing(t *testing.T, size int64) *os.File {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it makes loop devices")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip("this machine has no loop driver")
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "backing"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f
}

func attach(t *testing.T, f *os.File, o Options) *Device {
	t.Helper()
	d, err := Attach(f, o)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func find(t *testing.T, number int) (Attached, bool) {
	t.Helper()
	all, err := List()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		if a.Number == number {
			return a, true
		}
	}
	return Attached{}, false
}

func released(t *testing.T, d *Device, f *os.File) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := WaitReleased(ctx, d.Number, f.Name()); err != nil {
		t.Error(err)
	}
}

func TestAttach(t *testing.T) {
	f := backing(t, 1<<20)
	if _, err := f.WriteAt(bytes.Repeat([]byte{7}, 4096), 8192); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		o    Options
		size int64
	}{
		"plain":     {Options{}, 1 << 20},
		"direct":    {Options{DirectIO: true, BlockSize: 4096}, 1 << 20},
		"read-only": {Options{ReadOnly: true}, 1 << 20},
		"part":      {Options{Offset: 8192, SizeLimit: 4096}, 4096},
		"autoclear": {Options{AutoClear: true}, 1 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			d := attach(t, f, c.o)
			a, ok := find(t, d.Number)
			want := Attached{Number: d.Number, Path: d.Path(), Backing: f.Name(), ReadOnly: c.o.ReadOnly, AutoClear: c.o.AutoClear,
				Offset: c.o.Offset, Size: c.size}
			if !ok || a != want {
				t.Errorf("List shows %+v, want %+v", a, want)
			}
			b := make([]byte, 1)
			if _, err := d.File.ReadAt(b, 8192-c.o.Offset); err != nil || b[0] != 7 {
				t.Errorf("read %v, %v", b, err)
			}
			if _, err := d.File.WriteAt(b, 0); (err != nil) != c.o.ReadOnly {
				t.Errorf("write: %v", err)
			}
			end := d.Detach
			if c.o.AutoClear {
				end = d.Close
			}
			if err := end(); err != nil {
				t.Error(err)
			}
			released(t, d, f)
		})
	}
}

func TestGrow(t *testing.T) {
	f := backing(t, 1<<20)
	d := attach(t, f, Options{})
	defer released(t, d, f)
	defer func() { _ = d.Detach() }()
	if err := f.Truncate(3 << 20); err != nil {
		t.Fatal(err)
	}
	if err := d.SetCapacity(); err != nil {
		t.Fatal(err)
	}
	if a, _ := find(t, d.Number); a.Size != 3<<20 {
		t.Errorf("size %d", a.Size)
	}
}

func TestOpenAndInUse(t *testing.T) {
	f := backing(t, 1<<20)
	d := attach(t, f, Options{})
	user, err := Open(d.Path(), false)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Detach(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := WaitReleased(ctx, d.Number, f.Name()); fault.KindOf(err) != fault.Timeout {
		t.Errorf("released while somebody has it open: %v", err)
	}
	if err := user.Close(); err != nil {
		t.Fatal(err)
	}
	released(t, d, f)
	if o, err := Open(d.Path(), false); fault.KindOf(err) != fault.Precondition {
		t.Errorf("open of a detached device: %v, %v", o, err)
	}
	for _, path := range []string{"", "/dev/null", "/dev/loop", "/dev/loopX", "/dev/loop-1"} {
		if o, err := Open(path, false); fault.KindOf(err) != fault.Invalid {
			t.Errorf("open %q: %v, %v", path, o, err)
		}
	}
}

// TestDetachTwice: whoever comes second finds it done.
func TestDetachTwice(t *testing.T) {
	f := backing(t, 1<<20)
	d := attach(t, f, Options{})
	other, err := Open(d.Path(), false)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.Detach(), other.Detach()); err != nil {
		t.Error(err)
	}
	released(t, d, f)
}

// TestMissingNode: in a container the kernel's new device may have no node.
func TestMissingNode(t *testing.T) {
	f := backing(t, 1<<20)
	d := attach(t, f, Options{})
	defer released(t, d, f)
	defer func() { _ = d.Detach() }()
	if err := os.Remove(d.Path()); err != nil {
		t.Fatal(err)
	}
	again, err := Open(d.Path(), false)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = again.Close() }()
	var a, b unix.Stat_t
	if err := errors.Join(unix.Fstat(int(d.File.Fd()), &a), unix.Fstat(int(again.File.Fd()), &b)); err != nil || a.Rdev != b.Rdev {
		t.Errorf("device %#x became %#x, %v", a.Rdev, b.Rdev, err)
	}
}

// TestRace: many at once each get a device of their own.
func TestRace(t *testing.T) {
	f := backing(t, 1<<20)
	var wg sync.WaitGroup
	devices := make([]*Device, 8)
	for i := range devices {
		wg.Go(func() {
			d, err := Attach(f, Options{})
			if err != nil {
				t.Error(err)
				return
			}
			devices[i] = d
		})
	}
	wg.Wait()
	seen := map[int]bool{}
	for _, d := range devices {
		if d == nil {
			continue
		}
		if seen[d.Number] {
			t.Errorf("%s given twice", d.Path())
		}
		seen[d.Number] = true
		if err := d.Detach(); err != nil {
			t.Error(err)
		}
		released(t, d, f)
	}
}

func TestAttachFails(t *testing.T) {
	f := backing(t, 1<<20)
	if d, err := Attach(f, Options{BlockSize: 3000}); err == nil {
		t.Errorf("a block size of 3000: %s", d.Path())
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if d, err := Attach(r, Options{}); err == nil {
		t.Errorf("a pipe: %s", d.Path())
	}
}
