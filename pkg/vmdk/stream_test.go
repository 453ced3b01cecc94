package vmdk

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx/sim"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/vmdktest"
)

// streamed is a disk of pieces that compress well, badly and not at all, with holes.
func streamed(r *rand.Rand, size int64) []byte {
	b := make([]byte, size)
	for off := 0; off < len(b); {
		n := min(len(b)-off, 1+r.IntN(200<<10))
		switch r.IntN(4) {
		case 0:
		case 1:
			for i := range n {
				b[off+i] = byte(off>>9) | 1
			}
		default:
			for i := range n {
				b[off+i] = byte(r.Uint32())
			}
		}
		off += n
	}
	return b
}

type appender struct {
	f   fsx.File
	off int64
}

func (a *appender) Write(p []byte) (int, error) {
	n, err := a.f.WriteAt(p, a.off)
	a.off += int64(n)
	return n, err
}

// writeStream writes b as a disk, into a pipe or a file.
func writeStream(t *testing.T, d fsx.Dir, name string, b []byte, pipe bool, p StreamParams) {
	t.Helper()
	f, err := d.Open(name, fsx.ReadWrite|fsx.Create)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var at io.WriterAt
	if !pipe {
		at = f
	}
	p.Capacity, p.Name = int64(len(b)), name
	w, err := NewStreamWriter(&appender{f: f}, at, p)
	if err != nil {
		t.Fatal(err)
	}
	for off := 0; off < len(b); {
		n := min(len(b)-off, 4*int(w.grain))
		if err := w.WriteGrains(b[off:off+n], int64(off)); err != nil {
			t.Fatal(err)
		}
		off += n
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// wholeOf reads a link's allocated bytes.
func wholeOf(t *testing.T, d fsx.Dir, name string) []byte {
	t.Helper()
	l, err := Open(d, name, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	b, err := readLink(l)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func readLink(l *Link) ([]byte, error) {
	b := make([]byte, l.Size())
	for _, e := range l.Extents() {
		for off := int64(0); off < e.Len; {
			r, err := e.Run(off, e.Len-off)
			if err != nil {
				return nil, err
			}
			if r.State == Allocated {
				if err := e.ReadRun(b[e.Start+off:e.Start+off+r.Len], off, r); err != nil {
					return nil, err
				}
			}
			off += r.Len
		}
	}
	return b, nil
}

func qemu(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img %v: %v\n%s", args, err, out)
	}
}

// TestStream: what is written, into a file and into a pipe, reads back, by us, by a reader of pipes and by qemu; what qemu writes
// reads here.
func TestStream(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("SEED=%d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	sizes := []int64{512, 65536, 3*mebi + 7*512, 40*mebi + 512, 70 * mebi}
	if raceDetector {
		sizes = sizes[:3]
	}
	for _, size := range sizes {
		want := streamed(r, size)
		for _, pipe := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d/pipe=%v", size, pipe), func(t *testing.T) {
				path := t.TempDir()
				d, err := fsx.OpenRoot(path)
				if err != nil {
					t.Fatal(err)
				}
				defer d.Close()
				writeStream(t, d, "disk.vmdk", want, pipe, StreamParams{Workers: 3})
				if got := wholeOf(t, d, "disk.vmdk"); !bytes.Equal(got, want) {
					t.Fatal("read back: other content")
				}
				file := filepath.Join(path, "disk.vmdk")
				if got := piped(t, file); !bytes.Equal(got, want) {
					t.Fatal("through a pipe: other content")
				}
				raw := filepath.Join(path, "disk.raw")
				qemu(t, "convert", "-f", "vmdk", "-O", "raw", file, raw)
				if got, err := os.ReadFile(raw); err != nil || !bytes.Equal(got, want) {
					t.Fatalf("qemu-img reads other content (%v)", err)
				}
				qemu(t, "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, filepath.Join(path, "theirs.vmdk"))
				if got := wholeOf(t, d, "theirs.vmdk"); !bytes.Equal(got, want) {
					t.Fatal("of qemu-img: other content")
				}
			})
		}
	}
}

const mebi = 1 << 20

func piped(t *testing.T, file string) []byte {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s, err := NewStreamReader(io.MultiReader(f)) // a reader and nothing else
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, s.Size())
	for {
		off, p, err := s.Next()
		if errors.Is(err, io.EOF) {
			return b
		}
		if err != nil {
			t.Fatal(err)
		}
		copy(b[off:], p)
	}
}

// TestStreamShapes: without footer, with zeros behind the end, cut off, with a directory that has been lost; the descriptor names
// another file, as it does after a download.
func TestStreamShapes(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 0))
	want := streamed(r, 40*mebi)
	path := t.TempDir()
	d, err := fsx.OpenRoot(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	writeStream(t, d, "disk.vmdk", want, true, StreamParams{})
	image, err := os.ReadFile(filepath.Join(path, "disk.vmdk"))
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	for _, c := range []struct {
		name   string
		change func(b []byte) []byte
		whole  bool // all of it is read
		kind   fault.Kind
	}{
		{"zeros behind", func(b []byte) []byte { return append(b, make([]byte, 9000)...) }, true, ""},
		{"no footer", func(b []byte) []byte { return b[:len(b)-3*SectorSize] }, true, ""},
		{"no directory", func(b []byte) []byte { return b[:len(b)-5*SectorSize] }, false, fault.Damaged},
		{"cut in the middle", func(b []byte) []byte { return b[:len(b)/2/SectorSize*SectorSize] }, false, fault.Damaged},
		{"footer of another disk", func(b []byte) []byte { le.PutUint64(b[len(b)-2*SectorSize+12:], 4096); return b }, false, fault.Damaged},
		{"directory outside", func(b []byte) []byte { le.PutUint64(b[len(b)-2*SectorSize+56:], 1<<40); return b }, false, fault.Damaged},
		{"an algorithm that is unknown", func(b []byte) []byte { b[77] = 2; return b }, false, fault.Unsupported},
		{"huge grains", func(b []byte) []byte { le.PutUint64(b[20:], 1<<21); return b }, false, fault.Damaged},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := c.change(bytes.Clone(image))
			if err := os.WriteFile(filepath.Join(path, "other.vmdk"), b, 0o600); err != nil {
				t.Fatal(err)
			}
			l, err := Open(d, "other.vmdk", Options{})
			if fault.KindOf(err) != c.kind {
				t.Fatalf("%v, want kind %q", err, c.kind)
			}
			if err != nil {
				return
			}
			defer l.Close()
			got, err := readLink(l)
			if c.whole && (err != nil || !bytes.Equal(got, want)) {
				t.Fatalf("other content (%v)", err)
			}
			if err != nil && fault.KindOf(err) != fault.Damaged {
				t.Fatal(err)
			}
		})
	}
	if _, err := Open(d, "disk.vmdk", Options{ReadWrite: true}); fault.KindOf(err) != fault.Unsupported {
		t.Errorf("opened for writing: %v", err)
	}
}

