package takeover

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	hostdcli "github.com/vmdk-csi/vmdk-csi/internal/cli/hostd"
	"github.com/vmdk-csi/vmdk-csi/pkg/export/fuse"
	"github.com/vmdk-csi/vmdk-csi/pkg/export/loop"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/wire"
	"github.com/vmdk-csi/vmdk-csi/pkg/node"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
	"github.com/vmdk-csi/vmdk-csi/pkg/worker/table"
)

// asHostd in the environment makes this program vmdk-hostd, workers included.
const asHostd = "TAKEOVER_AS_HOSTD"

func realHostd() error { return hostdcli.NewCommand().ExecuteContext(context.Background()) }

// product is the real data path: vmdk-hostd with its workers, and a node service's Holder with the kernel's devices, each
// in processes of their own. kill kills one of the three kinds in turn.
type product struct {
	dir     string
	store   string // directory of the datastore
	node    string // name of the node
	id      string
	client  *wire.Client
	hostd   *exec.Cmd
	service *nodeProcess
	said    *os.File // what hostd and its workers log
	killed  int
	device  string
	victims []string

	stepping bool // hostd and its workers end at a step: see stepping_test.go
	readOnly bool
}

type nodeProcess struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

// nodeService is the process: it attaches the disk if it is given one, and holds what hostd has attached until its input
// ends. Its arguments are the socket, the disk's id or "",
// and whether it reads only: the device is writable all the same, as a reader's is.
func nodeService(socket, id string, readOnly bool) error {
	c := wire.NewClient(socket)
	defer func() { _ = c.Close() }()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	h := node.NewHolder(c, func(id string) (bool, error) {
		all, err := loop.FindByName(id)
		return len(all) > 0, err
	}, nil, log)
	defer h.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan struct{})
	go func() { defer close(done); h.Run(ctx) }()
	defer func() { cancel(); <-done }()
	said := "holding"
	if id != "" {
		device, err := attachAndHold(ctx, c, h, id, readOnly)
		if err != nil {
			return err
		}
		said = device
	}
	for h.Reachable() != nil {
		time.Sleep(time.Millisecond)
	}
	fmt.Println(said)
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

func attachAndHold(ctx context.Context, c *wire.Client, h *node.Holder, id string, readOnly bool) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, waitLong)
	defer cancel()
	// The kernel's devices are named by disk and node, as those of two nodes that share a kernel are.
	s, err := fuse.NewSession(id)
	if err != nil {
		return "", err
	}
	defer func() { _ = s.Close() }()
	t, err := table.Create()
	if err != nil {
		return "", err
	}
	defer t.Close()
	dev := host.Device{Fuse: s.Dev, Table: t}
	att, err := c.Attach(ctx, host.AttachRequest{ID: id, ReadOnly: readOnly}, dev)
	if err != nil {
		return "", err
	}
	f, err := s.OpenDisk(ctx, os.O_RDWR)
	if err != nil {
		return "", err
	}
	defer f.Close()
	l, err := loop.Attach(f, loop.Options{DirectIO: true})
	if err != nil {
		return "", err
	}
	defer func() { _ = l.Close() }()
	return l.Path(), h.Add(ctx, host.Held{Attachment: att, Device: dev})
}

func (p *product) socket() string { return filepath.Join(p.dir, "run", "s") }

func (p *product) startHostd(t *testing.T) {
	t.Helper()
	p.hostd = exec.Command(self(t), "serve", "--node-name="+p.node, "--socket="+p.socket(), "--run-dir="+filepath.Join(p.dir, "run"),
		"--datastore=a="+p.store+",scope=shared", "--log-level=warn")
	p.hostd.Env = append(os.Environ(), asHostd+"=1")
	if p.stepping {
		p.hostd = exec.Command(self(t), "stepping", p.dir)
		p.hostd.Env = append(os.Environ(), "TAKEOVER_OPENER=stepping")
	}
	p.hostd.Stdout, p.hostd.Stderr = p.said, p.said
	if err := p.hostd.Start(); err != nil {
		t.Fatal(err)
	}
	p.until(t, "hostd answers", func() bool { _, err := p.client.Attachments(t.Context()); return err == nil })
}

