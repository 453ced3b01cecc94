package sanity

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"k8s.io/klog/v2"

	"github.com/vmdk-csi/vmdk-csi/internal/cli/csi"
	"github.com/vmdk-csi/vmdk-csi/internal/sys"
	"github.com/vmdk-csi/vmdk-csi/pkg/block"
	"github.com/vmdk-csi/vmdk-csi/pkg/driver"
	"github.com/vmdk-csi/vmdk-csi/pkg/export"
	"github.com/vmdk-csi/vmdk-csi/pkg/export/fuse"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/hosttest"
	"github.com/vmdk-csi/vmdk-csi/pkg/node"
)

// memoryHostd is hosttest.Memory whose attached disks answer the kernel: their content is in this process's memory.
type memoryHostd struct {
	*hosttest.Memory

	mu      sync.Mutex
	content map[string]*block.Mem // by id of a disk or of a snapshot; none: zeros
	served  map[string]*served
}

// Create gives a new disk the content of its source.
func (m *memoryHostd) Create(ctx context.Context, spec host.DiskSpec) (host.Disk, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	id := host.DiskID(spec.Name)
	_, err := m.Memory.Get(ctx, id)
	fresh := fault.KindOf(err) == fault.NotFound
	d, err := m.Memory.Create(ctx, spec)
	if err == nil && fresh && spec.Source != nil {
		m.take(id, spec.Source.Snapshot+spec.Source.Disk)
	}
	return d, err
}

func (m *memoryHostd) CreateSnapshot(ctx context.Context, spec host.SnapshotSpec) (host.Snapshot, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	id := host.SnapshotID(spec.Name)
	_, err := m.Memory.GetSnapshot(ctx, id)
	fresh := fault.KindOf(err) == fault.NotFound
	s, err := m.Memory.CreateSnapshot(ctx, spec)
	if err == nil && fresh {
		m.take(id, spec.Disk)
	}
	return s, err
}

// take gives what is new the content that something else has now. Called with mu held.
func (m *memoryHostd) take(id, from string) {
	if disk := m.content[from]; disk != nil {
		m.content[id] = disk.Clone()
	}
}

func (m *memoryHostd) DeleteSnapshot(ctx context.Context, id string) error {
	err := m.Memory.DeleteSnapshot(ctx, id)
	m.forget(id, err)
	return err
}

func (m *memoryHostd) forget(id string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil {
		delete(m.content, id)
	}
}

type served struct {
	dev    *os.File
	server *fuse.Server
	done   chan error
}

func (m *memoryHostd) Attach(ctx context.Context, req host.AttachRequest, dev host.Device) (host.Attachment, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	a, err := m.Memory.Attach(ctx, req, dev)
	if err != nil || m.served[req.ID] != nil {
		return a, err
	}
	disk := m.content[req.ID]
	if disk == nil {
		disk = block.Memory(a.Size)
		m.content[req.ID] = disk
	}
	disk.Grow(a.Size)
	dup, err := sys.Dup(dev.Fuse)
	if err != nil {
		return a, err
	}
	s := &served{dev: dup, server: fuse.NewServer(dup, fuse.Options{}), done: make(chan error, 1)}
	m.served[req.ID] = s
	go func() {
		s.done <- s.server.Serve(context.Background(), export.Params{Name: req.ID, Disk: disk, ReadOnly: req.ReadOnly})
	}()
	return a, nil
}

// Detach waits for the kernel to let the session go, as hostd does.
func (m *memoryHostd) Detach(ctx context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.served[id]; s != nil {
		select {
		case err := <-s.done:
			if err != nil {
				return err
			}
		case <-time.After(5 * time.Second):
			return fault.New(fault.InUse, "", "the kernel still has disk %s open", id)
		}
		delete(m.served, id)
		if err := s.dev.Close(); err != nil {
			return err
		}
	}
	return m.Memory.Detach(ctx, id)
}

func (m *memoryHostd) Grown(ctx context.Context, id string) (host.Attachment, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	a, err := m.Memory.Grown(ctx, id)
	if s := m.served[id]; err == nil && s != nil {
		m.content[id].Grow(a.Size)
		err = s.server.Resized()
	}
	return a, err
}

func (m *memoryHostd) Delete(ctx context.Context, id string) error {
	err := m.Memory.Delete(ctx, id)
	m.forget(id, err)
	return err
}

// startMemory serves the driver in this process.
func startMemory(t *testing.T, dir string) endpoints {
	t.Helper()
	// The log names every disk, which is how a loop device that is left is known to be of this run.
	var level klog.Level
	if err := level.Set("2"); err != nil {
		t.Fatal(err)
	}
	mem := hosttest.NewMemory("node-a")
	local, err := mem.Datastores(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	hostd := &memoryHostd{Memory: mem, content: map[string]*block.Mem{}, served: map[string]*served{}}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	holder := node.NewHolder(hostd, csi.Devices{}.Has, nil, log)
	service, err := node.New(node.Config{JournalDir: filepath.Join(dir, "journal"), LinkDir: filepath.Join(dir, "by-id"), Hostd: hostd,
		Holder: holder, Devices: csi.Devices{}, Mounts: node.NewKernelMounts(), FileSystems: node.Tools{}, Partitions: node.Tables{}, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	server := &driver.Server{Endpoint: filepath.Join(dir, "csi.sock"), Identity: &driver.Identity{Version: "test"},
		Controller: driver.NewController(oneDatastore{hostd, local[0].Name}), Node: &driver.Node{ID: "node-a", Volumes: service}}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	var served error
	running.Go(func() { served = server.Serve(ctx) })
	running.Go(func() { holder.Run(ctx) })
	left := func() ([]string, error) { return leftIn(hostd) }
	return endpoints{node: server.Endpoint, left: left, stop: func() error {
		cancel()
		running.Wait()
		holder.Close()
		mem.Close()
		return errors.Join(served, emptyDirs(filepath.Join(dir, "journal"), filepath.Join(dir, "by-id")))
	}}
}

// leftIn are the disks, retired ones too, the snapshots and the contents that are still there.
func leftIn(m *memoryHostd) ([]string, error) {
	ctx := context.Background()
	disks, _, err := m.Memory.List(ctx, 0, "")
	snapshots, _, serr := m.Memory.ListSnapshots(ctx, "", 0, "")
	var left []string
	for _, d := range disks {
		left = append(left, "disk "+d.ID)
	}
	for _, s := range snapshots {
		left = append(left, "snapshot "+s.ID)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for id := range m.content {
		left = append(left, "content of "+id)
	}
	return left, errors.Join(err, serr)
}

// oneDatastore hides the others: the suite names none.
type oneDatastore struct {
	*memoryHostd
	name string
}

func (o oneDatastore) Datastores(ctx context.Context) ([]host.Datastore, error) {
	all, err := o.memoryHostd.Datastores(ctx)
	for _, d := range all {
		if d.Name == o.name {
			return []host.Datastore{d}, err
		}
	}
	return nil, err
}

func emptyDirs(dirs ...string) error {
	var errs []error
	for _, d := range dirs {
		left, err := os.ReadDir(d)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
		for _, e := range left {
			errs = append(errs, errors.New("left behind: "+filepath.Join(d, e.Name())))
		}
	}
	return errors.Join(errs...)
}
