package node

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/hosttest"
	"github.com/vmdk-csi/vmdk-csi/pkg/stage"
)

// kernel is a machine in memory: devices that disappear with their last user, mounts, and what is on the disks. It and the
// hostd beside it outlive the Service under test.
type kernel struct {
	mu      sync.Mutex
	devices map[string]*fakeDevice // by disk
	mounts  map[string][]Mount     // by path, the uppermost last
	content map[string]string      // by disk: what Probe says
	tables  map[string]int64       // by disk: end of its partition
	calls   int
	fail    func(n int, call string) error // before the n-th call to the machine
	serial  int
}

type fakeDevice struct {
	id, path  string
	autoClear bool
	readOnly  bool
	size      int64
	holds     int
}

func newKernel() *kernel {
	return &kernel{devices: map[string]*fakeDevice{}, mounts: map[string][]Mount{}, content: map[string]string{}, tables: map[string]int64{}}
}

// enter counts the call and fails it if the test wants so.
func (k *kernel) enter(call string) (func(), error) {
	k.mu.Lock()
	k.calls++
	if k.fail != nil {
		if err := k.fail(k.calls, call); err != nil {
			k.mu.Unlock()
			return func() {}, err
		}
	}
	return k.mu.Unlock, nil
}

// die is the death of the process under test: its descriptors are closed.
func (k *kernel) die() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, d := range k.devices {
		d.holds = 0
	}
	k.collect()
}

// collect removes the devices that nothing keeps; the caller holds mu.
func (k *kernel) collect() {
	for id, d := range k.devices {
		if d.autoClear && d.holds == 0 && !k.isMounted(d.path) {
			delete(k.devices, id)
		}
	}
}

func (k *kernel) isMounted(path string) bool {
	for _, stack := range k.mounts {
		for _, m := range stack {
			if strings.HasPrefix(m.Source, path) {
				return true
			}
		}
	}
	return false
}

type fakeHold struct {
	k *kernel
	d *fakeDevice
}

func (h *fakeHold) Close() error {
	h.k.mu.Lock()
	defer h.k.mu.Unlock()
	if h.d.holds > 0 {
		h.d.holds--
	}
	h.k.collect()
	return nil
}

func (k *kernel) device(d *fakeDevice) Device {
	d.holds++
	return Device{Path: d.path, ReadOnly: d.readOnly, AutoClear: d.autoClear, Size: d.size, Hold: &fakeHold{k, d}}
}

type fakeSession struct {
	k  *kernel
	id string
}

func (k *kernel) NewSession(id string) (Session, error) {
	leave, err := k.enter("session")
	defer leave()
	return &fakeSession{k, id}, err
}

func (s *fakeSession) Device() host.Device { return host.Device{} }
func (s *fakeSession) Close() error        { return nil }

func (s *fakeSession) Export(_ context.Context, o ExportOptions) (Device, error) {
	leave, err := s.k.enter("export")
	defer leave()
	if err != nil {
		return Device{}, err
	}
	if _, ok := s.k.devices[s.id]; ok {
		return Device{}, fmt.Errorf("%s has a second device", s.id)
	}
	s.k.serial++
	d := &fakeDevice{id: s.id, path: fmt.Sprintf("/dev/loop%d", s.k.serial*100), autoClear: o.AutoClear, readOnly: o.ReadOnly, size: gib}
	s.k.devices[s.id] = d
	return s.k.device(d), nil
}

func (k *kernel) Find(id string) (Device, bool, error) {
	leave, err := k.enter("find")
	defer leave()
	if d, ok := k.devices[id]; ok && err == nil {
		return k.device(d), true, nil
	}
	return Device{}, false, err
}

func (k *kernel) Resize(d Device) error {
	leave, err := k.enter("resize")
	defer leave()
	return err
}

func (k *kernel) Partition(d Device, start, length int64) (string, error) {
	leave, err := k.enter("partition")
	defer leave()
	return d.Path + "p1", err
}

