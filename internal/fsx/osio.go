package fsx

import (
	"errors"
	"io"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// dioAlign is what an O_DIRECT request must fit, in bytes, powers of two (statx(2), STATX_DIOALIGN).
type dioAlign struct{ mem, off int64 }

// unknownAlign is for file systems that take O_DIRECT but do not say how: it fits every block device in use.
var unknownAlign = dioAlign{mem: bufferAlign, off: bufferAlign}

// DirectAlignment is the offset alignment in bytes of direct I/O on f, 0 if f goes through the page cache.
func DirectAlignment(f File) int {
	if of, ok := UnwrapFile(f).(*osFile); ok && of.direct.Load() {
		return int(of.dio.off)
	}
	return 0
}

// openDirect adds the O_DIRECT descriptor; where there is none the file stays buffered. The second open is by name, so
// it must have met the same inode.
func (f *osFile) openDirect(d *osDir, name string, access int, st *unix.Stat_t) {
	fd, err := d.openat(name, access|unix.O_DIRECT|unix.O_NONBLOCK, 0)
	if err != nil {
		return
	}
	var sx unix.Statx_t
	err = noEINTR(func() error {
		return unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_INO|unix.STATX_DIOALIGN, &sx)
	})
	if err != nil || sx.Ino != st.Ino || unix.Mkdev(sx.Dev_major, sx.Dev_minor) != st.Dev {
		unix.Close(fd)
		return
	}
	f.dio = unknownAlign
	if sx.Mask&unix.STATX_DIOALIGN != 0 {
		f.dio = dioAlign{mem: int64(sx.Dio_mem_align), off: int64(sx.Dio_offset_align)}
	}
	if f.dio.mem <= 0 || f.dio.off <= 0 || f.dio.off > bounceSize || f.dio.mem > bufferAlign {
		unix.Close(fd) // 0: direct I/O is not supported on this file (statx(2))
		return
	}
	f.directFD = fd
	f.direct.Store(true)
}

// fits tells whether a request is aligned in the file.
func (a dioAlign) fits(off int64, n int) bool { return (off|int64(n))&(a.off-1) == 0 }

// fitsMemory tells whether p can be used without a bounce buffer.
func (a dioAlign) fitsMemory(p []byte) bool { return addressOf(p)&uintptr(a.mem-1) == 0 }

// maxTransfer is below the most one read or write call moves (0x7ffff000, read(2)) and a multiple of any alignment.
const maxTransfer = 1 << 30

func (f *osFile) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fault.New(fault.Invalid, "", "read %s: offset %d", f.path, off)
	}
	done := 0
	for done < len(p) {
		n, err := f.readSome(p[done:min(len(p), done+maxTransfer)], off+int64(done))
		if err != nil {
			return done, Failure("read", f.path, err)
		}
		if n == 0 {
			return done, io.EOF
		}
		done += n
	}
	return done, nil
}

func (f *osFile) readSome(p []byte, off int64) (int, error) {
	if !f.direct.Load() {
		return pread(f.fd, p, off)
	}
	n, err := f.readDirect(p, off)
	if errors.Is(err, unix.EINVAL) {
		f.giveUpDirect()
		return pread(f.fd, p, off)
	}
	return n, err
}

func (f *osFile) readDirect(p []byte, off int64) (int, error) {
	if f.dio.fits(off, len(p)) && f.dio.fitsMemory(p) {
		return pread(f.directFD, p, off)
	}
	bp := bouncePool.Get().(*[]byte)
	defer bouncePool.Put(bp)
	lo := off &^ (f.dio.off - 1)
	hi := (off + int64(len(p)) + f.dio.off - 1) &^ (f.dio.off - 1)
	n, err := pread(f.directFD, (*bp)[:min(hi-lo, bounceSize)], lo)
	if err != nil || int64(n) <= off-lo {
		return 0, err
	}
	return copy(p, (*bp)[off-lo:n]), nil
}

func (f *osFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.mayWrite("write", off, int64(len(p))); err != nil {
		return 0, err
	}
	done := 0
	for done < len(p) {
		n, err := f.writeSome(p[done:min(len(p), done+maxTransfer)], off+int64(done))
		if err == nil && n == 0 {
			err = io.ErrShortWrite
		}
		if err != nil {
			return done, Failure("write", f.path, err)
		}
		done += n
	}
	return done, nil
}

func (f *osFile) writeSome(p []byte, off int64) (int, error) {
	if f.direct.Load() && f.dio.fits(off, len(p)) {
		n, err := f.writeDirect(p, off)
		if !errors.Is(err, unix.EINVAL) {
			return n, err
		}
		f.giveUpDirect()
	}
	if f.directFD >= 0 {
		f.mu.Lock()
		defer f.mu.Unlock()
	}
	return pwrite(f.fd, p, off)
}

func (f *osFile) writeDirect(p []byte, off int64) (int, error) {
	if !f.dio.fitsMemory(p) {
		bp := bouncePool.Get().(*[]byte)
		defer bouncePool.Put(bp)
		n := copy(*bp, p)
		p = (*bp)[:n]
	}
	f.mu.RLock()
	defer f.mu.RUnlock()
	return pwrite(f.directFD, p, off)
}

// giveUpDirect goes on through the page cache: the file system took O_DIRECT and refuses requests that fit what it
// said. The direct writes under way end first.
func (f *osFile) giveUpDirect() {
	f.mu.Lock()
	f.direct.Store(false)
	f.mu.Unlock()
}

func pread(fd int, p []byte, off int64) (int, error) {
	return noEINTR1(func() (int, error) { return unix.Pread(fd, p, off) })
}

func pwrite(fd int, p []byte, off int64) (int, error) {
	return noEINTR1(func() (int, error) { return unix.Pwrite(fd, p, off) })
}
