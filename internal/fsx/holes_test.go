package fsx_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/sys"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// ramfs is a directory of a file system without fallocate(2), as NFS before 4.2 has none.
func ramfs(t *testing.T) fsx.Dir {
	t.Helper()
	m, err := sys.DetachedMount("ramfs", nil, 0)
	if err != nil {
		t.Skipf("a ramfs of our own needs CAP_SYS_ADMIN: %v", err)
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

// Where nothing can be punched nothing is written instead: zeros would take the room that is to be given back.
func TestPunchIsRefused(t *testing.T) {
	f := open(t, ramfs(t), "f", fsx.ReadWrite|fsx.Create)
	data, got := bytes.Repeat([]byte{7}, 8192), make([]byte, 8192)
	if _, err := f.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Punch(0, 4096); fault.KindOf(err) != fault.Unsupported {
		t.Fatalf("Punch: %v", err)
	}
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("a refused Punch changed the file, or %v", err)
	}
	if err := f.Zero(0, 4096); err != nil {
		t.Fatalf("Zero: %v", err)
	}
	clear(data[:4096])
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("Zero did not zero, or %v", err)
	}
}
