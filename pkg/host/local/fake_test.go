package local_test

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/sys"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/local"
	"github.com/vmdk-csi/vmdk-csi/pkg/hotadd"
	"github.com/vmdk-csi/vmdk-csi/pkg/lease"
	"github.com/vmdk-csi/vmdk-csi/pkg/transport"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// fakeWorkers serves disks in this process: it opens the real chain and answers nobody.
type fakeWorkers struct {
	mu       sync.Mutex
	failNext error // of Start
	running  []*fakeWorker
	stopErr  error // of the next Stop
}

func (w *fakeWorkers) Start(_ context.Context, spec local.WorkerSpec, old *os.File) (local.Worker, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.failNext; err != nil {
		w.failNext = nil
		return nil, err
	}
	dup, err := sys.Dup(spec.Dir)
	if err != nil {
		return nil, err
	}
	fd, err := sys.Fd(dup)
	if err != nil {
		return nil, err
	}
	dir, err := fsx.FromFD(fd)
	if err != nil {
		return nil, err
	}
	c, err := chain.Open(dir, spec.Links, chain.Options{ReadOnly: spec.ReadOnly, Locks: true, Format: vmdk.Format(spec.Format)})
	if err != nil {
		dir.Close()
		return nil, err
	}
	f := &fakeWorker{w: w, keep: dup, dir: dir, chain: c}
	w.running = append(w.running, f)
	return f, nil
}

func (w *fakeWorkers) killAll() {
	for _, f := range w.running {
		f.end()
	}
	w.running = nil
}

type fakeWorker struct {
	w     *fakeWorkers
	keep  *os.File // its descriptor is dir's: closed there
	dir   fsx.Dir
	chain *chain.Chain
	ended bool
}

func (f *fakeWorker) Grow(ctx context.Context, size int64) error { return f.chain.Grow(ctx, size) }

func (f *fakeWorker) Snapshot(ctx context.Context, child string, extentSize int64, commit func(parent, child *vmdk.Info) error) error {
	return f.chain.Snapshot(ctx, chain.SnapshotParams{Child: child, ExtentSize: extentSize, Commit: commit})
}

func (f *fakeWorker) Merge(ctx context.Context, p chain.MergeParams) error {
	return f.chain.Merge(ctx, p)
}

func (f *fakeWorker) MergeCost(_ context.Context, lower int) (down, up int64, err error) {
	return f.chain.MergeCost(lower)
}

func (f *fakeWorker) Stop(context.Context) error {
	f.w.mu.Lock()
	err := f.w.stopErr
	f.w.stopErr = nil
	f.w.mu.Unlock()
	if k := fault.KindOf(err); k == fault.Unavailable || f.ended {
		return err
	}
	f.end()
	return err
}

func (f *fakeWorker) Kill() error { f.end(); return nil }

func (f *fakeWorker) end() {
	if !f.ended {
		f.ended = true
		_ = f.chain.Close()
		_ = f.keep.Close()
	}
}

func (f *fakeWorker) PidFD() (*os.File, error) {
	return nil, fault.New(fault.Unavailable, "", "no process")
}
func (f *fakeWorker) SetLinks([]chain.Ref) {}
func (f *fakeWorker) State() local.WorkerState {
	return local.WorkerState{PID: os.Getpid(), Size: f.chain.Size(), Ended: f.ended}
}

// rig is a host over real directories.
type rig struct {
	root    string // of the directories
	cfg     local.Config
	workers *fakeWorkers
	inUse   bool // what DeviceGone denies
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{root: t.TempDir(), workers: &fakeWorkers{}}
	for _, d := range []string{"a", "b", "state"} {
		if err := os.Mkdir(filepath.Join(r.root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	bus, err := hotadd.OpenEmulated(filepath.Join(r.root, "state", "bus.json"))
	if err != nil {
		t.Fatal(err)
	}
	r.cfg = local.Config{
		Host: lease.Identity{Host: "node-a", BootID: "boot-1"}, StateDir: filepath.Join(r.root, "state"),
		Datastores: []local.DatastoreConfig{
			{Name: "a", Path: filepath.Join(r.root, "a"), Scope: host.ScopeNode},
			{Name: "b", Path: filepath.Join(r.root, "b"), Scope: host.ScopeShared},
		},
		Transports: transport.New(transport.HotAdd(bus)), Workers: r.workers,
		DeviceGone: func(*os.File, time.Duration) (bool, error) { return !r.inUse, nil },
	}
	return r
}

func (r *rig) open(t *testing.T) *local.Host {
	t.Helper()
	h, err := local.New(r.cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}
