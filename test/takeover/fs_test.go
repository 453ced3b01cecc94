package takeover

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/sys"
)

// mounted is a file system on a block device, mounted nowhere but in this process.
type mounted struct {
	mount *os.File
	path  string
}

func mount(t *testing.T, fstype, device string) *mounted {
	t.Helper()
	m, err := sys.DetachedMount(fstype, []sys.MountParam{{Key: "source", Value: device}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := sys.Fd(m)
	if err != nil {
		t.Fatal(err)
	}
	return &mounted{m, fmt.Sprintf("/proc/self/fd/%d", fd)}
}

// umount waits until the file system is gone: an exclusive open of the device fails while it is there.
func (m *mounted) umount(t *testing.T, device string) {
	t.Helper()
	if err := m.mount.Close(); err != nil {
		t.Error(err)
	}
	ctx := within(t, waitLong)
	for {
		fd, err := unix.Open(device, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
		if err == nil {
			_ = unix.Close(fd)
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("%s is still mounted: %v", device, err)
		}
		unix.Nanosleep(&unix.Timespec{Nsec: 2e6}, nil)
	}
}

// page is the unit of content: 4 KiB that say whose they are, where, which version, and carry a checksum.
const page = 4096

func fill(b []byte, writer, place, version uint64) {
	rnd := rand.New(rand.NewPCG(writer<<32|place, version))
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], rnd.Uint64())
	}
	binary.LittleEndian.PutUint64(b[0:], writer)
	binary.LittleEndian.PutUint64(b[8:], place)
	binary.LittleEndian.PutUint64(b[16:], version)
	binary.LittleEndian.PutUint32(b[24:], crc32.ChecksumIEEE(b[28:]))
}

// writer overwrites random pages of one file. version is the last one written of each page, 0 never: what was acknowledged.
type writer struct {
	id      uint64
	file    string
	pages   int
	flags   int // of open(2)
	sync    bool
	version []uint64
	writes  int
}

func (w *writer) run(dir string, rnd *rand.Rand, stop <-chan struct{}) error {
	f, err := os.OpenFile(filepath.Join(dir, w.file), os.O_RDWR|os.O_CREATE|w.flags, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	buf, err := sys.AlignedBuffer(2 * page)
	if err != nil {
		return err
	}
	defer func() { _ = sys.FreeBuffer(buf) }()
	out, in := buf[:page], buf[page:]
	want := make([]byte, page)
	w.version = make([]uint64, w.pages)
	for ; ; w.writes++ {
		select {
		case <-stop:
			return nil
		default:
		}
		p := rnd.IntN(w.pages)
		fill(out, w.id, uint64(p), w.version[p]+1)
		if _, err := f.WriteAt(out, int64(p)*page); err != nil {
			return err
		}
		w.version[p]++
		if w.sync {
			if err := f.Sync(); err != nil {
				return err
			}
		}
		if q := rnd.IntN(w.pages); w.version[q] > 0 {
			if _, err := f.ReadAt(in, int64(q)*page); err != nil {
				return err
			}
			if fill(want, w.id, uint64(q), w.version[q]); !bytes.Equal(in, want) {
				return w.lost(q, in)
			}
		}
	}
}

func (w *writer) lost(p int, got []byte) error {
	return fmt.Errorf("%s page %d: acknowledged version %d, found writer %d, page %d, version %d", w.file, p, w.version[p],
		binary.LittleEndian.Uint64(got), binary.LittleEndian.Uint64(got[8:]), binary.LittleEndian.Uint64(got[16:]))
}

// check reads everything that was acknowledged, and that nothing else is there.
func (w *writer) check(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, w.file))
	if err != nil {
		return err
	}
	want := make([]byte, page)
	for p, v := range w.version {
		got := make([]byte, page)
		if p*page < len(b) {
			copy(got, b[p*page:])
		}
		clear(want)
		if v > 0 {
			fill(want, w.id, uint64(p), v)
		}
		if !bytes.Equal(got, want) {
			return w.lost(p, got)
		}
	}
	return nil
}

func newWriters() []*writer {
	return []*writer{
		{id: 1, file: "fsync", pages: 2000, sync: true},
		{id: 2, file: "direct", pages: 4000, flags: unix.O_DIRECT},
		{id: 3, file: "buffered", pages: 3000},
		{id: 4, file: "dsync", pages: 1000, flags: unix.O_DSYNC},
	}
}

// writersUntil runs them together, and writes the file system back now and then, so that what is only buffered is under
// way at a death too.
func writersUntil(ws []*writer, dir string, seed uint64) func(<-chan struct{}) error {
	return func(stop <-chan struct{}) error {
		var wg sync.WaitGroup
		errs := make([]error, len(ws)+1)
		for i, w := range ws {
			wg.Go(func() { errs[i] = w.run(dir, rand.New(rand.NewPCG(seed, w.id)), stop) })
		}
		wg.Go(func() { errs[len(ws)] = writeBack(filepath.Join(dir, "."), stop) })
		wg.Wait()
		return errors.Join(errs...)
	}
}

func writeBack(dir string, stop <-chan struct{}) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	fd, err := sys.Fd(d)
	if err != nil {
		return err
	}
	for {
		select {
		case <-stop:
			return nil
		case <-after(300):
		}
		if err := unix.Syncfs(fd); err != nil {
			return err
		}
	}
}

// TestWorkerUnderFileSystem: a worker dies while writers that sync, and writers that do not, use a file system.
func TestWorkerUnderFileSystem(t *testing.T) {
	need(t)
	for _, c := range []struct{ kind, fstype string }{{"flat", "ext4"}, {"thin", "xfs"}, {"sparse", "ext4"}, {"sparse", "xfs"}} {
		t.Run(c.kind+"-"+c.fstype, func(t *testing.T) { underFileSystem(t, c.kind, c.fstype, &local{}) })
	}
}

// TestHostdUnderFileSystem: the same with hostd.
func TestHostdUnderFileSystem(t *testing.T) {
	need(t)
	underFileSystem(t, "sparse", "ext4", &smallHostd{})
}

func underFileSystem(t *testing.T, kind, fstype string, h server) {
	rnd := seeded(t)
	d := newDisk(t, kind)
	if fstype == "xfs" { // the least that mkfs.xfs makes
		d = newDiskOf(t, kind, 300<<20)
	}
	r := attach(t, d, h, false)
	onFileSystem(t, rnd, r, fstype, kills())
	sum := r.sum(t)
	r.detach(t)
	d.verify(t, sum)
}
