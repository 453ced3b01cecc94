package takeover

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/hotadd/hotaddtest"
)

// emulated is a disk on the emulated bus: hostd attaches it, and its worker keeps the redo log.
type emulated struct {
	t    *testing.T
	p    *product
	disk host.Disk
	rig  *rig // while it is attached
}

func (e *emulated) Attach(readOnly bool) error {
	if e.rig == nil {
		e.p.readOnly = readOnly
		e.rig = e.p.attach(e.t, e.disk)
		return nil
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	_, err = e.p.client.Attach(e.t.Context(), host.AttachRequest{ID: e.disk.ID, ReadOnly: readOnly}, host.Device{Fuse: null, Table: null})
	return err
}

func (e *emulated) Detach() error {
	e.p.detach(e.t, e.rig)
	e.rig = nil
	return nil
}

const readOnlyLength = 64 << 10

func (e *emulated) Write(fill byte) error {
	f, err := os.OpenFile(e.rig.loop.Path(), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(bytes.Repeat([]byte{fill}, readOnlyLength), 0)
	return errors.Join(err, f.Sync(), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED), f.Close())
}

func (e *emulated) Holds(fill byte) (bool, error) {
	b := make([]byte, readOnlyLength)
	f, err := os.Open(e.rig.loop.Path())
	if err != nil {
		return false, err
	}
	defer f.Close()
	_, err = f.ReadAt(b, 0)
	return bytes.Equal(b, bytes.Repeat([]byte{fill}, readOnlyLength)), err
}

func (e *emulated) Files() (map[string]string, error) {
	return files(e.t, filepath.Join(e.p.store, "volumes", e.disk.ID)), nil
}

func TestReadOnlyConforms(t *testing.T) {
	need(t)
	p := newProduct(t, "")
	defer p.end(t)
	hotaddtest.ReadOnly(t, &emulated{t: t, p: p, disk: p.create(t, host.DiskSpec{})})
}
