package takeover

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/export"
	"github.com/vmdk-csi/vmdk-csi/pkg/export/fuse"
	"github.com/vmdk-csi/vmdk-csi/pkg/export/loop"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
	"github.com/vmdk-csi/vmdk-csi/pkg/worker"
	"github.com/vmdk-csi/vmdk-csi/pkg/worker/table"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "disk" {
		err := worker.Main(context.Background(), worker.Params{
			Files: worker.Inherited(), Open: openers[os.Getenv("TAKEOVER_OPENER")],
			NewServer: func(dev *os.File, log *slog.Logger) export.Server { return fuse.NewServer(dev, fuse.Options{Log: log}) },
			Log:       slog.New(slog.NewTextHandler(os.Stderr, nil)),
		})
		if err != nil {
			fmt.Fprintln(os.Stderr, "worker:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

var openers = map[string]worker.Opener{"raw": openRaw}

// seed is printed, and replayed from SEED.
func seed(t *testing.T) *rand.Rand {
	s := rand.Uint64()
	if v := os.Getenv("SEED"); v != "" {
		var err error
		if s, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("SEED=%d", s)
	return rand.New(rand.NewPCG(s, s))
}

func kills() int {
	if os.Getenv("VMDK_CSI_TAKEOVER") == "full" {
		return 10
	}
	return 3
}

// rig is a disk that is served and attached.
type rig struct {
	sup    *worker.Supervisor
	handle *worker.Handle
	loop   *loop.Device
	name   string
}

func newRig(t *testing.T, opener, dir string, links []chain.Ref, readOnly bool) *rig {
	t.Helper()
	r := &rig{name: fmt.Sprintf("vmdk-takeover-%d-%d", os.Getpid(), time.Now().UnixNano())}
	s, err := fuse.NewSession(r.name)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	tab, err := table.Create()
	if err != nil {
		t.Fatal(err)
	}
	defer tab.Close()
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r.sup = worker.NewSupervisor(worker.Options{Command: []string{self, "disk"},
		Env: append(os.Environ(), "TAKEOVER_OPENER="+opener)})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	r.handle, err = r.sup.Start(ctx, worker.Spec{ID: r.name, Dir: d, Links: links, ReadOnly: readOnly,
		Device: worker.Device{Fuse: s.Dev, Table: tab}})
	if err != nil {
		t.Fatal(err)
	}
	flags := os.O_RDWR
	if readOnly {
		flags = os.O_RDONLY
	}
	f, err := s.OpenDisk(ctx, flags)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r.loop, err = loop.Attach(f, loop.Options{DirectIO: true, ReadOnly: readOnly})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *rig) close(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := r.loop.Detach(); err != nil {
		t.Error(err)
	}
	if err := loop.WaitReleased(ctx, r.loop.Number, "/"+r.name); err != nil {
		t.Error(err)
	}
	if err := r.handle.Stop(ctx); err != nil {
		t.Error(err)
	}
	if err := r.sup.Close(); err != nil {
		t.Error(err)
	}
}

// killWorker kills -9 and waits until another worker serves.
func (r *rig) killWorker(t *testing.T) {
	t.Helper()
	before := r.handle.State()
	p, err := os.FindProcess(before.PID)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	for {
		st := r.handle.State()
		if st.Phase == worker.Serving && st.PID != before.PID {
			s, err := r.handle.Stats(t.Context())
			t.Logf("killed %d, %d serves after %v; %+v %v", before.PID, st.PID, time.Since(start).Round(100*time.Microsecond), s, err)
			return
		}
		if time.Since(start) > 20*time.Second {
			t.Fatalf("no successor: %+v", st)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestRawFio(t *testing.T) {
	rnd := seed(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, rawName), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(dir, rawName), 256<<20); err != nil {
		t.Fatal(err)
	}
	r := newRig(t, "raw", dir, nil, false)
	defer r.close(t)
	fio := exec.Command("fio", "--name=verify", "--filename="+r.loop.Path(), "--direct=1", "--ioengine=libaio", "--iodepth=32",
		"--rw=randwrite", "--bsrange=4k-64k", "--verify=crc32c", "--verify_fatal=1", "--verify_backlog=512", "--time_based",
		fmt.Sprintf("--runtime=%d", kills()+2), "--size=256m")
	done := make(chan error, 1)
	go func() {
		out, err := fio.CombinedOutput()
		t.Logf("%s", out)
		done <- err
	}()
	for range kills() {
		time.Sleep(time.Duration(rnd.IntN(1000)) * time.Millisecond)
		r.killWorker(t)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
