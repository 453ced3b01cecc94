package node

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A first mkfs met a full datastore: what it wrote is taken away without any room.
func TestClearOnAFullFileSystem(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: it mounts a small file system")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	const size = 64*mib + 512 // the last MiB does not begin at a block
	disk := filepath.Join(dir, "disk")
	f, err := os.Create(disk)
	if err != nil {
		t.Fatal(err)
	}
	words := []byte("half a superblock")
	for _, off := range []int64{1024, 64*mib - 100, size - int64(len(words))} {
		if _, err := f.WriteAt(words, off); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "fill"), bytes.Repeat([]byte{1}, 4*mib), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the file system is not full: %v", err)
	}
	if zero, err := endsAreZero(disk); err != nil || zero {
		t.Fatalf("the disk is empty before: %v, %v", zero, err)
	}
	if err := (Tools{}).Clear(disk); err != nil {
		t.Fatal(err)
	}
	if zero, err := endsAreZero(disk); err != nil || !zero {
		t.Fatalf("the disk is not empty: %v, %v", zero, err)
	}
}
