package node

import (
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// The kubelet asks for the usage of a raw block volume at a node of its own.
func TestSameDevice(t *testing.T) {
	dir := t.TempDir()
	node := func(name string, mode uint32, minor uint32) string {
		p := filepath.Join(dir, name)
		if err := unix.Mknod(p, mode|0o600, int(unix.Mkdev(7, minor))); err != nil {
			t.Fatal(err)
		}
		return p
	}
	device := node("device", unix.S_IFBLK, 901)
	for name, want := range map[string]bool{
		node("kubelet", unix.S_IFBLK, 901):   true,
		node("another", unix.S_IFBLK, 902):   false,
		node("a-file", unix.S_IFREG, 0):      false,
		filepath.Join(dir, "not-there"):      false,
		node("character", unix.S_IFCHR, 901): false,
	} {
		if got := sameDevice(name, device); got != want {
			t.Errorf("%s: %v", filepath.Base(name), got)
		}
	}
}