func (k *kernel) Release(_ context.Context, id string) error {
	leave, err := k.enter("release")
	defer leave()
	d, ok := k.devices[id]
	if err != nil || !ok {
		return err
	}
	if k.isMounted(d.path) || d.holds > 0 {
		return fault.New(fault.InUse, "", "%s is in use", d.path)
	}
	delete(k.devices, id)
	return nil
}

func (k *kernel) At(path string) (Mount, bool, error) {
	leave, err := k.enter("at")
	defer leave()
	if stack := k.mounts[path]; len(stack) > 0 && err == nil {
		return stack[len(stack)-1], true, nil
	}
	return Mount{}, false, err
}

func (k *kernel) mount(call, source, target string, m Mount) error {
	leave, err := k.enter(call)
	defer leave()
	if err == nil {
		m.Source = source
		k.mounts[target] = append(k.mounts[target], m)
	}
	return err
}

func (k *kernel) Mount(source, target, fsType string, options []string) error {
	if got := k.at(source); got != fsType {
		return fmt.Errorf("mount %s as %s: it holds %q", source, fsType, got)
	}
	return k.mount("mount", source, target, Mount{FSType: fsType, ReadOnly: slices.Contains(options, "ro")})
}

func (k *kernel) Bind(source, target string, readOnly bool, _ []string) error {
	if _, err := os.Stat(target); err != nil {
		return err
	}
	k.mu.Lock()
	if stack := k.mounts[source]; len(stack) > 0 {
		source = stack[len(stack)-1].Source // a bind of a mount shows its source
	}
	k.mu.Unlock()
	return k.mount("bind", source, target, Mount{ReadOnly: readOnly})
}

func (k *kernel) Unmount(target string) error {
	leave, err := k.enter("unmount")
	defer leave()
	if err == nil {
		k.mounts[target] = k.mounts[target][:len(k.mounts[target])-1]
		if len(k.mounts[target]) == 0 {
			delete(k.mounts, target)
		}
		k.collect()
	}
	return err
}

// diskOf is the disk behind a device's path; the caller holds mu.
func (k *kernel) diskOf(device string) string {
	for id, d := range k.devices {
		if d.path == strings.TrimSuffix(device, "p1") {
			return id
		}
	}
	return ""
}

func (k *kernel) at(device string) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.content[k.diskOf(device)]
}

func (k *kernel) Probe(device string) (string, error) {
	leave, err := k.enter("probe")
	defer leave()
	return k.content[k.diskOf(device)], err
}

// Make leaves something half made behind when it fails, as a killed mkfs does.
func (k *kernel) Make(_ context.Context, device, fsType string) error {
	leave, err := k.enter("make")
	if err != nil {
		k.mu.Lock()
		k.content[k.diskOf(device)] = Unknown
		k.mu.Unlock()
		return err
	}
	defer leave()
	k.content[k.diskOf(device)] = fsType
	return nil
}

func (k *kernel) Clear(device string) error {
	leave, err := k.enter("clear")
	defer leave()
	if err == nil {
		k.content[k.diskOf(device)] = ""
	}
	return err
}

func (k *kernel) Prepare(context.Context, string, string, Preparation) error {
	leave, err := k.enter("prepare")
	defer leave()
	return err
}

type fakeGrower struct{ *kernel }

func (g fakeGrower) Grow(context.Context, string, string, string) error {
	leave, err := g.enter("growfs")
	defer leave()
	return err
}

type fakeTables struct{ *kernel }

func (t fakeTables) Ensure(device string, _ bool) (int64, int64, error) {
	leave, err := t.enter("table")
	defer leave()
	t.tables[t.diskOf(device)] = gib
	return mib, gib - mib, err
}

func (t fakeTables) Grow(string) (int64, int64, error) {
	leave, err := t.enter("growtable")
	defer leave()
	return mib, 2*gib - mib, err
}

const (
	mib = 1 << 20
	gib = 1 << 30
)

// checkedHostd fails a test that detaches a disk whose device is still there.
type checkedHostd struct {
	*hosttest.Memory
	t *testing.T
	k *kernel
}

