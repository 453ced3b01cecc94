package fsx_test

import (
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

func open(t *testing.T, d fsx.Dir, name string, flag fsx.Flag) fsx.File {
	t.Helper()
	f, err := d.Open(name, flag)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func root(t *testing.T) (fsx.Dir, string) {
	t.Helper()
	path := t.TempDir()
	d, err := fsx.OpenRoot(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d, path
}

// qemuDisk is a flat VMDK made by qemu and its extent opened by us.
func qemuDisk(t *testing.T) (extent fsx.File, descriptor string) {
	t.Helper()
	for _, tool := range []string{"qemu-img", "qemu-io"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed (apt-get install qemu-utils)", tool)
		}
	}
	d, path := root(t)
	descriptor = filepath.Join(path, "disk.vmdk")
	out, err := exec.Command("qemu-img", "create", "-f", "vmdk", "-o", "subformat=monolithicFlat", descriptor, "1M").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return open(t, d, filepath.Base(extentOf(descriptor)), fsx.ReadWrite), descriptor
}

func extentOf(descriptor string) string {
	return strings.TrimSuffix(descriptor, ".vmdk") + "-flat.vmdk"
}

// TestQemuRespectsLocks: what qemu may do to a file that we hold, mode by mode.
func TestQemuRespectsLocks(t *testing.T) {
	f, image := qemuDisk(t)
	to := filepath.Join(t.TempDir(), "out")
	commands := map[string][]string{
		"info":          {"qemu-img", "info", "-f", "vmdk", image},
		"info -U":       {"qemu-img", "info", "-U", "-f", "vmdk", image},
		"convert":       {"qemu-img", "convert", "-f", "vmdk", "-O", "raw", image, to},
		"convert -U":    {"qemu-img", "convert", "-U", "-f", "vmdk", "-O", "raw", image, to},
		"qemu-io write": {"qemu-io", "-f", "vmdk", "-c", "write -P 7 0 512", image},
		// A raw image is a filter to qemu that shares everything its user shares: only writing conflicts.
		"raw write": {"qemu-io", "-f", "raw", "-c", "write -P 7 0 512", extentOf(image)},
	}
	all := map[string]bool{}
	for name := range commands {
		all[name] = true
	}
	reads := map[string]bool{"info": true, "info -U": true, "convert": true, "convert -U": true}
	for _, c := range []struct {
		name    string
		lock    fsx.LockMode
		allowed map[string]bool
	}{
		{"none", fsx.Unlock, all},
		{"read", fsx.LockRead, reads},
		{"write", fsx.LockWrite, map[string]bool{"info -U": true, "convert -U": true}},
		{"none again", fsx.Unlock, all},
	} {
		if err := f.Lock(c.lock); err != nil {
			t.Fatal(c.name, err)
		}
		for name, argv := range commands {
			out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
			if (err == nil) != c.allowed[name] {
				t.Errorf("lock %s: %s: allowed %v, want %v: %s", c.name, name, err == nil, c.allowed[name], out)
			}
		}
	}
}

// TestRespectQemusLocks: what we may do to a file that qemu holds.
func TestRespectQemusLocks(t *testing.T) {
	for _, c := range []struct {
		name        string
		args        []string
		read, write bool
	}{
		{"writer", nil, false, false},
		{"reader", []string{"-r"}, true, false},
		{"reader sharing all", []string{"-r", "-U"}, true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, image := qemuDisk(t)
			cmd := exec.Command("qemu-io", append(c.args, "-f", "vmdk", image)...)
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { in.Close(); cmd.Wait() }()
			// The answer to a first command proves that the image is open.
			if _, err := in.Write([]byte("read 0 512\n")); err != nil {
				t.Fatal(err)
			}
			if _, err := out.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			for mode, want := range map[fsx.LockMode]bool{fsx.LockRead: c.read, fsx.LockWrite: c.write} {
				err := f.Lock(mode)
				if (err == nil) != want || err != nil && !errors.Is(err, fault.InUse) {
					t.Errorf("mode %v: %v, want success %v", mode, err, want)
				}
				if err := f.Lock(fsx.Unlock); err != nil {
					t.Error(err)
				}
			}
		})
	}
}
