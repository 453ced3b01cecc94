package fiemap

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Flags of an extent (linux/fiemap.h).
const (
	extentLast          = 0x1
	extentUnknown       = 0x2
	extentDelalloc      = 0x4
	extentEncoded       = 0x8
	extentDataEncrypted = 0x80
	extentNotAligned    = 0x100
	extentInline        = 0x200
	extentTail          = 0x400
	extentUnwritten     = 0x800
	extentMerged        = 0x1000
	extentShared        = 0x2000
)

const (
	iocFiemap = 0xC020660B // FS_IOC_FIEMAP
	flagSync  = 0x1        // FIEMAP_FLAG_SYNC

	unit     = 4096
	perCall  = 256
	maxTotal = 1 << 20
)

// Extent is a part of a file and its place on the whole device, in bytes.
type Extent struct {
	Off, Len int64
	Place    int64
	Zero     bool // reads as zeros, there is no place
}

// Place is where a file is.
type Place struct {
	Device  string // the whole block device, "8:16"
	Extents []Extent
}

// Fingerprint changes when anything has moved.
func (p *Place) Fingerprint() string {
	h := sha256.New()
	_, _ = h.Write([]byte(p.Device)) // never fails (hash.Hash)
	_ = binary.Write(h, binary.LittleEndian, p.Extents)
	return hex.EncodeToString(h.Sum(nil))
}

// raw is struct fiemap_extent.
type raw struct {
	logical, physical, length uint64
	_                         [2]uint64
	flags                     uint32
	_                         [3]uint32
}

type request struct {
	start, length                  uint64
	flags, mapped, count, reserved uint32
	extents                        [perCall]raw
}

// Map tells where a file is, for reading, or with write for writing from outside. What cannot be trusted is
// fault.Unsupported (another file system, another layout: use another transport) or fault.Precondition (this file, as it is now).
func Map(f *os.File, write bool) (*Place, error) {
	device, start, err := fit(f, write)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	all, err := ask(f, info.Size())
	if err != nil {
		return nil, err
	}
	p := &Place{Device: device}
	p.Extents, err = places(all, info.Size(), start, write)
	return p, err
}

// ask reads all extents up to the end of the file.
func ask(f *os.File, size int64) ([]raw, error) {
	var all []raw
	req := new(request)
	for at := uint64(0); at < uint64(size); {
		*req = request{start: at, length: uint64(size) - at, flags: flagSync, count: perCall}
		if _, _, no := unix.Syscall(unix.SYS_IOCTL, f.Fd(), iocFiemap, uintptr(unsafe.Pointer(req))); no != 0 {
			return nil, fault.New(fault.Unsupported, "Use another transport.", "ask for the blocks of %s: %w", f.Name(), no)
		}
		got := req.extents[:min(req.mapped, perCall)]
		if len(got) == 0 {
			return all, nil
		}
		all = append(all, got...)
		last := got[len(got)-1]
		if last.flags&extentLast != 0 {
			return all, nil
		}
		if len(all) > maxTotal || last.length == 0 || last.logical+last.length <= at {
			return nil, fault.New(fault.Unsupported, "Defragment it, or use another transport.", "%s is in more than %d pieces", f.Name(), len(all))
		}
		at = last.logical + last.length
	}
	return all, nil
}

// places judges what the kernel said. The device's part of the file system begins at start.
func places(all []raw, size, start int64, write bool) ([]Extent, error) {
	var out []Extent
	at := int64(0)
	hole := func(to int64) error {
		if to > at && write {
			return notNow("Prepare the file: write zeros over all of it.", "the file has a hole at %d", at)
		}
		if to > at {
			out = append(out, Extent{Off: at, Len: to - at, Zero: true})
		}
		at = to
		return nil
	}
	for _, x := range all {
		off := int64(x.logical)
		if off >= size {
			break // allocated beyond the end
		}
		if off < at {
			return nil, fault.New(fault.Internal, "", "the kernel's extents overlap at %d", off)
		}
		if err := hole(off); err != nil {
			return nil, err
		}
		zero, err := judge(x.flags, write)
		if err != nil {
			return nil, fault.Wrap(err, "extent at %d", off)
		}
		e := Extent{Off: off, Len: min(int64(x.length), size-off), Zero: zero}
		if !zero {
			e.Place = int64(x.physical) + start
		}
		if e.Off%unit != 0 || e.Len%unit != 0 || e.Len <= 0 || e.Place%unit != 0 {
			return nil, notHere("extent [%d, +%d) at %d is not of whole blocks of %d bytes", e.Off, e.Len, e.Place, unit)
		}
		out = append(out, e)
		at = off + e.Len
	}
	return out, hole(size)
}

func notHere(format string, args ...any) error {
	return fault.New(fault.Unsupported, "Use another transport for disks here.", format, args...)
}

func notNow(remedy, format string, args ...any) error {
	return fault.New(fault.Precondition, remedy, format, args...)
}

// judge tells whether an extent with these flags can be read from outside, and written; zero: it reads as zeros.
func judge(flags uint32, write bool) (zero bool, err error) {
	known := uint32(extentLast | extentUnwritten | extentShared)
	switch {
	case flags&(extentUnknown|extentDelalloc) != 0:
		return false, notNow("Sync the file system, and try again.", "it has no place yet")
	case flags&(extentEncoded|extentDataEncrypted) != 0:
		return false, notHere("it is compressed or encrypted")
	case flags&(extentNotAligned|extentInline|extentTail) != 0:
		return false, notHere("it shares a block with something else")
	case flags&extentMerged != 0:
		return false, notHere("its file system maps blocks, not extents")
	case flags&^known != 0:
		return false, notHere("it has the unknown flags %#x", flags&^known)
	case flags&extentShared != 0 && write:
		return false, notNow("Make a copy without reflink.", "another file has the same blocks")
	case flags&extentUnwritten != 0 && write:
		return false, notNow("Prepare the file: write zeros over all of it.", "it is unwritten: what is written to the LUN would be lost")
	}
	return flags&extentUnwritten != 0, nil
}

// Prepare gives a file a size and places for all of it, with zeros written there. It must not exist elsewhere, by name or by map.
func Prepare(f *os.File, size int64) error {
	if size <= 0 || size%unit != 0 {
		return fault.New(fault.OutOfRange, "", "%d bytes: a multiple of %d is needed", size, unit)
	}
	if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
		return fault.Wrap(err, "allocate %s", f.Name())
	}
	zeros := make([]byte, 1<<20)
	for at := int64(0); at < size; {
		n, err := f.WriteAt(zeros[:min(int64(len(zeros)), size-at)], at)
		if err != nil {
			return fault.Wrap(err, "write zeros")
		}
		at += int64(n)
	}
	return errors.Join(f.Sync(), DropCache(f))
}

// DropCache makes the file system read the LUN again.
func DropCache(f *os.File) error {
	return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}
