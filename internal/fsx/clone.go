package fsx

import (
	"errors"
	"io"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Clone shares the blocks where the file system can, lets the kernel copy where it can, and copies else. Holes of src
// stay holes.
func (f *osFile) Clone(src File, srcOff, dstOff, n int64) error {
	if err := f.mayWrite("clone into", dstOff, n); err != nil || n == 0 {
		return err
	}
	src = UnwrapFile(src)
	from, ok := src.(*osFile)
	if !ok || f.clonedByKernel(from, srcOff, dstOff, n) != nil {
		return CopyRange(f, src, srcOff, dstOff, n)
	}
	return nil
}

// Reflink lets dst share the blocks that src has in a range (FICLONERANGE), as Clone does where it can, but copies nothing: what cannot be
// shared is fault.Unsupported, and dst is as it was.
func Reflink(dst, src File, srcOff, dstOff, n int64) error {
	to, ok1 := UnwrapFile(dst).(*osFile)
	from, ok2 := UnwrapFile(src).(*osFile)
	if !ok1 || !ok2 {
		return fault.New(fault.Unsupported, "", "blocks can be shared between files of a file system only")
	}
	if err := to.mayWrite("clone into", dstOff, n); err != nil || n == 0 {
		return err
	}
	err := to.clonedByKernel(from, srcOff, dstOff, n)
	for _, no := range []error{unix.EOPNOTSUPP, unix.ENOTTY, unix.EXDEV, unix.EINVAL, unix.ENOSYS} {
		if errors.Is(err, no) {
			return fault.New(fault.Unsupported, "", "%s cannot share blocks: %w", to.path, err)
		}
	}
	return Failure("clone into", to.path, err)
}

// clonedByKernel is FICLONERANGE (ioctl_ficlonerange(2)): whole blocks of one file system, all or nothing as far as
// the caller is concerned, since a failure is followed by a copy of the whole range.
func (f *osFile) clonedByKernel(from *osFile, srcOff, dstOff, n int64) error {
	if err := checkSource(from, srcOff, n); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return noEINTR(func() error {
		return unix.IoctlFileCloneRange(f.fd, &unix.FileCloneRange{
			Src_fd: int64(from.fd), Src_offset: uint64(srcOff), Src_length: uint64(n), Dest_offset: uint64(dstOff)})
	})
}

// copyStep bounds what is copied while other writers of the file wait.
const copyStep = 4 << 20

// CopyRange copies [srcOff, srcOff+n) of src to dstOff of dst: data by copying, holes as holes. It grows dst if
// needed. It is what a File's Clone does when nothing better works.
func CopyRange(dst, src File, srcOff, dstOff, n int64) error {
	if err := checkSource(src, srcOff, n); err != nil {
		return err
	}
	info, err := dst.Stat()
	if err != nil {
		return err
	}
	if info.Size < dstOff+n {
		if err := dst.Truncate(dstOff + n); err != nil {
			return err
		}
	}
	end := srcOff + n
	for at := srcOff; at < end; {
		start, stop, err := src.SeekData(at)
		if errors.Is(err, io.EOF) {
			start, stop = end, end
		} else if err != nil {
			return err
		}
		start, stop = min(start, end), min(stop, end)
		if start > at {
			err := dst.Punch(dstOff+at-srcOff, start-at)
			if errors.Is(err, fault.Unsupported) {
				err = dst.Zero(dstOff+at-srcOff, start-at)
			}
			if err != nil {
				return err
			}
		}
		if err := copyData(dst, src, start, dstOff+start-srcOff, stop-start); err != nil {
			return err
		}
		at = stop
	}
	return nil
}

func checkSource(src File, off, n int64) error {
	info, err := src.Stat()
	if err != nil {
		return err
	}
	if off < 0 || n < 0 || off+n > info.Size {
		return fault.New(fault.OutOfRange, "", "copy from %d, %d bytes: the source has %d bytes", off, n, info.Size)
	}
	return nil
}

func copyData(dst, src File, srcOff, dstOff, n int64) error {
	to, ok1 := dst.(*osFile)
	from, ok2 := src.(*osFile)
	inKernel := ok1 && ok2
	var buf []byte
	for n > 0 {
		step := min(n, copyStep)
		done := int64(0)
		if inKernel {
			done = to.copyFileRange(from, srcOff, dstOff, step)
			inKernel = done > 0
		}
		if done == 0 {
			if buf == nil {
				buf = AlignedBuffer(int(min(n, 1<<20)))
			}
			part := buf[:min(step, int64(len(buf)))]
			if _, err := src.ReadAt(part, srcOff); err != nil {
				return err
			}
			if _, err := dst.WriteAt(part, dstOff); err != nil {
				return err
			}
			done = int64(len(part))
		}
		srcOff, dstOff, n = srcOff+done, dstOff+done, n-done
	}
	return nil
}

// copyFileRange is copy_file_range(2); 0: not here, copy by hand.
func (f *osFile) copyFileRange(from *osFile, srcOff, dstOff, n int64) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	done, err := noEINTR1(func() (int, error) {
		so, do := srcOff, dstOff
		return unix.CopyFileRange(from.fd, &so, f.fd, &do, int(n), 0)
	})
	if err != nil {
		return 0
	}
	return int64(done)
}
