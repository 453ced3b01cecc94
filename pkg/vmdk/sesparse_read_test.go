package vmdk

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/vmdktest"
)

// seWritten makes the files of seImage in a directory, as a base, and returns what they hold.
func seWritten(t *testing.T, path string, change func(x seAt)) []byte {
	t.Helper()
	im := seImage(t)
	want := make([]byte, seSectors*SectorSize)
	for _, g := range []int64{7, 0, 1, 100, 3*seTableEntries + 2, 3*seTableEntries + 5} {
		off := g * seGrainBytes
		copy(want[off:], bytes.Repeat([]byte{byte(g) + 1}, int(min(seGrainBytes, int64(len(want))-off))))
	}
	text := strings.ReplaceAll(string(im.files[imageName]), "parentCID=00001234", "parentCID=ffffffff")
	text = strings.ReplaceAll(text, "parentFileNameHint=\"base.vmdk\"\n", "")
	im.files[imageName] = []byte(text)
	if change != nil {
		change(seAt{b: bytes.Clone(im.files[seFile]), im: im})
	}
	for name, b := range im.files {
		if err := os.WriteFile(filepath.Join(path, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return want
}

// TestSESparse: an extent is read as qemu reads it, in runs and piecemeal; never for writing.
func TestSESparse(t *testing.T) {
	path := t.TempDir()
	want := seWritten(t, path, nil)
	d, err := fsx.OpenRoot(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if got := wholeOf(t, d, imageName); !bytes.Equal(got, want) {
		t.Fatal("other content")
	}
	raw := filepath.Join(path, "raw")
	qemu(t, "convert", "-f", "vmdk", "-O", "raw", filepath.Join(path, imageName), raw)
	if got, err := os.ReadFile(raw); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("qemu-img reads other content (%v)", err)
	}
	l, err := Open(d, imageName, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	e := l.Extents()[0]
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		off := r.Int64N(e.Len)
		n := min(1+r.Int64N(3*seGrainBytes), e.Len-off)
		run, err := e.Run(off, n)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, run.Len)
		if run.State == Allocated {
			if err := e.ReadRun(got, off, run); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(got, want[off:off+run.Len]) {
			t.Fatalf("%d bytes at %d: other content", run.Len, off)
		}
	}
	if _, err := Open(d, imageName, Options{ReadWrite: true}); fault.KindOf(err) != fault.Unsupported {
		t.Errorf("opened for writing: %v", err)
	}
}

// TestSESparseJournal: what the journal holds is read as if it had been applied, in the order of its transactions, and no byte of the
// file changes.
func TestSESparseJournal(t *testing.T) {
	path := t.TempDir()
	want := seWritten(t, path, func(x seAt) {
		x.pending()
		at := []int64{x.gte(0), x.back(0)}
		good := [][]byte{x.sector(at[0]), x.sector(at[1])}
		bad := [][]byte{bytes.Repeat([]byte{0x55}, SectorSize), good[1]}
		x.transaction(1, 7, at, good)
		x.transaction(0, 6, at, bad) // older
		for _, a := range at {
			x.clearSector(a)
		}
	})
	before, err := os.ReadFile(filepath.Join(path, seFile))
	if err != nil {
		t.Fatal(err)
	}
	d, err := fsx.OpenRoot(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if got := wholeOf(t, d, imageName); !bytes.Equal(got, want) {
		t.Error("other content")
	}
	if after, err := os.ReadFile(filepath.Join(path, seFile)); err != nil || !bytes.Equal(after, before) {
		t.Errorf("the file was changed (%v)", err)
	}
}

// FuzzSESparse: whatever is in an extent, it is checked, opened and read without a panic and in bounded memory.
func FuzzSESparse(f *testing.F) {
	im := seImage(new(testing.T))
	f.Add(uint32(16), []byte{0xff, 0xff}, false)
	f.Add(uint32(128), []byte{0, 0, 1}, true)
	f.Add(uint32(SectorSize+24), []byte{1}, true)
	f.Add(uint32(seLayout[seDirectory].from*SectorSize), []byte{1, 2, 3, 4, 5, 6, 7, 0x10}, false)
	f.Add(uint32(seLayout[seTables].from*SectorSize), []byte{1, 2, 3, 4, 5, 6, 7, 0x30}, false)
	f.Fuzz(func(t *testing.T, at uint32, change []byte, pending bool) {
		defer vmdktest.Bounded(t)
		b := bytes.Clone(im.files[seFile])
		copy(b[min(int(at), len(b)):], change)
		if pending {
			b[SectorSize+24] = 1
		}
		d := newSimRoot()
		for name, b := range map[string][]byte{imageName: im.files[imageName], seFile: b} {
			if err := writeFile(d, name, b); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := Check(t.Context(), d, imageName); err != nil {
			t.Fatal(err)
		}
		l, err := Open(d, imageName, Options{})
		if err != nil {
			if fault.KindOf(err) == fault.Internal {
				t.Fatal(err)
			}
			return
		}
		if _, err := readLink(l); err != nil && fault.KindOf(err) == fault.Internal {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
