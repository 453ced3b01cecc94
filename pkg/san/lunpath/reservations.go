package lunpath

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/reserve"
)

// Reservations are an open LUN's persistent reservations: through iscsi:// the unit's, for a block device that was opened for writing the
// kernel's, which may turn out to be Unsupported. reset, if not nil, ends all commands that the unit has. A file has none.
func Reservations(lun fsx.File) (u reserve.Unit, reset func(context.Context) error, ok bool) {
	switch f := lun.(type) {
	case *unitFile:
		return f.unit, f.session.ResetUnit, true
	case *deviceFile:
		return reserve.NewKernel(f.dev), nil, true
	}
	return nil, nil, false
}

// deviceFile is a block device with a descriptor for its reservations.
type deviceFile struct {
	fsx.File
	dev *os.File
}

// withReservations opens that descriptor, if where is a block device.
func withReservations(lun fsx.File, where string) (fsx.File, error) {
	dev, err := os.OpenFile(where, os.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fault.Wrap(err, "open %s for reservations", where)
	}
	if info, err := dev.Stat(); err != nil || info.Mode().Type() != os.ModeDevice {
		return lun, dev.Close()
	}
	return &deviceFile{lun, dev}, nil
}

func (d *deviceFile) Close() error {
	_ = d.dev.Close() // nothing was written through it
	return d.File.Close()
}

// register registers key, so that a LUN that others have reserved can be read and written by this path. Through iscsi:// the registration
// ends with Close; a device's is of all processes of this host, and stays.
func register(ctx context.Context, lun fsx.File, key reserve.Key) error {
	u, _, ok := Reservations(lun)
	if !ok {
		return fault.New(fault.Unsupported, "Without reservations a store needs `fencing: lease-only`.", "a file has no reservations")
	}
	if err := u.Register(ctx, key, true); err != nil {
		return err
	}
	if f, is := lun.(*unitFile); is {
		f.registered = true
	}
	return nil
}

// visitors are the two highest bytes of their keys.
const visitors = 0x5649

// IsVisitor tells that a key is of who only wants to look (Options.Visit).
func IsVisitor(k reserve.Key) bool { return k>>48 == visitors }

// visitor is a key for a session of its own, 0 where none is needed, or where it would be all of this host's.
func visitor(lun fsx.File) reserve.Key {
	f, is := lun.(*unitFile)
	if !is {
		return 0
	}
	if _, err := f.ReadAt(fsx.AlignedBuffer(4096), 0); !errors.Is(err, fault.Fenced) {
		return 0
	}
	var b [8]byte
	_, _ = rand.Read(b[2:]) // never fails (crypto/rand.Read)
	b[0], b[1] = visitors>>8, visitors&0xff
	return reserve.Key(binary.BigEndian.Uint64(b[:]))
}

// unregister takes the registration back, so that the target does not keep one for every session that ever was.
func (f *unitFile) unregister() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = f.unit.Register(ctx, 0, false) // who was fenced has none
}
