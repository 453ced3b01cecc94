package node

import (
	"errors"
	"io"
	"os"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/node/gpt"
)

// Tables are the partition tables on block devices, read and written from here: the kernel may have no parser.
type Tables struct{}

// Ensure finds the partition, or makes it on an empty device.
func (Tables) Ensure(device string, readOnly bool) (start, length int64, err error) {
	err = onDevice(device, readOnly, func(f *os.File, size int64) error {
		start, length, err = gpt.Find(f, size)
		if errors.Is(err, gpt.ErrEmpty) && !readOnly {
			start, length, err = gpt.Make(f, size)
		}
		return err
	})
	return start, length, err
}

// Grow grows the partition.
func (Tables) Grow(device string) (start, length int64, err error) {
	err = onDevice(device, false, func(f *os.File, size int64) error {
		start, length, err = gpt.Grow(f, size)
		return err
	})
	return start, length, err
}

func onDevice(device string, readOnly bool, do func(f *os.File, size int64) error) error {
	flags := os.O_RDWR
	if readOnly {
		flags = os.O_RDONLY
	}
	f, err := os.OpenFile(device, flags, 0)
	if err != nil {
		return fault.Wrap(err, "open %s", device)
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err == nil {
		err = do(f, size)
	}
	return fault.Wrap(errors.Join(err, f.Close()), "partition table of %s", device)
}
