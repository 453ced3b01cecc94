package takeover

import (
	"bytes"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/export/loop"
)

// TestGrowAndDie: a disk grows while it is attached, its worker dies, and both halves are there.
func TestGrowAndDie(t *testing.T) {
	need(t)
	for _, kind := range []string{"thin", "sparse"} {
		t.Run(kind, func(t *testing.T) {
			d := newDisk(t, kind)
			h := &local{}
			r := attach(t, d, h, false)
			f, err := os.OpenFile(r.loop.Path(), os.O_RDWR|unix.O_DIRECT, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			out, in := aligned(t), aligned(t)
			for i := range out {
				out[i] = byte(i >> 9)
			}
			const larger = diskSize + 64<<20
			if _, err := f.WriteAt(out, diskSize-1<<20); err != nil {
				t.Fatal(err)
			}
			if size, err := h.handle.Grow(within(t, waitLong), larger); err != nil || size != larger {
				t.Fatalf("%d, %v", size, err)
			}
			if err := r.loop.SetCapacity(); err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt(out, larger-1<<20); err != nil {
				t.Fatal(err)
			}
			h.kill(t) // the links that the supervisor was given have the old size
			for _, off := range []int64{diskSize - 1<<20, larger - 1<<20} {
				if _, err := f.ReadAt(in, off); err != nil || !bytes.Equal(in, out) {
					t.Errorf("at %d: %v", off, err)
				}
			}
			if err := f.Close(); err != nil {
				t.Error(err)
			}
			sum := r.sum(t)
			r.detach(t)
			d.links[0].Size = larger
			d.verify(t, sum)
		})
	}
}

// TestReadOnly: a disk that is attached read-only is not changed by anybody, and its worker can die as well.
func TestReadOnly(t *testing.T) {
	need(t)
	d := newDisk(t, "thin")
	h := &local{ro: true}
	r := attach(t, d, h, true)
	before := r.sum(t)
	h.kill(t)
	if f, err := os.OpenFile(r.loop.Path(), os.O_RDWR, 0); err == nil {
		if _, err := f.WriteAt(make([]byte, 512), 0); err == nil {
			t.Error("a read-only disk was written")
		}
		f.Close()
	}
	if after := r.sum(t); after != before {
		t.Error("the content changed")
	}
	r.detach(t)
	d.verify(t, before)
}

// TestStalled: while a worker hangs, the machine's loop devices can be listed, and killing it cures the disk.
func TestStalled(t *testing.T) {
	need(t)
	d := newDisk(t, "sparse")
	h := &local{}
	r := attach(t, d, h, false)
	defer r.detach(t)
	if err := unix.Kill(h.handle.State().PID, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	read := make(chan error, 1)
	go func() {
		f, err := os.Open(r.loop.Path())
		if err == nil {
			_, err = f.ReadAt(make([]byte, 4096), 64<<20)
			f.Close()
		}
		read <- err
	}()
	start := time.Now()
	if found, err := loop.FindByName(r.name); err != nil || len(found) != 1 || found[0].Path != r.loop.Path() {
		t.Errorf("%+v, %v", found, err)
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("listing loop devices took %v", took)
	}
	select {
	case err := <-read:
		t.Fatalf("a stopped worker answered: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	before := h.handle.State().PID
	if err := unix.Kill(before, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-read:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(waitLong):
		t.Error("the successor did not answer")
	}
}