func (p *product) startNode(t *testing.T, id string) string {
	t.Helper()
	mode := "rw"
	if p.readOnly {
		mode = "ro"
	}
	n := &nodeProcess{cmd: exec.Command(self(t), "node", p.socket(), id, mode)}
	n.cmd.Stderr = p.said
	var err error
	if n.in, err = n.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := n.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	n.out = bufio.NewScanner(out)
	if err := n.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.service = n
	if !n.out.Scan() {
		t.Fatalf("the node service ended: %v\n%s", n.cmd.Wait(), p.log())
	}
	return n.out.Text()
}

func (p *product) log() string {
	b, err := os.ReadFile(p.said.Name())
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func (p *product) until(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(waitLong); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s\n%s", waitLong, what, p.log())
		}
	}
}

// worker is the pid that serves the disk, 0 if none does.
func (p *product) worker(t *testing.T) int {
	t.Helper()
	all, err := p.client.Attachments(t.Context())
	if err != nil || len(all) != 1 {
		return 0
	}
	return all[0].WorkerPID
}

// attachProduct makes a disk through hostd and attaches it through the node service.
func attachProduct(t *testing.T, spec host.DiskSpec, victims ...string) (*product, *rig) {
	t.Helper()
	p := newProduct(t, "", victims...)
	return p, p.attach(t, p.create(t, spec))
}

