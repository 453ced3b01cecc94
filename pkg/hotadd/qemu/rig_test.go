package qemu

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/hotadd"
)

// rig is a QEMU whose machine is paused before its first instruction: it has buses and no guest.
type rig struct {
	t      *testing.T
	dir    string
	config Config

	mu       sync.Mutex
	readOnly map[string]bool
}

func newRig(t *testing.T, controller string) *rig {
	t.Helper()
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("qemu-system-x86_64 is not installed: hack/setup.sh installs it")
	}
	dir, err := os.MkdirTemp("", "qmp") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := &rig{t: t, dir: dir, readOnly: map[string]bool{}}
	r.config = Config{Socket: filepath.Join(dir, "qmp"), Files: r.file, Scratch: dir}
	args := []string{"-M", "pc", "-accel", "tcg", "-m", "32", "-S", "-nodefaults", "-no-user-config", "-display", "none",
		"-qmp", "unix:" + r.config.Socket + ",server=on,wait=off"}
	for c := range hotadd.Controllers {
		args = append(args, "-device", fmt.Sprintf("%s,id=scsi%d", controller, c))
	}
	cmd := exec.Command(qemu, args...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for end := time.Now().Add(20 * time.Second); ; {
		_, err := Open(t.Context(), r.config)
		if err == nil {
			return r
		}
		if time.Now().After(end) {
			t.Fatalf("QEMU did not start: %v", err)
		}
	}
}

func (r *rig) image(id string) string { return filepath.Join(r.dir, id+".vmdk") }

// file makes the disk's image when it is asked for the first time, unless the id says that it is missing.
func (r *rig) file(_ context.Context, d hotadd.Disk) (File, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := File{Path: r.image(d.ID), ReadOnly: r.readOnly[d.ID]}
	if _, err := os.Stat(f.Path); err == nil || d.ID == "missing" {
		return f, nil
	}
	// A flat image is two small files, where qemu-img would be a process for each disk. QEMU 7.2 needs the comment before
	// the extents: without it, it fails to make the disk writable (Failed to get "resize" lock).
	flat := d.ID + "-flat.vmdk"
	text := fmt.Sprintf("# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\n"+
		"# Extent description\nRW 2048 FLAT \"%s\" 0\n\n#DDB\nddb.adapterType = \"lsilogic\"\n", flat)
	if err := os.WriteFile(filepath.Join(r.dir, flat), make([]byte, 1<<20), 0o600); err != nil {
		return File{}, err
	}
	return f, os.WriteFile(f.Path, []byte(text), 0o600)
}

func (r *rig) open() *Bus {
	r.t.Helper()
	b, err := Open(r.t.Context(), r.config)
	if err != nil {
		r.t.Fatal(err)
	}
	return b
}

// do executes a command on the monitor, as another client of it.
func (r *rig) do(b *Bus, command string, arguments map[string]any) {
	r.t.Helper()
	err := b.with(r.t.Context(), func(ctx context.Context, m *monitor) error {
		_, err := m.call(ctx, command, arguments)
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
}
