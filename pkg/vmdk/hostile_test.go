package vmdk

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// TestHostileSizes: a sparse file that takes a few KiB of a datastore must not cost memory that follows its apparent size.
// Each case is the largest that is read and the smallest that is refused.
func TestHostileSizes(t *testing.T) {
	const most = (maxFileSectors + minGrainSectors) * SectorSize
	const tables = maxDirectoryBytes / 4
	for _, c := range []struct {
		name          string
		size          int64
		tables, grain uint64
		code          Code // "": it is opened
	}{
		{"longest file", most, 1, minGrainSectors, ""},
		{"file too long", most + SectorSize, 1, minGrainSectors, FileTooLong},
		{"longest file there is", math.MaxInt64, 1, minGrainSectors, FileTooLong},
		{"grains too small", 1 << 20, 1, minGrainSectors / 2, BadGrainSize},
		{"longest directory", 1 << 30, tables, minGrainSectors, ""},
		{"directory too long", 1 << 30, tables + 1, minGrainSectors, DirectoryTooLong},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := &header{version: 1, flags: flagNewLine | flagRedundant, capacity: c.tables * 128 * c.grain, grain: c.grain, gtes: 128,
				rgdOff: 8, gdOff: 8, overHead: 8, lineEnds: goodLineEnds, unclean: true}
			codes := func(ds []defect) (out []Code) {
				for _, d := range ds {
					out = append(out, d.code)
				}
				return out
			}
			if got := codes(h.defects(c.size)); c.code == "" && len(got) > 0 || c.code != "" && !slices.Equal(got, []Code{c.code}) {
				t.Fatalf("defects %v, want %q", got, c.code)
			}
			path := t.TempDir()
			d, err := fsx.OpenRoot(path)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			text := "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"twoGbMaxExtentSparse\"\nRW 128 SPARSE \"disk-s001.vmdk\"\n"
			extent := filepath.Join(path, "disk-s001.vmdk")
			if err := errors.Join(writeFile(d, "disk.vmdk", []byte(text)), writeFile(d, "disk-s001.vmdk", h.encode())); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(extent, c.size); errors.Is(err, unix.EFBIG) || errors.Is(err, unix.EINVAL) {
				return // this file system has no file as long
			} else if err != nil {
				t.Fatal(err)
			}
			use := allocated(func() { openAndRecover(t, d, c.code) })
			if most := uint64(8 * maxDirectoryBytes); use > most {
				t.Errorf("it cost %d MiB of memory, more than %d", use>>20, most>>20)
			}
		})
	}
}

func openAndRecover(t *testing.T, d fsx.Dir, want Code) {
	t.Helper()
	l, err := Open(d, "disk.vmdk", Options{ReadWrite: true})
	if want != "" {
		if !errors.Is(err, fault.Damaged) {
			t.Errorf("open: %v", err)
		}
		rep, err := Check(context.Background(), d, "disk.vmdk")
		if err != nil || len(rep.Problems) != 1 || rep.Problems[0].Code != want {
			t.Errorf("check: %v %v, want %s", rep.Problems, err, want)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.Recover(), l.Close()); err != nil {
		t.Error(err)
	}
}

// allocated is how many bytes f allocates.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}
