package store

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Places on the LUN, in bytes. All are multiples of every block size in use.
const (
	blockSize   = 4096
	superblock  = 4096 // a partition table of the old kind fits before it
	nonceAt     = 8192
	leaseAt     = 12288
	areaStart   = 1 << 20
	sectorSize  = 512 // what a medium writes as a whole
	minAreaSize = 16 << 10
	maxAreaSize = 256 << 20
)

// LeaseAt is where a block of 4096 bytes is in which package lunlease keeps who owns the LUN; the store leaves it alone.
const LeaseAt = leaseAt

// Defaults of Format.
const (
	DefaultExtentSize = 1 << 20
	DefaultAreaSize   = 16 << 20
)

const formatVersion = 1

var (
	superMagic  = [8]byte{'V', 'M', 'D', 'K', '-', 'L', 'U', 'N'}
	nonceMagic  = [8]byte{'V', 'M', 'D', 'K', 'N', 'O', 'N', 'C'}
	recordMagic = [8]byte{'V', 'M', 'D', 'K', 'C', 'A', 'T', 'A'}
	castagnoli  = crc32.MakeTable(crc32.Castagnoli)
	le          = binary.LittleEndian
)

// UUID names a store.
type UUID [16]byte

func (u UUID) String() string { return hex.EncodeToString(u[:]) }

func random16() (u [16]byte) {
	_, _ = rand.Read(u[:]) // never fails (crypto/rand.Read)
	return u
}

// layout is where everything is; it never changes after Format.
type layout struct {
	uuid       UUID
	size       int64 // bytes of the LUN that the store uses, a multiple of blockSize
	extentSize int64
	areaSize   int64
	dataStart  int64
	extents    int64
}

// super is the content of a superblock.
type super struct {
	layout
	generation uint64
	area       uint32 // which area has the catalogue
	recordCRC  uint32
	recordLen  int64
}

func (l *layout) areaAt(i uint32) int64  { return areaStart + int64(i)*l.areaSize }
func (l *layout) copyAt() int64          { return l.size - blockSize }
func (l *layout) place(ext uint32) int64 { return l.dataStart + int64(ext)*l.extentSize }

// maxFile is the largest size of a file: its extents are counted with 32 bits.
func (l *layout) maxFile() int64 { return min(maxFileSize, (1<<32-1)*l.extentSize) }

// newLayout divides a LUN.
func newLayout(size, extentSize, areaSize int64) (layout, error) {
	l := layout{size: size / blockSize * blockSize, extentSize: extentSize, areaSize: areaSize}
	if extentSize < blockSize || extentSize > 64<<20 || extentSize&(extentSize-1) != 0 {
		return l, fault.New(fault.OutOfRange, "", "extents of %d bytes: a power of two from 4 KiB to 64 MiB is needed", extentSize)
	}
	if areaSize < minAreaSize || areaSize > maxAreaSize || areaSize%blockSize != 0 {
		return l, fault.New(fault.OutOfRange, "", "metadata areas of %d bytes: a multiple of 4 KiB from 16 KiB to 256 MiB is needed", areaSize)
	}
	l.dataStart = (areaStart + 2*areaSize + extentSize - 1) / extentSize * extentSize
	l.extents = (l.size - blockSize - l.dataStart) / extentSize
	if l.extents < 1 {
		return l, fault.New(fault.OutOfRange, "", "a LUN of %d bytes is too small: %d are needed at least",
			size, l.dataStart+extentSize+blockSize)
	}
	if l.extents > 1<<32-1 {
		return l, fault.New(fault.OutOfRange, "Use larger extents.", "a LUN of %d bytes has more extents of %d bytes than can be counted", size, extentSize)
	}
	return l, nil
}

