package gpt

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"slices"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// File is the device or image that holds the table.
type File interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

const (
	sector       = 512
	headerSize   = 92
	entrySize    = 128
	entries      = 128
	arraySize    = entries * entrySize
	arraySectors = arraySize / sector
	// align is where the first partition starts: 1 MiB, as every partitioner does.
	align = 1 << 20
)

var (
	signature = []byte("EFI PART")
	// Linux filesystem data, 0FC63DAF-8483-4772-8E79-3D69D8477DE4, in the mixed byte order of the specification.
	linuxData = []byte{0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4}
	le        = binary.LittleEndian
)

// Table is a partition table, of which the header's own fields and the raw entries are kept.
type table struct {
	disk  [16]byte
	array []byte // arraySize bytes
}

// ErrEmpty: there is no table, and nothing else where one would be.
var ErrEmpty = fault.New(fault.NotFound, "", "no partition table: the disk is empty")

// Find returns the one partition of the table on f (size bytes), in bytes. Kinds: NotFound (ErrEmpty), Precondition
// (something else is there, or not exactly one partition), Damaged.
func Find(f File, size int64) (start, length int64, err error) {
	t, err := read(f, size)
	if err != nil {
		return 0, 0, err
	}
	return t.one(size)
}

// Make writes a table with one partition over all of f, which is size bytes large. Kinds: OutOfRange.
func Make(f File, size int64) (start, length int64, err error) {
	if size < 3*align {
		return 0, 0, fault.New(fault.OutOfRange, "allowed: 3 MiB and more", "a disk of %d bytes cannot be partitioned", size)
	}
	t := &table{array: make([]byte, arraySize)}
	rand.Read(t.disk[:])
	e := t.array[:entrySize]
	copy(e, linuxData)
	rand.Read(e[16:32])
	for _, id := range [][]byte{t.disk[:], e[16:32]} { // RFC 9562 version 4, in the mixed byte order
		id[7] = id[7]&0x0f | 0x40
		id[8] = id[8]&0x3f | 0x80
	}
	le.PutUint64(e[32:], align/sector)
	le.PutUint64(e[40:], lastUsable(size))
	if err := t.write(f, size); err != nil {
		return 0, 0, err
	}
	return t.one(size)
}

// Grow makes the one partition reach to the end of f and returns it; a partition that does is left alone.
func Grow(f File, size int64) (start, length int64, err error) {
	t, err := read(f, size)
	if err != nil {
		return 0, 0, err
	}
	if _, _, err := t.one(size); err != nil {
		return 0, 0, err
	}
	for e := range slices.Chunk(t.array, entrySize) {
		if used(e) {
			le.PutUint64(e[40:], max(le.Uint64(e[40:]), lastUsable(size)))
		}
	}
	// Also when the partition reaches to the end already: the backup may still be where the disk ended before.
	if err := t.write(f, size); err != nil {
		return 0, 0, err
	}
	return t.one(size)
}

// lastUsable leaves room for the backup: its array and its header. The end of the partition is rounded down to whole MiB
// where that costs nothing a user can see.
func lastUsable(size int64) uint64 { return uint64(size/sector - 1 - arraySectors - 1) }

func used(e []byte) bool { return len(bytes.Trim(e[:16], "\x00")) > 0 }

func (t *table) one(size int64) (start, length int64, err error) {
	n := 0
	for e := range slices.Chunk(t.array, entrySize) {
		if !used(e) {
			continue
		}
		n++
		first, last := le.Uint64(e[32:]), le.Uint64(e[40:])
		if first < 2+arraySectors || last < first || last >= uint64(size/sector) {
			return 0, 0, fault.New(fault.Damaged, "repair the table with a partitioner", "partition from sector %d to %d on a disk of %d sectors",
				first, last, size/sector)
		}
		start, length = int64(first)*sector, int64(last-first+1)*sector
	}
	if n != 1 {
		return 0, 0, fault.New(fault.Precondition, "use volumeMode Block to reach a disk that is partitioned otherwise",
			"the partition table has %d partitions, not one", n)
	}
	return start, length, nil
}

// read finds the primary table, or the backup at the end of the disk.
func read(f File, size int64) (*table, error) {
	t, err := readAt(f, size, 1)
	if err == nil {
		return t, nil
	}
	if backup, berr := readAt(f, size, size/sector-1); berr == nil {
		return backup, nil
	}
	return nil, err
}