// newProduct starts hostd of a node over a datastore; "" makes one.
func newProduct(t *testing.T, store string, victims ...string) *product {
	t.Helper()
	p := &product{dir: t.TempDir(), store: store, victims: victims}
	p.node = filepath.Base(filepath.Dir(p.dir)) + "-" + filepath.Base(p.dir)
	if store == "" {
		p.store = filepath.Join(p.dir, "store")
		if err := os.Mkdir(p.store, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	p.begin(t)
	return p
}

func (p *product) begin(t *testing.T) {
	t.Helper()
	var err error
	if p.said, err = os.Create(filepath.Join(p.dir, "log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.said.Close() })
	p.client = wire.NewClient(p.socket())
	t.Cleanup(func() { p.client.Close() })
	p.startHostd(t)
}

func (p *product) create(t *testing.T, spec host.DiskSpec) host.Disk {
	t.Helper()
	if spec.Name == "" {
		spec.Name = prefix() + t.Name()
	}
	if spec.Size == 0 {
		spec.Size = diskSize
	}
	spec.Datastore = "a"
	d, err := p.client.Create(t.Context(), spec)
	if err != nil {
		t.Fatalf("%v\n%s", err, p.log())
	}
	return d
}

// attach attaches a disk through the node service.
func (p *product) attach(t *testing.T, d host.Disk) *rig {
	t.Helper()
	p.id = d.ID
	madeMu.Lock()
	made = append(made, d.ID)
	madeMu.Unlock()
	p.device = p.startNode(t, d.ID)
	l, err := loop.Open(p.device, false)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{name: d.ID, loop: l, host: p, disk: disk{path: filepath.Join(p.store, "volumes", d.ID), opener: "chain", size: d.Size,
		format: vmdk.Format(d.Spec.Format), links: refs(d.Links)}}
	return r
}

func refs(links []host.Link) (list []chain.Ref) {
	for _, l := range links {
		list = append(list, chain.Ref{Name: l.Name, Size: l.Size})
	}
	return list
}

// detachProduct ends all of it; nothing may be left.
func detachProduct(t *testing.T, p *product, r *rig) {
	t.Helper()
	p.detach(t, r)
	p.end(t)
}

// detach detaches the disk; hostd goes on.
func (p *product) detach(t *testing.T, r *rig) {
	t.Helper()
	if err := r.loop.Detach(); err != nil {
		t.Error(err)
	}
	if err := loop.WaitReleased(within(t, waitLong), r.loop.Number, "/"+p.id); err != nil {
		t.Error(err)
	}
	if err := p.client.Detach(within(t, waitLong), p.id); err != nil {
		t.Errorf("detach: %v\n%s", err, p.log())
	}
	p.service.in.Close()
	if err := p.service.cmd.Wait(); err != nil {
		t.Errorf("node service: %v\n%s", err, p.log())
	}
}

func (p *product) end(t *testing.T) {
	t.Helper()
	if err := p.hostd.Process.Signal(unix.SIGKILL); err != nil {
		t.Error(err)
	}
	_ = p.hostd.Wait()
	if t.Failed() {
		t.Logf("hostd, its workers and the node service said:\n%s", p.log())
	}
}

// start and stop belong to attachProduct and detachProduct.
func (p *product) start(*testing.T, *rig) {}
func (p *product) stop(*testing.T)        {}

func (p *product) kill(t *testing.T) {
	t.Helper()
	victim := p.victims[p.killed%len(p.victims)]
	p.killed++
	old, start := p.worker(t), time.Now()
	switch victim {
	case "worker":
		if old == 0 {
			t.Fatal("no worker to kill")
		}
		if err := unix.Kill(old, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	case "hostd":
		_ = p.hostd.Process.Kill()
		_ = p.hostd.Wait()
		p.startHostd(t)
	case "upgrade": // the next hostd takes the disk from this one, which then ends
		former := p.hostd
		p.startHostd(t)
		p.until(t, "the successor serves", func() bool { now := p.worker(t); return now != 0 && now != old })
		_ = former.Process.Kill()
		_ = former.Wait()
	case "node":
		_ = p.service.cmd.Process.Kill()
		p.service.in.Close()
		_ = p.service.cmd.Wait()
		p.startNode(t, "")
	}
	now := 0
	p.until(t, "a worker serves after the death of "+victim, func() bool {
		now = p.worker(t)
		return now != 0 && (now != old) == (victim != "node")
	})
	t.Logf("%s killed; worker %d, before %d, after %v", victim, now, old, time.Since(start).Round(100*time.Microsecond))
}

// TestProduct kills worker, hostd and node service in turn, and hands over to another hostd, under fio and under a file system: in full mode each ten times,
// otherwise each once.
func TestProduct(t *testing.T) {
	need(t)
	for _, c := range []struct {
		name   string
		spec   host.DiskSpec
		fstype string
	}{
		{"flat-fio", host.DiskSpec{Type: host.MonolithicFlat, Format: host.ZeroedThick}, ""},
		{"thin-ext4", host.DiskSpec{Type: host.MonolithicFlat, Format: host.Thin}, "ext4"},
		{"sparse-fio", host.DiskSpec{Type: host.TwoGbMaxExtentSparse, Format: host.Thin}, ""},
		{"sparse-ext4", host.DiskSpec{Type: host.TwoGbMaxExtentSparse, Format: host.Thin}, "ext4"},
	} {
		t.Run(c.name, func(t *testing.T) {
			rnd := seeded(t)
			p, r := attachProduct(t, c.spec, "worker", "hostd", "node", "upgrade")
			n := len(p.victims)
			if full() {
				n *= kills()
			}
			if c.fstype == "" {
				killUnder(t, rnd, r, n, fio(t, r.loop.Path(), r.disk.size, rnd.Uint64()>>1))
			} else {
				onFileSystem(t, rnd, r, c.fstype, n)
			}
			sum := r.sum(t)
			detachProduct(t, p, r)
			r.disk.verify(t, sum)
		})
	}
}

func onFileSystem(t *testing.T, rnd *rand.Rand, r *rig, fstype string, n int) {
	t.Helper()
	mkfs, err := exec.LookPath("mkfs." + fstype)
	if err != nil {
		t.Skipf("mkfs.%s is not installed (apt-get install xfsprogs e2fsprogs)", fstype)
	}
	if out, err := exec.Command(mkfs, r.loop.Path()).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, bytes.TrimSpace(out))
	}
	m := mount(t, fstype, r.loop.Path())
	ws := newWriters()
	killUnder(t, rnd, r, n, writersUntil(ws, m.path, rnd.Uint64()))
	var wrote []string
	for _, w := range ws {
		wrote = append(wrote, fmt.Sprintf("%s %d", w.file, w.writes))
		if w.writes == 0 {
			t.Errorf("%s wrote nothing", w.file)
		}
	}
	t.Logf("writes: %s", strings.Join(wrote, ", "))
	m.umount(t, r.loop.Path())
	m = mount(t, fstype, r.loop.Path()) // what is read now comes from the disk
	for _, w := range ws {
		if err := w.check(m.path); err != nil {
			t.Error(err)
		}
	}
	m.umount(t, r.loop.Path())
}