// encode makes the block; only its first sector is not zero, so that a torn write of it is no write or all.
func (s *super) encode() []byte {
	p := fsx.AlignedBuffer(blockSize)
	copy(p, superMagic[:])
	le.PutUint32(p[8:], formatVersion)
	copy(p[16:], s.uuid[:])
	le.PutUint64(p[32:], uint64(s.size))
	le.PutUint64(p[40:], uint64(s.extentSize))
	le.PutUint64(p[48:], uint64(s.areaSize))
	le.PutUint64(p[56:], uint64(s.dataStart))
	le.PutUint64(p[64:], uint64(s.extents))
	le.PutUint64(p[72:], s.generation)
	le.PutUint32(p[80:], s.area)
	le.PutUint32(p[84:], s.recordCRC)
	le.PutUint64(p[88:], uint64(s.recordLen))
	le.PutUint32(p[12:], crc32.Checksum(p[:sectorSize], castagnoli))
	return p
}

// decodeSuper reads a superblock of a LUN of lunSize bytes; what it says is possible.
func decodeSuper(p []byte, lunSize int64) (*super, error) {
	if [8]byte(p[:8]) != superMagic {
		return nil, fault.New(fault.NotFound, "Name another LUN, or make a store there with `vmdkctl lun format`.", "there is no store on this LUN")
	}
	sector := append([]byte(nil), p[:sectorSize]...)
	clear(sector[12:16])
	if sum := crc32.Checksum(sector, castagnoli); sum != le.Uint32(p[12:]) {
		return nil, damaged("the superblock's checksum is %08x, its content's %08x", le.Uint32(p[12:]), sum)
	}
	if v := le.Uint32(p[8:]); v != formatVersion {
		return nil, fault.New(fault.Unsupported, "Use a newer version of this program.", "the store has format version %d, this program knows %d", v, formatVersion)
	}
	s := &super{generation: le.Uint64(p[72:]), area: le.Uint32(p[80:]), recordCRC: le.Uint32(p[84:]), recordLen: int64(le.Uint64(p[88:]))}
	size, ext, area := int64(le.Uint64(p[32:])), int64(le.Uint64(p[40:])), int64(le.Uint64(p[48:]))
	if size > lunSize || size < 0 {
		return nil, fault.New(fault.Damaged, "Give the LUN its former size back.", "the LUN has %d bytes, the store on it needs %d: it was shrunk", lunSize, size)
	}
	l, err := newLayout(size, ext, area)
	if err != nil || l.size != size || l.dataStart != int64(le.Uint64(p[56:])) || l.extents != int64(le.Uint64(p[64:])) {
		return nil, damaged("the superblock describes an impossible layout")
	}
	l.uuid = UUID(p[16:32])
	s.layout = l
	if s.area > 1 || s.recordLen < recordHeader || s.recordLen > area || s.generation == 0 {
		return nil, damaged("the superblock names a catalogue of %d bytes in area %d", s.recordLen, s.area)
	}
	return s, nil
}

// nonceBlock is what a node reads through its own path to know that it has the right LUN.
func nonceBlock(u UUID, nonce [16]byte) []byte {
	p := fsx.AlignedBuffer(blockSize)
	copy(p, nonceMagic[:])
	le.PutUint32(p[8:], formatVersion)
	copy(p[16:], u[:])
	copy(p[32:], nonce[:])
	le.PutUint32(p[12:], crc32.Checksum(p[:sectorSize], castagnoli))
	return p
}

// ReadNonce reads who wrote the store on a LUN last: its UUID, and the number that its owner drew when it opened it.
func ReadNonce(lun fsx.File) (u UUID, nonce [16]byte, err error) {
	p := fsx.AlignedBuffer(blockSize)
	if _, err := lun.ReadAt(p, nonceAt); err != nil {
		return u, nonce, fault.Wrap(err, "read the LUN's identity")
	}
	sum := le.Uint32(p[12:])
	clear(p[12:16])
	if [8]byte(p[:8]) != nonceMagic || sum != crc32.Checksum(p[:sectorSize], castagnoli) {
		return u, nonce, fault.New(fault.NotFound, "Check which LUN this path leads to.", "there is no store's identity on this LUN")
	}
	return UUID(p[16:32]), [16]byte(p[32:48]), nil
}

func damaged(format string, args ...any) error {
	return fault.New(fault.Damaged, "`vmdkctl lun check` tells more; restore the LUN from a copy.", format, args...)
}
