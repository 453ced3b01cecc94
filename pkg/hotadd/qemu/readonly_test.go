package qemu

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/hotadd"
	"github.com/vmdk-csi/vmdk-csi/pkg/hotadd/hotaddtest"
)

// sides is a disk whose user is QEMU itself: it writes through the device, and reads through an export of what the device uses.
type sides struct {
	*rig
	bus *Bus
}

func (s sides) Attach(readOnly bool) error {
	s.mu.Lock()
	s.readOnly["a"] = readOnly
	s.mu.Unlock()
	_, err := s.bus.Attach(s.t.Context(), hotadd.Disk{ID: "a"})
	return err
}

func (s sides) Detach() error { return s.bus.Detach(s.t.Context(), "a") }

func (s sides) Write(fill byte) error {
	s.do(s.bus, "human-monitor-command", map[string]any{
		"command-line": fmt.Sprintf(`qemu-io -d %s "write -P %d 0 64k"`, deviceID(hotadd.Disk{ID: "a"}), fill)})
	return nil
}

func (s sides) Holds(fill byte) (bool, error) {
	socket := filepath.Join(s.dir, "nbd")
	s.do(s.bus, "nbd-server-start", map[string]any{"addr": map[string]any{"type": "unix", "data": map[string]any{"path": socket}}})
	defer s.do(s.bus, "nbd-server-stop", map[string]any{})
	s.do(s.bus, "block-export-add", map[string]any{"type": "nbd", "id": "x", "name": "x", "node-name": nodeName("a")})
	out, err := exec.CommandContext(s.t.Context(), "qemu-io", "-r", "-f", "raw", "-c", fmt.Sprintf("read -P %d 0 64k", fill),
		"nbd+unix:///x?socket="+socket).CombinedOutput()
	text := string(out)
	switch {
	case strings.Contains(text, "Pattern verification failed"):
		return false, nil
	case err != nil || !strings.Contains(text, "read 65536/65536"):
		return false, fmt.Errorf("qemu-io: %w: %s", err, text)
	}
	return true, nil
}

func (s sides) Files() (map[string]string, error) {
	names, err := filepath.Glob(filepath.Join(s.dir, "*.vmdk"))
	all := map[string]string{}
	for _, n := range names {
		b, err := os.ReadFile(n)
		if err != nil {
			return nil, err
		}
		all[filepath.Base(n)] = fmt.Sprintf("%x", sha256.Sum256(b))
	}
	return all, err
}

func TestReadOnlyConforms(t *testing.T) {
	r := newRig(t, "virtio-scsi-pci")
	hotaddtest.ReadOnly(t, sides{r, r.open()})
}
