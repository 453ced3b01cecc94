package guest

import (
	"bufio"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// sound checks a detached disk outside: the format by this project's checker and by qemu-img, the content as both read it,
// the file system by its own tool, and what the guest had written.
func (m *machine) sound(t *testing.T, v *volume) {
	t.Helper()
	dir, err := fsx.OpenRoot(m.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	report, err := chain.Check(t.Context(), dir, v.chain)
	if err != nil || !report.Sound() {
		t.Fatalf("check: %v %v", report.Problems, err)
	}
	for _, p := range report.Problems {
		t.Log(p)
	}
	c, err := chain.Open(dir, v.chain, chain.Options{ReadOnly: true, Locks: true})
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := m.path("ours.raw"), m.path("theirs.raw")
	defer os.Remove(ours)
	defer os.Remove(theirs)
	if err := copySparse(ours, c); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	tool(t, "qemu-img", "convert", "-O", "raw", m.path(v.disk.file), theirs)
	if a, b := fileDigest(t, ours), fileDigest(t, theirs); a != b {
		t.Fatalf("this project and qemu-img read the disk differently: %s %s", a, b)
	}
	m.content(t, v, ours)
}

// content finds what the guest wrote in the disk's raw content.
func (m *machine) content(t *testing.T, v *volume, raw string) {
	t.Helper()
	got := m.path("got")
	defer os.Remove(got)
	switch v.FSType {
	case "":
		tool(t, "cp", "--sparse=always", raw, got)
		if err := os.Truncate(got, v.file.Size); err != nil {
			t.Fatal(err)
		}
	case "ext4":
		tool(t, "e2fsck", "-fn", raw)
		tool(t, "debugfs", "-R", fmt.Sprintf("dump /%s %s", filepath.Base(v.file.Path), got), raw)
	case "xfs":
		offset := int64(0)
		if v.Partition == "gpt" {
			offset = mib
		}
		part := m.path("partition.raw")
		defer os.Remove(part)
		tool(t, "dd", "if="+raw, "of="+part, "bs=1M", fmt.Sprintf("skip=%d", offset/mib), "conv=sparse", "status=none")
		tool(t, "xfs_repair", "-n", part)
		return // there is no tool that reads a file without a mount: the guest reads it again
	}
	if d := fileDigest(t, got); d != v.file.Digest() {
		t.Errorf("the file is %s, and was written as %s", d, v.file.Digest())
	}
}

func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func fileDigest(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

func copySparse(path string, from interface {
	io.ReaderAt
	Size() int64
}) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	buf, zero := make([]byte, mib), make([]byte, mib)
	for off := int64(0); off < from.Size(); off += mib {
		n := min(mib, from.Size()-off)
		if _, err := from.ReadAt(buf[:n], off); err != nil {
			return err
		}
		if string(buf[:n]) == string(zero[:n]) {
			continue
		}
		if _, err := f.WriteAt(buf[:n], off); err != nil {
			return err
		}
	}
	return f.Truncate(from.Size())
}

// digest is of all the disk's files.
func (m *machine) digest(t *testing.T, v *volume) (all string) {
	t.Helper()
	names, err := filepath.Glob(m.path(strings.TrimSuffix(v.chain[0].Name, ".vmdk") + "*"))
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	for _, n := range names {
		all += filepath.Base(n) + " " + fileDigest(t, n) + "\n"
	}
	return all
}

func (m *machine) redoLogs(t *testing.T) []string {
	t.Helper()
	left, err := filepath.Glob(m.path("*.redo"))
	if err != nil {
		t.Fatal(err)
	}
	return left
}

// qmp executes a command on the machine's monitor, as somebody else than the bus.
func (m *machine) qmp(t *testing.T, command string, arguments map[string]any) json.RawMessage {
	t.Helper()
	conn, err := net.Dial("unix", m.path("qmp"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	lines := bufio.NewReader(conn)
	enc := json.NewEncoder(conn)
	var answer struct {
		Return, Error json.RawMessage
		ID            int
	}
	for id, c := range []map[string]any{{"execute": "qmp_capabilities", "id": 1}, {"execute": command, "arguments": arguments, "id": 2}} {
		if err := enc.Encode(c); err != nil {
			t.Fatal(err)
		}
		for answer.ID != id+1 {
			line, err := lines.ReadBytes('\n')
			if err == nil {
				err = json.Unmarshal(line, &answer)
			}
			if err != nil || answer.Error != nil {
				t.Fatalf("%s: %s %v", command, line, err)
			}
		}
	}
	return answer.Return
}

// pullOut removes the disk's device, whatever the guest does with it. Its block node stays.
func (m *machine) pullOut(t *testing.T, v *volume) {
	t.Helper()
	m.qmp(t, "device_del", map[string]any{"id": "vmdkcsi." + v.disk.id + "." + v.uuid})
}

// written is how much the disk's device has written.
func (m *machine) written(t *testing.T, v *volume) int64 {
	t.Helper()
	var stats []struct {
		Qdev  string
		Stats struct {
			Bytes int64 `json:"wr_bytes"`
		}
	}
	if err := json.Unmarshal(m.qmp(t, "query-blockstats", map[string]any{}), &stats); err != nil {
		t.Fatal(err)
	}
	for _, s := range stats {
		if strings.Contains(s.Qdev, v.disk.id) {
			return s.Stats.Bytes
		}
	}
	t.Fatalf("disk %s has no statistics: %+v", v.disk.id, stats)
	return 0
}
