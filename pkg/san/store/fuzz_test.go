package store_test

import (
	"encoding/binary"
	"hash/crc32"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx/sim"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/store"
)

const hostileSize = 2 << 20

// sample is a LUN with files, a directory, a link, a grant and held extents; its catalogue is in area 1.
func sample(t testing.TB) *sim.FS {
	fs := sim.New(sim.Options{})
	s := formatted(t, fs.Root(), hostileSize, tiny)
	must(t, s.Root().Mkdir("d"))
	d, err := s.Root().Sub("d")
	must(t, err)
	write(t, s.Root(), "a", make([]byte, 9000), 0)
	write(t, d, "b", []byte("b"), 20000)
	must(t, d.LinkFrom(s.Root(), "a", "link"))
	_, err = s.AddGrant([]byte("grant"))
	must(t, err)
	write(t, s.Root(), "gone", make([]byte, 5000), 0)
	must(t, s.Root().Sync(), s.Root().Remove("gone"), s.Close())
	return fs
}

func area(lun fsx.File) (super []byte, at, length int64) {
	super = make([]byte, 4096)
	if _, err := lun.ReadAt(super, 4096); err != nil {
		panic(err)
	}
	at = 1<<20 + int64(binary.LittleEndian.Uint32(super[80:]))*int64(binary.LittleEndian.Uint64(super[48:]))
	return super, at, int64(binary.LittleEndian.Uint64(super[88:]))
}

// plant writes a catalogue with right checksums, so that what it says is what is judged.
func plant(t testing.TB, lun fsx.File, record []byte) {
	castagnoli := crc32.MakeTable(crc32.Castagnoli)
	super, at, _ := area(lun)
	if len(record) >= 96 {
		clear(record[12:16])
		binary.LittleEndian.PutUint32(record[12:], crc32.Checksum(record, castagnoli))
		copy(super[84:], record[12:16])
	}
	binary.LittleEndian.PutUint64(super[88:], uint64(len(record)))
	clear(super[12:16])
	binary.LittleEndian.PutUint32(super[12:], crc32.Checksum(super[:512], castagnoli))
	for _, w := range []struct {
		p  []byte
		at int64
	}{{super, 4096}, {super, hostileSize - 4096}, {record, at}} {
		_, err := lun.WriteAt(w.p, w.at)
		must(t, err)
	}
}

// FuzzCatalogue: whatever a catalogue says, it is refused, or the store works and stays whole.
func FuzzCatalogue(f *testing.F) {
	fs := sample(f)
	lun, err := lunIn(fs)
	must(f, err)
	_, at, length := area(lun)
	record := make([]byte, length)
	_, err = lun.ReadAt(record, at)
	must(f, err)
	f.Add(record)
	for _, off := range []int{40, 48, 64, 68, 72, 96, 104, 112, 116, 120, 124, 128, len(record) - 9, len(record) - 5} {
		p := append([]byte(nil), record...)
		p[off] ^= 0xff
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, record []byte) {
		if len(record) > 16<<10 {
			return
		}
		fs := fs.Copy()
		lun, err := lunIn(fs)
		must(t, err)
		plant(t, lun, append([]byte(nil), record...))
		r, checkErr := store.Check(lun)
		s, err := store.Open(lun, store.Options{})
		if (err == nil) != (checkErr == nil && len(r.Problems) == 0) {
			t.Fatalf("open: %v; check: %v, %v", err, r.Problems, checkErr)
		}
		if err != nil {
			return
		}
		if g, err := s.Root().Open("new", fsx.ReadWrite|fsx.Create); err == nil {
			_, _ = g.WriteAt(make([]byte, 10000), 3)
			g.Close()
		}
		if err := s.Root().Sync(); err != nil {
			return // no room
		}
		must(t, s.Close())
		if r, err := store.Check(lun); err != nil || len(r.Problems) > 0 {
			t.Fatalf("after a commit: %v, %v", r.Problems, err)
		}
	})
}

// FuzzSuperblock: a superblock with any content, under a right checksum or not.
func FuzzSuperblock(f *testing.F) {
	fs := sample(f)
	lun, err := lunIn(fs)
	must(f, err)
	super, _, _ := area(lun)
	f.Add(super[:512], true)
	f.Add(super[:512], false)
	for off := 8; off < 96; off += 4 {
		p := append([]byte(nil), super[:512]...)
		p[off+3] ^= 0x7f
		f.Add(p, true)
	}
	f.Fuzz(func(t *testing.T, sector []byte, sum bool) {
		fs := fs.Copy()
		lun, err := lunIn(fs)
		must(t, err)
		block := make([]byte, 512)
		copy(block, sector)
		if sum {
			clear(block[12:16])
			binary.LittleEndian.PutUint32(block[12:], crc32.Checksum(block, crc32.MakeTable(crc32.Castagnoli)))
		}
		for _, at := range []int64{4096, hostileSize - 4096} {
			_, err := lun.WriteAt(block, at)
			must(t, err)
		}
		r, checkErr := store.Check(lun)
		if _, err := store.Open(lun, store.Options{ReadOnly: true}); (err == nil) != (checkErr == nil && len(r.Problems) == 0) {
			t.Fatalf("open: %v; check: %v, %v", err, r.Problems, checkErr)
		}
	})
}