func (h checkedHostd) Detach(ctx context.Context, id string) error {
	h.k.mu.Lock()
	_, there := h.k.devices[id]
	h.k.mu.Unlock()
	if there {
		h.t.Errorf("disk %s is detached while it has a device", id)
	}
	return h.Memory.Detach(ctx, id)
}

// machine is a node with one disk, on which Services can live and die.
type machine struct {
	t     *testing.T
	dir   string
	k     *kernel
	hostd checkedHostd
	disk  string
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	mem := hosttest.NewMemory("node-a")
	t.Cleanup(mem.Close)
	k := newKernel()
	m := &machine{t: t, dir: tempDir(t), k: k, hostd: checkedHostd{mem, t, k}}
	m.disk = m.create("pvc-1")
	return m
}

// tempDir is in memory where it can be: the journal syncs a few thousand times.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "node-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func (m *machine) create(name string) string {
	m.t.Helper()
	d, err := m.hostd.Create(context.Background(), host.DiskSpec{Name: name, Datastore: "local", Size: gib, Format: host.Thin,
		Type: host.MonolithicFlat, Host: "node-a"})
	if err != nil {
		m.t.Fatal(err)
	}
	return d.ID
}

// service starts a Service, as after a restart of the process.
func (m *machine) service() *Service {
	m.t.Helper()
	s, err := New(Config{JournalDir: filepath.Join(m.dir, "journal"), LinkDir: filepath.Join(m.dir, "by-id"), Hostd: m.hostd,
		Holder:  NewHolder(m.hostd, func(id string) (bool, error) { return true, nil }, nil, nil),
		Devices: m.k, Mounts: m.k, FileSystems: fakeGrower{m.k}, Partitions: fakeTables{m.k}})
	if err != nil {
		m.t.Fatal(err)
	}
	return s
}

func (m *machine) volume(mode stage.Mode, p stage.Partition) stage.Volume {
	v := stage.Volume{ID: m.disk, StagingPath: filepath.Join(m.dir, "staging"), Mode: mode, Partition: p}
	if mode == stage.Mount {
		v.FSType = "ext4"
	}
	return v
}

func (m *machine) publication(v stage.Volume) stage.Publication {
	return stage.Publication{ID: v.ID, StagingPath: v.StagingPath, Target: filepath.Join(m.dir, "pod", "target"), Mode: v.Mode}
}

// clean checks that nothing is left of a volume on the node.
func (m *machine) clean(when string) {
	m.t.Helper()
	m.k.mu.Lock()
	if len(m.k.devices) > 0 || len(m.k.mounts) > 0 {
		m.t.Errorf("%s: left devices %v, mounts %v", when, slices.Collect(maps.Keys(m.k.devices)), m.k.mounts)
	}
	m.k.mu.Unlock()
	if all, err := m.hostd.Attachments(context.Background()); err != nil || len(all) > 0 {
		m.t.Errorf("%s: left attachments %v, %v", when, all, err)
	}
	for _, d := range []string{"journal", "by-id"} {
		if left, _ := os.ReadDir(filepath.Join(m.dir, d)); len(left) > 0 {
			m.t.Errorf("%s: left %v in %s", when, left, d)
		}
	}
	if _, err := os.Lstat(filepath.Join(m.dir, "pod", "target")); err == nil {
		m.t.Errorf("%s: left the target", when)
	}
}

// noted is the Recorder of a test.
type noted struct {
	mu  sync.Mutex
	all []string
}

func (n *noted) note(what, id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.all = append(n.all, what+" "+id)
}

func (n *noted) Attached(_ context.Context, a host.Attachment) { n.note("attached", a.ID) }
func (n *noted) Detached(_ context.Context, id string)         { n.note("detached", id) }
func (n *noted) Event(_ context.Context, id string, _ bool, reason, _ string) {
	n.note(reason, id)
}

func (n *noted) has(what, id string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Contains(n.all, what+" "+id)
}
