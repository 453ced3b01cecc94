package node

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/stage"
)

// copyOf is a loop device over a copy of what is behind dev now, in a file that is larger by more bytes.
func copyOf(t *testing.T, dev string, more int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	// The file is what a power cut would leave: what the file system has not written yet is not in it.
	command(t, "cp", command(t, "losetup", "--noheadings", "--output", "BACK-FILE", dev), path)
	if more > 0 {
		command(t, "truncate", fmt.Sprint("--size=+", more), path)
	}
	out := command(t, "losetup", "--find", "--show", path)
	t.Cleanup(func() { _ = exec.Command("losetup", "--detach", out).Run() }) // gone already, or goes with its last user
	return out
}

// stagedOn mounts what is on a device as Stage does.
func stagedOn(t *testing.T, dev string, v stage.Volume, diskUUID string) string {
	t.Helper()
	dir := t.TempDir()
	s, err := New(Config{JournalDir: filepath.Join(dir, "journal"), Mounts: NewKernelMounts(), FileSystems: Tools{}})
	if err != nil {
		t.Fatal(err)
	}
	v.ID, v.Mode, v.StagingPath = "vd-x", stage.Mount, filepath.Join(dir, "mnt")
	t.Cleanup(func() {
		eventually(t, v.StagingPath+" is unmounted", func() bool {
			_, there, err := s.Mounts.At(v.StagingPath)
			return err == nil && !there || unix.Unmount(v.StagingPath, 0) == nil
		})
	})
	for range 2 { // it may be repeated
		if err := s.ensureMounted(t.Context(), &record{Volume: v, UUID: diskUUID}, Device{Path: dev}, 1); err != nil {
			t.Fatal(err)
		}
	}
	return v.StagingPath
}

func size(t *testing.T, at string) int64 {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(at, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Blocks) * st.Bsize
}

func writeSync(t *testing.T, path string, b []byte) {
	t.Helper()
	f, err := os.Create(path)
	if err == nil {
		_, err = f.Write(b)
	}
	if err == nil {
		err = errors.Join(f.Sync(), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Copies of a file system in use, and a copy of a copy, are mounted beside it, with what was fsynced before, and as large
// as their disks. Staging again changes nothing.
func TestMountBesideItsSource(t *testing.T) {
	needRoot(t)
	for _, fsType := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(fsType, func(t *testing.T) {
			v := stage.Volume{FSType: fsType}
			dev := loopDevice(t, t.TempDir(), 320<<20)
			at := stagedOn(t, dev, v, "source")
			files := map[string][]byte{"first": bytes.Repeat([]byte("1"), 1<<20), "second": []byte("in the log only")}
			for name, content := range files {
				writeSync(t, filepath.Join(at, name), content)
			}
			v.Copy = true
			crashed := copyOf(t, dev, 0)
			for n, more := range []int64{0, 128 << 20} {
				dev = copyOf(t, dev, more)
				before := size(t, at)
				disk := strings.Repeat("copy", n+1)
				at = stagedOn(t, dev, v, disk)
				for name, content := range files {
					if b, err := os.ReadFile(filepath.Join(at, name)); err != nil || !bytes.Equal(b, content) {
						t.Fatalf("copy %d: %s: %d bytes, %v", n, name, len(b), err)
					}
				}
				if grew := size(t, at) - before; (grew > 64<<20) != (more > 0) {
					t.Errorf("copy %d: the disk grew by %d, the file system by %d", n, more, grew)
				}
				if fsType == "btrfs" {
					if got := blkidUUID(t, dev); got != uuidText(ownFSID(disk)) {
						t.Errorf("copy %d has fsid %s", n, got)
					}
				}
				writeSync(t, filepath.Join(at, "own"), []byte{byte(n)})
			}
			// A read-only mount replays its journal: into a device that keeps the writes for itself, as that of a read-only
			// attachment does. Twice beside each other, as two nodes of one kernel have it.
			v.ReadOnly = true
			for range 2 {
				ro := stagedOn(t, copyOf(t, crashed, 0), v, "read")
				if b, err := os.ReadFile(filepath.Join(ro, "second")); err != nil || !bytes.Equal(b, files["second"]) {
					t.Errorf("read-only: %q, %v", b, err)
				}
				if err := os.WriteFile(filepath.Join(ro, "x"), nil, 0o600); !errors.Is(err, unix.EROFS) {
					t.Errorf("a write to a read-only mount: %v", err)
				}
			}
		})
	}
}

func blkidUUID(t *testing.T, dev string) string {
	t.Helper()
	return command(t, "blkid", "--probe", "--match-tag", "UUID", "--output", "value", dev)
}

// What nobody calls a copy gets another fsid only where its like is mounted already.
func TestBtrfsOfUnknownOrigin(t *testing.T) {
	needRoot(t)
	dev := loopDevice(t, t.TempDir(), 320<<20)
	if err := (Tools{}).Make(t.Context(), dev, "btrfs"); err != nil {
		t.Fatal(err)
	}
	was := blkidUUID(t, dev)
	other := copyOf(t, dev, 0)
	v := stage.Volume{FSType: "btrfs"}
	stagedOn(t, dev, v, "a")
	if got := blkidUUID(t, dev); got != was {
		t.Errorf("fsid %s became %s", was, got)
	}
	stagedOn(t, other, v, "b")
	if got := blkidUUID(t, other); got == was {
		t.Error("two mounts of one fsid")
	}
	if out := command(t, "btrfs", "check", "--readonly", "--force", other); !strings.Contains(out, "no error found") {
		t.Error(out)
	}
}

// An expansion on a node, mounted.
func TestGrowMounted(t *testing.T) {
	needRoot(t)
	for _, fsType := range []string{"xfs", "btrfs"} {
		t.Run(fsType, func(t *testing.T) {
			dir := t.TempDir()
			at := mounted(t, dir, fsType)
			m, _, err := NewKernelMounts().At(at)
			if err != nil {
				t.Fatal(err)
			}
			before := size(t, at)
			if err := os.Truncate(filepath.Join(dir, "image"), 640<<20); err != nil {
				t.Fatal(err)
			}
			command(t, "losetup", "--set-capacity", m.Source)
			for range 2 {
				if err := (Tools{}).Grow(t.Context(), m.Source, at, fsType); err != nil {
					t.Fatal(err)
				}
			}
			if grew := size(t, at) - before; grew < 200<<20 {
				t.Errorf("it grew by %d", grew)
			}
		})
	}
}

// A btrfs below the size to which the kernel grows any is staged all the same, also in a disk that is larger.
func TestSmallBtrfs(t *testing.T) {
	needRoot(t)
	v := stage.Volume{FSType: "btrfs"}
	dev := loopDevice(t, t.TempDir(), 128<<20)
	at := stagedOn(t, dev, v, "small")
	v.Copy = true
	larger := copyOf(t, dev, 64<<20)
	before := size(t, stagedOn(t, larger, v, "larger"))
	if now := size(t, at); now != before {
		t.Errorf("%d bytes, its source %d", before, now)
	}
	if err := (Tools{}).Grow(t.Context(), larger, at, "btrfs"); !errors.Is(err, fault.Precondition) {
		t.Errorf("grow: %v", err)
	}
}
