package chain_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/sys"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// sharingDir is a directory of a file system whose files can share blocks: an XFS on a loop device, mounted for this test alone.
func sharingDir(t *testing.T) fsx.Dir {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("a loop device and a mount need root")
	}
	image := filepath.Join(t.TempDir(), "xfs")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 512<<20); err != nil {
		t.Fatal(err)
	}
	run := func(name string, args ...string) string {
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	run("mkfs.xfs", "-q", "-m", "reflink=1", image)
	dev := run("losetup", "--find", "--show", image)
	t.Cleanup(func() { run("losetup", "-d", dev) })
	m, err := sys.DetachedMount("xfs", []sys.MountParam{{Key: "source", Value: dev}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	fd, err := sys.Fd(m)
	if err != nil {
		t.Fatal(err)
	}
	d, err := fsx.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

const shareSize = 64 << 20

// shareChain is a base and a child, each with 16 MiB of data of its own.
func shareChain(t *testing.T, d fsx.Dir, base vmdk.Type) ([]chain.Ref, []byte) {
	t.Helper()
	if _, err := vmdk.Create(context.Background(), d, "disk.vmdk", vmdk.CreateParams{Type: base, Capacity: shareSize}); err != nil {
		t.Fatal(err)
	}
	refs, content := []chain.Ref{{Name: "disk.vmdk"}}, make([]byte, shareSize)
	c, err := chain.Open(d, refs, chain.Options{})
	if err != nil {
		t.Fatal(err)
	}
	write := func(off int64, fill byte) {
		for at := off; at < off+16<<20; at += 1 << 20 {
			p := bytes.Repeat([]byte{fill, byte(at >> 20)}, 1<<19)
			copy(content[at:], p)
			if _, err := c.WriteAt(p, at); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(0, 0x11)
	if err := c.Snapshot(context.Background(), chain.SnapshotParams{Child: "disk-000001.vmdk"}); err != nil {
		t.Fatal(err)
	}
	write(8<<20, 0x22)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	return append(refs, chain.Ref{Name: "disk-000001.vmdk"}), content
}

func mustRead(t *testing.T, d fsx.Dir, refs []chain.Ref, want []byte) {
	t.Helper()
	c, err := chain.Open(d, refs, chain.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, c.Size())
	if _, err := c.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("the content is not what was written, or %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if rep, err := chain.Check(context.Background(), d, refs); err != nil || len(rep.Problems) > 0 {
		t.Fatalf("%v %v", rep.Problems, err)
	}
}

func used(t *testing.T, d fsx.Dir) int64 {
	t.Helper()
	if err := d.Sync(); err != nil {
		t.Fatal(err)
	}
	total, free, err := d.Space()
	if err != nil {
		t.Fatal(err)
	}
	return total - free
}

// TestSharedBlocks: where files can share blocks, a full copy and a merge take no space for data, and later writes to one disk
// do not show in the other.
func TestSharedBlocks(t *testing.T) {
	for _, base := range []vmdk.Type{vmdk.MonolithicFlat, vmdk.TwoGbMaxExtentSparse} {
		for _, to := range []vmdk.Type{vmdk.MonolithicFlat, vmdk.MonolithicSparse} {
			t.Run(fmt.Sprintf("copy of %s to %s", base, to), func(t *testing.T) {
				d := sharingDir(t)
				refs, content := shareChain(t, d, base)
				if _, err := vmdk.Create(t.Context(), d, "copy.vmdk", vmdk.CreateParams{Type: to, Capacity: shareSize}); err != nil {
					t.Fatal(err)
				}
				src, err := chain.Open(d, refs, chain.Options{ReadOnly: true})
				if err != nil {
					t.Fatal(err)
				}
				dst, err := chain.Open(d, []chain.Ref{{Name: "copy.vmdk"}}, chain.Options{})
				if err != nil {
					t.Fatal(err)
				}
				before := used(t, d)
				if err := dst.ShareFrom(src, 0, shareSize); err != nil {
					t.Fatal(err)
				}
				if err := errors.Join(dst.Flush(), src.Close()); err != nil {
					t.Fatal(err)
				}
				if more := used(t, d) - before; more > 4<<20 {
					t.Errorf("the copy took %d MiB", more>>20)
				}
				copied := bytes.Clone(content)
				if _, err := dst.WriteAt(bytes.Repeat([]byte{0x33}, 4096), 9<<20); err != nil {
					t.Fatal(err)
				}
				copy(copied[9<<20:], bytes.Repeat([]byte{0x33}, 4096))
				if err := dst.Close(); err != nil {
					t.Fatal(err)
				}
				mustRead(t, d, refs, content)
				mustRead(t, d, []chain.Ref{{Name: "copy.vmdk"}}, copied)
			})
		}
		t.Run("merge into "+string(base), func(t *testing.T) {
			d := sharingDir(t)
			refs, content := shareChain(t, d, base)
			c, err := chain.Open(d, refs, chain.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Snapshot(t.Context(), chain.SnapshotParams{Child: "disk-000002.vmdk"}); err != nil {
				t.Fatal(err)
			}
			before := used(t, d)
			var most int64
			err = c.Merge(t.Context(), chain.MergeParams{Lower: 0, Direction: chain.Down, Progress: func(int64, int64) { most = max(most, used(t, d)-before) }})
			if err != nil {
				t.Fatal(err)
			}
			if most > 4<<20 {
				t.Errorf("the merge took %d MiB", most>>20)
			}
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
			mustRead(t, d, []chain.Ref{{Name: "disk.vmdk"}, {Name: "disk-000002.vmdk"}}, content)
		})
	}
}

// TestNothingIsShared: elsewhere nothing is half-made.
func TestNothingIsShared(t *testing.T) {
	d, err := fsx.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	refs, content := shareChain(t, d, vmdk.TwoGbMaxExtentSparse)
	src, err := chain.Open(d, refs, chain.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	f, err := d.Open("raw", fsx.ReadWrite|fsx.Create)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(shareSize); err != nil {
		t.Fatal(err)
	}
	switch err := src.ShareTo(f, 0, shareSize); fault.KindOf(err) {
	case fault.Unsupported:
		if _, _, err := f.SeekData(0); err == nil {
			t.Error("something was written")
		}
	case "": // the machine's own file system can
		got := make([]byte, shareSize)
		if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, content) {
			t.Errorf("other content, or %v", err)
		}
	default:
		t.Error(err)
	}
}
