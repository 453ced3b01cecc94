package hostd_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/sys"
	"github.com/vmdk-csi/vmdk-csi/pkg/export/fuse"
	"github.com/vmdk-csi/vmdk-csi/pkg/export/loop"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/worker/table"
)

// session is a real FUSE session with a loop device over it, as the node service makes them.
type session struct {
	id     string
	s      *fuse.Session
	table  *os.File
	device *loop.Device
	disk   *os.File // the device past the page cache
}

func newSession(t *testing.T, id string) *session {
	t.Helper()
	s, err := fuse.NewSession(id)
	if errors.Is(err, fault.Unsupported) || errors.Is(err, fault.Denied) {
		t.Skipf("no FUSE session can be made here: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	tab, err := table.Create()
	if err != nil {
		t.Fatal(err)
	}
	k := &session{id: id, s: s, table: tab}
	t.Cleanup(func() {
		if t.Failed() {
			// A server that is gone must not keep this process waiting in the kernel.
			_ = s.Abort()
		}
		k.Release(t)
		_ = s.Close()
		_ = tab.Close()
	})
	return k
}

func (k *session) Device() host.Device { return host.Device{Fuse: k.s.Dev, Table: k.table} }

func (k *session) Open(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	readOnly := false
	f, err := k.s.OpenDisk(ctx, unix.O_RDWR)
	if err != nil {
		readOnly = true
		f, err = k.s.OpenDisk(ctx, unix.O_RDONLY)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if k.device, err = loop.Attach(f, loop.Options{DirectIO: true, ReadOnly: readOnly}); err != nil {
		t.Fatal(err)
	}
	flags := os.O_RDWR
	if readOnly {
		flags = os.O_RDONLY
	}
	if k.disk, err = os.OpenFile(k.device.Path(), flags|unix.O_DIRECT, 0); err != nil {
		t.Fatal(err)
	}
	if err := k.s.CloseMount(); err != nil {
		t.Fatal(err)
	}
}

// Release takes the device away, so that the kernel lets the session go. May be repeated.
func (k *session) Release(t *testing.T) {
	t.Helper()
	_ = k.s.CloseMount()
	if k.device == nil {
		return
	}
	number := k.device.Number
	_ = k.disk.Close()
	if err := k.device.Detach(); err != nil {
		t.Errorf("detach the loop device: %v", err)
	}
	k.device = nil
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := loop.WaitReleased(ctx, number, "/"+k.id); err != nil {
		t.Logf("the loop device is still there: %v", err)
	}
}

const block = 4096

func (k *session) write(off int64, text string) error {
	b, err := sys.AlignedBuffer(block)
	if err != nil {
		return err
	}
	defer sys.FreeBuffer(b)
	copy(b, text)
	_, err = k.disk.WriteAt(b, off)
	return err
}

func (k *session) read(off int64, n int) (string, error) {
	b, err := sys.AlignedBuffer(block)
	if err != nil {
		return "", err
	}
	defer sys.FreeBuffer(b)
	_, err = k.disk.ReadAt(b, off)
	return string(bytes.TrimRight(b[:n], "\x00")), err
}
