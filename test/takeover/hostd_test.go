package takeover

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
	"github.com/vmdk-csi/vmdk-csi/pkg/worker"
)

// smallHostd is a hostd that only supervises one worker, in a process of its own; the test is the node service that holds
// the descriptors. kill kills hostd, whose worker must die with it, and has another one adopt the disk.
type smallHostd struct {
	r   *rig
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
	pid int // of the worker
}

type hostdSpec struct {
	ID     string
	Links  []chain.Ref
	Format vmdk.Format
}

// hostd is the process: it serves the disk of its inherited descriptors, says which process does, and stops it cleanly
// when told so. It ends without a word if its input ends.
func hostd() error {
	var s hostdSpec
	if err := json.Unmarshal([]byte(os.Args[2]), &s); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	sup := worker.NewSupervisor(worker.Options{Command: []string{self, "disk"}})
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	h, err := sup.Start(ctx, worker.Spec{ID: s.ID, Dir: os.NewFile(3, "dir"), Links: s.Links, Format: s.Format,
		Device: worker.Device{Fuse: os.NewFile(4, "fuse"), Table: os.NewFile(5, "table")}})
	if err != nil {
		return err
	}
	fmt.Println(h.State().PID)
	in := bufio.NewScanner(os.Stdin)
	if !in.Scan() {
		return sup.Close()
	}
	if err := h.Stop(ctx); err != nil {
		return err
	}
	fmt.Println("stopped")
	return sup.Close()
}

func (h *smallHostd) start(t *testing.T, r *rig) {
	t.Helper()
	h.r = r
	spec, err := json.Marshal(hostdSpec{r.name, r.disk.links, r.disk.format})
	if err != nil {
		t.Fatal(err)
	}
	d, err := os.Open(r.disk.path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	h.cmd = exec.Command(self(t), "hostd", string(spec))
	h.cmd.Env = append(os.Environ(), "TAKEOVER_OPENER="+r.disk.opener)
	h.cmd.ExtraFiles = []*os.File{d, r.session.Dev, r.table}
	h.cmd.Stderr = os.Stderr
	if h.in, err = h.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	h.out = bufio.NewScanner(out)
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if !h.out.Scan() {
		t.Fatal("hostd could not serve the disk")
	}
	if _, err := fmt.Sscan(h.out.Text(), &h.pid); err != nil {
		t.Fatal(err)
	}
}

// kill does not wait for the worker's death before the successor starts: that is what the claim on the table is for.
func (h *smallHostd) kill(t *testing.T) {
	t.Helper()
	start, old := time.Now(), h.pid
	if err := h.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	h.in.Close()
	_ = h.cmd.Wait()
	h.start(t, h.r)
	t.Logf("hostd %d killed, worker %d follows %d after %v", h.cmd.Process.Pid, h.pid, old, time.Since(start).Round(100*time.Microsecond))
	// A zombie may wait for its new parent to look; the claim proved that its threads are gone.
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", old))
	if _, state, _ := strings.Cut(string(b), ") "); err == nil && !strings.HasPrefix(state, "Z") {
		t.Errorf("the killed hostd's worker still runs: %s", b)
	}
}

func (h *smallHostd) stop(t *testing.T) {
	t.Helper()
	if _, err := fmt.Fprintln(h.in, "stop"); err != nil {
		t.Error(err)
	}
	if !h.out.Scan() || h.out.Text() != "stopped" {
		t.Errorf("hostd did not stop the disk cleanly: %q", h.out.Text())
	}
	h.in.Close()
	if err := h.cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// TestHostdUnderFio: hostd dies, with its worker, while fio verifies.
func TestHostdUnderFio(t *testing.T) {
	need(t)
	for _, kind := range []string{"flat", "sparse"} {
		t.Run(kind, func(t *testing.T) {
			rnd := seeded(t)
			d := newDisk(t, kind)
			h := &smallHostd{}
			r := attach(t, d, h, false)
			killUnder(t, rnd, r, kills(), fio(t, r.loop.Path(), d.size, rnd.Uint64()>>1))
			sum := r.sum(t)
			r.detach(t)
			d.verify(t, sum)
		})
	}
}
