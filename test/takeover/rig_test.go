package takeover

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/sys"
	"github.com/vmdk-csi/vmdk-csi/pkg/export/fuse"
	"github.com/vmdk-csi/vmdk-csi/pkg/export/loop"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
	"github.com/vmdk-csi/vmdk-csi/pkg/worker"
	"github.com/vmdk-csi/vmdk-csi/pkg/worker/table"
)

// disk is a disk on the datastore, closed.
type disk struct {
	path   string // its directory
	opener string
	links  []chain.Ref
	format vmdk.Format
	size   int64
}

// kinds of disk, in the order of their subtests.
var kinds = []string{"raw", "flat", "thin", "sparse", "delta"}

const diskSize = 192 << 20

func newDisk(t *testing.T, kind string) disk {
	t.Helper()
	return newDiskOf(t, kind, diskSize)
}

func newDiskOf(t *testing.T, kind string, size int64) disk {
	t.Helper()
	d := disk{path: t.TempDir(), opener: "chain", size: size}
	dir, err := fsx.OpenRoot(d.path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dir.Close() }()
	create := func(name string, p vmdk.CreateParams) *vmdk.Info {
		p.Capacity = d.size
		info, err := vmdk.Create(t.Context(), dir, name, p)
		if err != nil {
			t.Fatal(err)
		}
		d.links = append(d.links, chain.Ref{Name: name, Size: d.size})
		return info
	}
	switch kind {
	case "raw":
		d.opener = "raw"
		f, err := os.Create(filepath.Join(d.path, rawName))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := f.Truncate(d.size); err != nil {
			t.Fatal(err)
		}
	case "flat":
		d.format = vmdk.EagerZeroedThick
		create("disk.vmdk", vmdk.CreateParams{Type: vmdk.MonolithicFlat, Format: d.format})
	case "thin":
		d.format = vmdk.Thin
		create("disk.vmdk", vmdk.CreateParams{Type: vmdk.MonolithicFlat, Format: d.format})
	case "sparse":
		create("disk.vmdk", vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse})
	case "delta":
		base := create("disk.vmdk", vmdk.CreateParams{Type: vmdk.MonolithicFlat})
		create("disk-000001.vmdk", vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse,
			Parent: &vmdk.Parent{Hint: "disk.vmdk", CID: base.CID, LongContentID: base.LongID}})
	}
	return d
}

// rig holds a disk's kernel side as the node service does: the session's descriptor, the table and the loop device.
type rig struct {
	disk    disk
	name    string
	session *fuse.Session
	table   *os.File
	loop    *loop.Device
	host    server
}

// server is what serves the rig's disk.
type server interface {
	// start serves the disk.
	start(t *testing.T, r *rig)
	// kill ends one of its processes with SIGKILL and returns when another one serves.
	kill(t *testing.T)
	// stop closes the disk cleanly.
	stop(t *testing.T)
}

var diskCount atomic.Int64

// attach makes the disk a block device that h serves.
func attach(t *testing.T, d disk, h server, readOnly bool) *rig {
	t.Helper()
	r := &rig{disk: d, host: h, name: prefix() + strconv.FormatInt(diskCount.Add(1), 10)}
	var err error
	if r.session, err = fuse.NewSession(r.name); err != nil {
		t.Fatal(err)
	}
	if r.table, err = table.Create(); err != nil {
		t.Fatal(err)
	}
	h.start(t, r)
	flags := os.O_RDWR
	if readOnly {
		flags = os.O_RDONLY
	}
	f, err := r.session.OpenDisk(within(t, 20*time.Second), flags)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if r.loop, err = loop.Attach(f, loop.Options{DirectIO: true, ReadOnly: readOnly}); err != nil {
		t.Fatal(err)
	}
	if err := r.session.CloseMount(); err != nil {
		t.Fatal(err)
	}
	return r
}

// detach is the reverse, cleanly; it fails the test if anything stays behind.
func (r *rig) detach(t *testing.T) {
	t.Helper()
	if err := r.loop.Detach(); err != nil {
		t.Error(err)
	}
	if err := loop.WaitReleased(within(t, 20*time.Second), r.loop.Number, "/"+r.name); err != nil {
		t.Error(err)
	}
	r.host.stop(t)
	if err := r.session.Close(); err != nil {
		t.Error(err)
	}
	if err := r.table.Close(); err != nil {
		t.Error(err)
	}
}

// local is a supervisor in this process; kill kills the worker.
type local struct {
	sup    *worker.Supervisor
	handle *worker.Handle
	ro     bool
	resent uint64 // requests that successors took over
}

// count adds what the current worker took over.
func (h *local) count(t *testing.T) {
	t.Helper()
	s, err := h.handle.Stats(within(t, waitLong))
	if err != nil {
		t.Fatal(err)
	}
	h.resent += s.Resent
}

// self is this program as the processes under test run it: without cgo, as the product is built.
func self(t *testing.T) string {
	t.Helper()
	p, err := program()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// programDir is where program builds; TestMain removes it.
var programDir string

var program = sync.OnceValues(func() (string, error) {
	if !withCgo {
		return os.Executable()
	}
	var err error
	if programDir, err = os.MkdirTemp("", "takeover"); err != nil {
		return "", err
	}
	path := filepath.Join(programDir, "takeover.test")
	cmd := exec.Command("go", "test", "-c", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the processes under test: %w\n%s", err, out)
	}
	return path, nil
})

func (h *local) start(t *testing.T, r *rig) {
	t.Helper()
	h.sup = worker.NewSupervisor(worker.Options{Command: []string{self(t), "disk"},
		Env: append(os.Environ(), "TAKEOVER_OPENER="+r.disk.opener)})
	d, err := os.Open(r.disk.path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	h.handle, err = h.sup.Start(within(t, 20*time.Second), worker.Spec{ID: r.name, Dir: d, Links: r.disk.links,
		Format: r.disk.format, ReadOnly: h.ro, Device: worker.Device{Fuse: r.session.Dev, Table: r.table}})
	if err != nil {
		t.Fatal(err)
	}
	if w := h.handle.State().Walls; !w.Seccomp || !w.NoCaps || w.Landlock != sys.LandlockABI() {
		t.Errorf("the worker's walls: %+v", w)
	}
}

func (h *local) stop(t *testing.T) {
	t.Helper()
	h.count(t)
	if err := h.handle.Stop(within(t, 20*time.Second)); err != nil {
		t.Error(err)
	}
	if err := h.sup.Close(); err != nil {
		t.Error(err)
	}
}

func (h *local) kill(t *testing.T) {
	t.Helper()
	h.count(t)
	before := h.handle.State()
	p, err := os.FindProcess(before.PID)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	for {
		st := h.handle.State()
		if st.Phase == worker.Serving && st.PID != before.PID {
			t.Logf("worker %d killed, %d serves after %v", before.PID, st.PID, time.Since(start).Round(100*time.Microsecond))
			return
		}
		if time.Since(start) > 20*time.Second {
			t.Fatalf("no successor: %+v", st)
		}
		time.Sleep(time.Millisecond)
	}
}