// TestStreamDamage: a bit that flips anywhere in a grain is told, never read.
func TestStreamDamage(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 0))
	want := streamed(r, mebi)
	path := t.TempDir()
	d, err := fsx.OpenRoot(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	writeStream(t, d, "disk.vmdk", want, false, StreamParams{})
	file := filepath.Join(path, "disk.vmdk")
	image, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	told, tries := 0, 300
	if raceDetector {
		tries = 45
	}
	for range tries {
		b := bytes.Clone(image)
		at := 128*SectorSize + r.IntN(len(b)-129*SectorSize)
		b[at] ^= 1 << r.IntN(8)
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := Open(d, "disk.vmdk", Options{})
		if err != nil {
			t.Fatal(err)
		}
		got, err := readLink(l)
		if cerr := l.Close(); cerr != nil {
			t.Fatal(cerr)
		}
		switch {
		case err != nil && fault.KindOf(err) == fault.Damaged:
			told++
		case err != nil:
			t.Fatal(err)
		case !bytes.Equal(got, want):
			t.Fatalf("a bit of byte %d flipped, and other content was read", at)
		}
	}
	if told < tries*2/3 {
		t.Errorf("only %d of %d flips met a grain", told, tries)
	}
}

// TestStreamRefuses: grains out of order or in part; an output that fails is told, and nothing hangs or is left running.
func TestStreamRefuses(t *testing.T) {
	before := runtime.NumGoroutine()
	w, err := NewStreamWriter(io.Discard, nil, StreamParams{Capacity: mebi, Name: "x.vmdk"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ off, n int64 }{{512, 65536}, {0, 1000}, {960 << 10, 2 * 65536}} {
		if err := w.WriteGrains(make([]byte, c.n), c.off); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%d bytes at %d: %v", c.n, c.off, err)
		}
	}
	if err := w.WriteGrains(make([]byte, 65536), 65536); err != nil {
		t.Error(err)
	}
	if err := w.WriteGrains(make([]byte, 65536), 0); fault.KindOf(err) != fault.Invalid {
		t.Errorf("backwards: %v", err)
	}
	w.Abort()
	if _, err := NewStreamWriter(io.Discard, nil, StreamParams{Capacity: mebi, Name: "a\"b"}); fault.KindOf(err) != fault.Invalid {
		t.Errorf("a name with a quote: %v", err)
	}
	broken := errors.New("the pipe is broken")
	w, err = NewStreamWriter(&limited{n: 300 << 10, err: broken}, nil, StreamParams{Capacity: 64 * mebi, Name: "x.vmdk"})
	if err != nil {
		t.Fatal(err)
	}
	b := streamed(rand.New(rand.NewPCG(3, 0)), 64*mebi)
	werr := w.WriteGrains(b, 0)
	if cerr := w.Close(); !errors.Is(werr, broken) || !errors.Is(cerr, broken) {
		t.Errorf("write: %v, close: %v", werr, cerr)
	}
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
	}
}

