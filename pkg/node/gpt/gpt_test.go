package gpt_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/node/gpt"
)

const mib = 1 << 20

func image(t *testing.T, size int64) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestMakeFindGrow(t *testing.T) {
	f := image(t, 8*mib)
	if _, _, err := gpt.Find(f, 8*mib); !errors.Is(err, gpt.ErrEmpty) {
		t.Fatalf("an empty disk: %v, want ErrEmpty", err)
	}
	start, length, err := gpt.Make(f, 8*mib)
	if err != nil || start != mib || length != 7*mib-33*512 {
		t.Fatalf("made %d+%d, %v", start, length, err)
	}
	if s, l, err := gpt.Find(f, 8*mib); s != start || l != length || err != nil {
		t.Fatalf("found %d+%d, %v", s, l, err)
	}
	byPeer(t, f.Name())
	if err := f.Truncate(64 * mib); err != nil {
		t.Fatal(err)
	}
	for range 2 { // repeated: the same
		if s, l, err := gpt.Grow(f, 64*mib); s != start || l != 63*mib-33*512 || err != nil {
			t.Fatalf("grown to %d+%d, %v", s, l, err)
		}
	}
	byPeer(t, f.Name())
}

// byPeer has util-linux read the table.
func byPeer(t *testing.T, path string) {
	t.Helper()
	out, err := exec.Command("partx", "-g", "-o", "NR,TYPE", "-s", path).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		t.Skip("no partx (util-linux) to read our table with")
	}
	if got := strings.Fields(string(out)); err != nil || len(got) != 2 || got[0] != "1" ||
		!strings.EqualFold(got[1], "0FC63DAF-8483-4772-8E79-3D69D8477DE4") {
		t.Fatalf("partx: %v: %s", err, out)
	}
}

// Cutting the writes anywhere leaves the old table, the new one, or an empty disk that was not used yet.
func TestGrowIsCrashSafe(t *testing.T) {
	for cut := range 8 {
		f := image(t, 8*mib)
		if _, _, err := gpt.Make(f, 8*mib); err != nil {
			t.Fatal(err)
		}
		if err := f.Truncate(16 * mib); err != nil {
			t.Fatal(err)
		}
		_, _, err := gpt.Grow(&cutter{File: f, left: cut}, 16*mib)
		start, length, ferr := gpt.Find(f, 16*mib)
		if ferr != nil || start != mib || length != 7*mib-33*512 && length != 15*mib-33*512 {
			t.Errorf("cut after %d (%v): %d+%d, %v", cut, err, start, length, ferr)
		}
	}
}

type cutter struct {
	*os.File
	left int
}

func (c *cutter) WriteAt(b []byte, off int64) (int, error) {
	if c.left--; c.left < 0 {
		return 0, errors.New("cut")
	}
	return c.File.WriteAt(b, off)
}

func TestRefusals(t *testing.T) {
	for _, tc := range []struct {
		name string
		size int64
		make func(t *testing.T, f *os.File)
		want fault.Kind
	}{
		{"a file system", 8 * mib, func(t *testing.T, f *os.File) { put(t, f, "x", 1080) }, fault.Precondition},
		{"data at the end", 8 * mib, func(t *testing.T, f *os.File) { put(t, f, "x", 8*mib-1) }, fault.Precondition},
		{"both tables damaged", 8 * mib, func(t *testing.T, f *os.File) {
			gpt.Make(f, 8*mib)
			put(t, f, "x", 512+60)
			put(t, f, "x", 8*mib-512+60)
		}, fault.Damaged},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := image(t, tc.size)
			tc.make(t, f)
			if _, _, err := gpt.Find(f, tc.size); !errors.Is(err, tc.want) {
				t.Errorf("%v, want %s", err, tc.want)
			}
		})
	}
	f := image(t, 2*mib)
	if _, _, err := gpt.Make(f, 2*mib); !errors.Is(err, fault.OutOfRange) {
		t.Errorf("a tiny disk: %v", err)
	}
}

func TestBackupIsRead(t *testing.T) {
	f := image(t, 8*mib)
	start, length, err := gpt.Make(f, 8*mib)
	if err != nil {
		t.Fatal(err)
	}
	put(t, f, "damage", 512)
	if s, l, err := gpt.Find(f, 8*mib); s != start || l != length || err != nil {
		t.Fatalf("%d+%d, %v", s, l, err)
	}
}

func put(t *testing.T, f *os.File, s string, off int64) {
	t.Helper()
	if _, err := f.WriteAt([]byte(s), off); err != nil {
		t.Fatal(err)
	}
}
