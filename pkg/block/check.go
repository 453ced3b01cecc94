package block

import "github.com/vmdk-csi/vmdk-csi/pkg/fault"

// CheckRange is the error of a request of n bytes at off on a disk of size bytes, nil if it lies inside.
func CheckRange(size, off, n int64) error {
	if off < 0 || n < 0 || off > size || n > size-off {
		return fault.New(fault.OutOfRange, "", "%d bytes at offset %d are not inside a disk of %d bytes", n, off, size)
	}
	return nil
}