type limited struct {
	n   int
	err error
}

func (l *limited) Write(p []byte) (int, error) {
	if l.n -= len(p); l.n < 0 {
		return 0, l.err
	}
	return len(p), nil
}

// FuzzStream: whatever is in a stream, it is opened and read, by its tables and as a pipe, without a panic and in bounded memory.
func FuzzStream(f *testing.F) {
	d := newSimRoot()
	var images [][]byte
	for _, pipe := range []bool{false, true} {
		file, err := d.Open("s.vmdk", fsx.ReadWrite|fsx.Create)
		if err != nil {
			f.Fatal(err)
		}
		var at io.WriterAt
		if !pipe {
			at = file
		}
		w, err := NewStreamWriter(&appender{f: file}, at, StreamParams{Capacity: 128 << 10, Name: "s.vmdk", GrainSectors: 8})
		if err != nil {
			f.Fatal(err)
		}
		if err := errors.Join(w.WriteGrains(bytes.Repeat([]byte("grain"), 4096)[:16384], 0), w.Close()); err != nil {
			f.Fatal(err)
		}
		b := make([]byte, 1<<20)
		n, err := file.ReadAt(b, 0)
		if !errors.Is(err, io.EOF) {
			f.Fatal(err)
		}
		images = append(images, b[:n])
		if err := errors.Join(file.Close(), d.Remove("s.vmdk")); err != nil {
			f.Fatal(err)
		}
	}
	f.Add(false, uint16(0), []byte("KDMV"), uint16(0))
	f.Add(true, uint16(12), []byte{0, 0, 0, 0, 1}, uint16(512))
	f.Add(true, uint16(56), []byte{24}, uint16(0))
	f.Add(false, uint16(24*512+8), []byte{0xff, 0xff}, uint16(0))
	f.Fuzz(func(t *testing.T, pipe bool, at uint16, change []byte, cut uint16) {
		defer vmdktest.Bounded(t)
		b := bytes.Clone(images[0])
		if pipe {
			b = bytes.Clone(images[1])
		}
		copy(b[min(int(at), len(b)):], change)
		b = b[:len(b)-min(int(cut), len(b))]
		d := newSimRoot()
		if err := writeFile(d, "disk.vmdk", b); err != nil {
			t.Fatal(err)
		}
		if l, err := Open(d, "disk.vmdk", Options{}); err == nil {
			if l.Size() < 4<<20 {
				if _, err := readLink(l); err != nil && fault.KindOf(err) == fault.Internal {
					t.Fatal(err)
				}
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		} else if fault.KindOf(err) == fault.Internal {
			t.Fatal(err)
		}
		if _, err := Check(context.Background(), d, "disk.vmdk"); err != nil {
			t.Fatal(err)
		}
		s, err := NewStreamReader(bytes.NewReader(b))
		for err == nil {
			_, _, err = s.Next()
		}
		if fault.KindOf(err) == fault.Internal && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
	})
}

func newSimRoot() fsx.Dir { return sim.New(sim.Options{}).Root() }
