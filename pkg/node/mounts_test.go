package node

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A mount is found whatever the orchestrator's paths hold.
func TestMountIsFoundAt(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root: nothing can be mounted")
	}
	for _, name := range []string{"plain", "a blank", "a\ttab", "new\nline", `back\slash`, `\040`, "#", "ü"} {
		path := filepath.Join(t.TempDir(), name)
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		if _, mounted, err := NewKernelMounts().At(path); err != nil || mounted {
			t.Errorf("%q before: mounted %v, %v", name, mounted, err)
		}
		if err := unix.Mount("here", path, "tmpfs", 0, "size=64k"); err != nil {
			t.Fatal(err)
		}
		m, mounted, err := NewKernelMounts().At(path)
		if err != nil || !mounted || m.FSType != "tmpfs" {
			t.Errorf("%q: %+v, mounted %v, %v", name, m, mounted, err)
		}
		if err := NewKernelMounts().Unmount(path); err != nil {
			t.Error(err)
		}
	}
}
