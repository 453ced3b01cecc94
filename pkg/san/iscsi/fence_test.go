package iscsi_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/iscsi"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/reserve"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/scsi"
)

const fenceRange = 512 << 10

// TestFencedWriter: a node is stopped in the middle of writing, fenced, and what it wrote is given to another node. When it goes on, its
// late writes fail, and the other's data stays whole.
func TestFencedWriter(t *testing.T) {
	rounds := 50
	if testing.Short() {
		rounds = 5
	}
	g := newTgt(t, 4<<20)
	session, server := g.open(g.Config())
	_, two := g.open(g.Config())
	const keyServer, keyOne, keyTwo = 0x5eefed, 0x1001, 0x1002
	if err := reserve.Own(t.Context(), server, keyServer); err != nil {
		t.Fatal(err)
	}
	if err := two.Register(t.Context(), keyTwo, true); err != nil {
		t.Fatal(err)
	}
	kept := 0
	for round := range rounds {
		if !fenceOne(t, g, session, server, two, keyServer, keyOne, byte(0x80+round)) {
			return
		}
		kept++
	}
	t.Logf("fenced %d of %d", kept, rounds)
}

func fenceOne(t *testing.T, g *tgt, session *iscsi.Session, server, two *scsi.Unit, keyServer, keyOne reserve.Key, fill byte) bool {
	t.Helper()
	text, err := json.Marshal(nodeConfig{g.Config(), 0x10})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), nodeVariable+"="+string(text))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	defer time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() }).Stop()
	lines := bufio.NewReader(out)
	for range 3 {
		if line, err := lines.ReadString('\n'); err != nil || line != "written\n" {
			t.Fatalf("the node says %q (%v)", line, err)
		}
	}
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	fencer := reserve.Fencer{Unit: server, Key: keyServer, Reset: session.ResetUnit, MaxIO: 10 * time.Second}
	if err := fencer.Fence(t.Context(), "one", uint64(keyOne)); err != nil {
		t.Fatal(err)
	}
	mine := bytes.Repeat([]byte{fill}, fenceRange)
	if _, err := two.WriteAt(mine, 0); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(lines)
	if err != nil {
		t.Fatal(err)
	}
	if last := strings.TrimSpace(string(rest)); !strings.HasSuffix(last, string(fault.Fenced)) {
		t.Errorf("the fenced node ends with %q", last)
		return false
	}
	got := make([]byte, fenceRange)
	if _, err := two.ReadAt(got, 0); err != nil || !bytes.Equal(got, mine) {
		t.Errorf("the other node's data is not whole (%v)", err)
		return false
	}
	return true
}