func readAt(f File, size, lba int64) (*table, error) {
	h := make([]byte, sector)
	if _, err := f.ReadAt(h, lba*sector); err != nil {
		return nil, err
	}
	if !bytes.Equal(h[:8], signature) {
		return nil, notATable(f, size)
	}
	n := le.Uint32(h[12:])
	if n < headerSize || n > sector {
		return nil, fault.New(fault.Damaged, "repair the table with a partitioner", "partition table header of %d bytes", n)
	}
	want := le.Uint32(h[16:])
	le.PutUint32(h[16:], 0)
	if crc32.ChecksumIEEE(h[:n]) != want || le.Uint64(h[24:]) != uint64(lba) {
		return nil, fault.New(fault.Damaged, "repair the table with a partitioner", "partition table header at sector %d: wrong checksum or place", lba)
	}
	at, count, each := int64(le.Uint64(h[72:])), le.Uint32(h[80:]), le.Uint32(h[84:])
	if count > entries || each != entrySize || at < 2 || at > size/sector-arraySectors {
		return nil, fault.New(fault.Unsupported, "", "partition table with %d entries of %d bytes at sector %d", count, each, at)
	}
	t := &table{array: make([]byte, arraySize)}
	copy(t.disk[:], h[56:72])
	raw := t.array[:count*entrySize]
	if _, err := f.ReadAt(raw, at*sector); err != nil {
		return nil, err
	}
	if crc32.ChecksumIEEE(raw) != le.Uint32(h[88:]) {
		return nil, fault.New(fault.Damaged, "repair the table with a partitioner", "partition entries: wrong checksum")
	}
	return t, nil
}

// notATable says what is in the place of a table: nothing at all, or something else.
func notATable(f File, size int64) error {
	buf := make([]byte, min(size, align))
	for _, off := range []int64{0, size - int64(len(buf))} {
		if _, err := f.ReadAt(buf, off); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if len(bytes.Trim(buf, "\x00")) > 0 {
			return fault.New(fault.Precondition, "use partition none for a disk with a file system of its own; a disk that holds anything is "+
				"never partitioned", "there is no GUID partition table, and the disk is not empty")
		}
	}
	return ErrEmpty
}

// write writes backup, primary and the protective MBR, a sync between each two: died between them, one table is valid.
func (t *table) write(f File, size int64) error {
	last := size/sector - 1
	steps := []func() error{
		func() error { return writeAt(f, t.array, last-arraySectors) },
		func() error { return writeAt(f, t.header(size, last, 1, last-arraySectors), last) },
		func() error { return f.Sync() },
		func() error { return writeAt(f, t.array, 2) },
		func() error { return writeAt(f, t.header(size, 1, last, 2), 1) },
		func() error { return writeAt(f, protective(size), 0) },
		func() error { return f.Sync() },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return fault.Wrap(err, "write the partition table")
		}
	}
	return nil
}

func writeAt(f File, b []byte, lba int64) error {
	_, err := f.WriteAt(b, lba*sector)
	return err
}

func (t *table) header(size, at, other, array int64) []byte {
	h := make([]byte, sector)
	copy(h, signature)
	le.PutUint32(h[8:], 0x00010000)
	le.PutUint32(h[12:], headerSize)
	le.PutUint64(h[24:], uint64(at))
	le.PutUint64(h[32:], uint64(other))
	le.PutUint64(h[40:], 2+arraySectors)
	le.PutUint64(h[48:], lastUsable(size))
	copy(h[56:], t.disk[:])
	le.PutUint64(h[72:], uint64(array))
	le.PutUint32(h[80:], entries)
	le.PutUint32(h[84:], entrySize)
	le.PutUint32(h[88:], crc32.ChecksumIEEE(t.array))
	le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:headerSize]))
	return h
}

// protective is the MBR that shows one partition of type EE over the whole disk to those who know no GPT.
func protective(size int64) []byte {
	m := make([]byte, sector)
	copy(m[446:], []byte{0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff})
	le.PutUint32(m[446+8:], 1)
	le.PutUint32(m[446+12:], uint32(min(size/sector-1, 0xffffffff)))
	m[510], m[511] = 0x55, 0xaa
	return m
}
