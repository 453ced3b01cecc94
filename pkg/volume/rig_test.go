package volume_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/sys"
	"github.com/vmdk-csi/vmdk-csi/pkg/datastore"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/lease"
	"github.com/vmdk-csi/vmdk-csi/pkg/volume"
)

const mib = 1 << 20

// place is a directory with a datastore, as several hosts see it.
type place struct{ path string }

// host opens the datastore as one host does, without byte locks: what keeps hosts apart must be the manifests.
func (p place) host(t *testing.T, name, boot string) *volume.Volumes {
	t.Helper()
	return p.open(t, name, boot, fsx.WithoutLocks)
}

// locking is host with byte locks, which creation needs where several hosts may make one disk.
func (p place) locking(t *testing.T, name string) *volume.Volumes {
	t.Helper()
	return p.open(t, name, "1", func(d fsx.Dir) fsx.Dir { return d })
}

// engine is host "a" with an engine of its own.
func (p place) engine(t *testing.T, e volume.Engine) *volume.Volumes {
	t.Helper()
	return p.with(t, "a", "1", fsx.WithoutLocks, e)
}

func (p place) open(t *testing.T, name, boot string, as func(fsx.Dir) fsx.Dir) *volume.Volumes {
	t.Helper()
	return p.with(t, name, boot, as, volume.VMDK{})
}

func (p place) with(t *testing.T, name, boot string, as func(fsx.Dir) fsx.Dir, e volume.Engine) *volume.Volumes {
	t.Helper()
	root, err := fsx.OpenRoot(p.path)
	if err != nil {
		t.Fatal(err)
	}
	s, err := datastore.Open(as(root), datastore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return volume.New(volume.Config{Store: s, Name: "store", Host: lease.Identity{Host: name, BootID: boot}, Engine: e})
}

// tmpfs is a place of that size that no mount table shows.
func tmpfs(t *testing.T, size int64) (place, *os.File) {
	t.Helper()
	m, err := sys.DetachedMount("tmpfs", []sys.MountParam{{Key: "size", Value: fmt.Sprint(size)}}, 0)
	if err != nil {
		t.Skipf("a tmpfs of our own needs CAP_SYS_ADMIN: %v", err)
	}
	t.Cleanup(func() { m.Close() })
	fd, err := sys.Fd(m)
	if err != nil {
		t.Fatal(err)
	}
	return place{fmt.Sprintf("/proc/self/fd/%d", fd)}, m
}

func readOnly(t *testing.T, m *os.File, ro bool) {
	t.Helper()
	fd, err := sys.Fd(m)
	if err != nil {
		t.Fatal(err)
	}
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if !ro {
		attr = &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, attr); err != nil {
		t.Fatal(err)
	}
	runtime.KeepAlive(m)
}

// fill writes until nothing fits any more.
func (p place) fill(t *testing.T) {
	t.Helper()
	f, err := os.Create(filepath.Join(p.path, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for n := 64 << 10; n >= 1; {
		if _, err := f.Write(make([]byte, n)); err != nil {
			n /= 2
		}
	}
}

func (p place) files(t *testing.T) string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(p.path+"/", func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() && e.Name() != "filler" && e.Name() != "datastore.json" {
			names = append(names, strings.TrimPrefix(path, p.path+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(names, " ")
}

func spec(name string) host.DiskSpec {
	return host.DiskSpec{Name: name, Size: 4 * mib}
}

func create(t *testing.T, v *volume.Volumes, name string) host.Disk {
	t.Helper()
	d, err := v.Create(t.Context(), spec(name))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func acquire(t *testing.T, v *volume.Volumes, id string) *volume.Opened {
	t.Helper()
	o, err := v.OpenForAttach(t.Context(), id, false)
	if err != nil {
		t.Fatal(err)
	}
	o.Dir.Close()
	return o
}

func wantKind(t *testing.T, err error, want fault.Kind, what string) {
	t.Helper()
	if got := fault.KindOf(err); got != want {
		t.Fatalf("%s: %v: kind %q, want %q", what, err, got, want)
	}
}
