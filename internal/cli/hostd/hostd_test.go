package hostd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/cli/hostd"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/hosttest"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/wire"
)

const mib = 1 << 20

// The test binary is vmdk-hostd when it is started with this in its environment.
const asHostd = "TEST_AS_HOSTD"

func TestMain(m *testing.M) {
	if os.Getenv(asHostd) != "" {
		if err := hostd.NewCommand().ExecuteContext(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// process is a vmdk-hostd.
type process struct {
	cmd    *exec.Cmd
	done   chan struct{}
	health string
	log    *log
}

// log collects what a process says, for the report of a failure.
type log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// node is a machine with a run directory and a datastore.
type node struct {
	dir  string
	name string
	args []string // of serve, besides
	port int
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{dir: t.TempDir(), name: "node-a", port: 20000 + os.Getpid()%20000}
	if err := os.Mkdir(n.store(), 0o755); err != nil {
		t.Fatal(err)
	}
	return n
}

func (n *node) store() string  { return filepath.Join(n.dir, "store") }
func (n *node) socket() string { return filepath.Join(n.dir, "run", "s") }

func (n *node) start(t *testing.T, args ...string) *process {
	t.Helper()
	n.port++
	p := &process{done: make(chan struct{}), log: &log{}, health: fmt.Sprintf("127.0.0.1:%d", n.port)}
	args = append(slices.Clone(n.args), args...)
	p.cmd = exec.Command("/proc/self/exe", append([]string{"serve", "--node-name=" + n.name, "--socket=" + n.socket(),
		"--run-dir=" + filepath.Join(n.dir, "run"), "--datastore=a=" + n.store(), "--health-addr=" + p.health}, args...)...)
	p.cmd.Env = append(os.Environ(), asHostd+"=1")
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	// Without it the collector of output would wait for workers that a failure left.
	p.cmd.WaitDelay = 5 * time.Second
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = p.cmd.Wait(); close(p.done) }()
	t.Cleanup(func() {
		p.kill(t)
		if t.Failed() {
			t.Logf("hostd said:\n%s", p.log)
		}
	})
	p.until(t, "serving")
	return p
}

func (p *process) until(t *testing.T, text string) {
	t.Helper()
	eventually(t, "hostd says "+text, func() bool {
		select {
		case <-p.done:
			t.Fatalf("hostd ended:\n%s", p.log)
		default:
		}
		return strings.Contains(p.log.String(), text)
	})
}

func (p *process) kill(t *testing.T) {
	t.Helper()
	_ = p.cmd.Process.Kill()
	<-p.done
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

func (n *node) client(t *testing.T) *wire.Client {
	t.Helper()
	c := wire.NewClient(n.socket())
	t.Cleanup(func() { c.Close() })
	return c
}

func TestConforms(t *testing.T) {
	hosttest.Run(t, func(t *testing.T) hosttest.Subject {
		n := newNode(t)
		n.start(t)
		return hosttest.Subject{Host: n.client(t), Node: "node-a", Datastore: "a",
			Session: func(t *testing.T, id string) hosttest.Session { return newSession(t, id) }}
	})
}

// disk is an attached disk that somebody writes to.
type disk struct {
	id string
	k  *session
}

func attachDisk(t *testing.T, c host.Host, name string, typ host.DiskType) *disk {
	t.Helper()
	d, err := c.Create(t.Context(), host.DiskSpec{Name: name, Datastore: "a", Size: 8 * mib, Type: typ})
	if err != nil {
		t.Fatal(err)
	}
	k := newSession(t, d.ID)
	if _, err := c.Attach(t.Context(), host.AttachRequest{ID: d.ID}, k.Device()); err != nil {
		t.Fatal(err)
	}
	k.Open(t)
	return &disk{id: d.ID, k: k}
}

func (d *disk) write(t *testing.T, off int64, text string) {
	t.Helper()
	if err := d.k.write(off, text); err != nil {
		t.Fatalf("write: %v", err)
	}
}

func (d *disk) check(t *testing.T, off int64, text string) {
	t.Helper()
	if got, err := d.k.read(off, len(text)); err != nil || got != text {
		t.Fatalf("read %q at %d (%v), want %q", got, off, err, text)
	}
}

// Kill -9 of hostd: its workers die with it, the holder brings the descriptors to the next one, and nothing that was
// acknowledged is lost.
func TestKilledHostd(t *testing.T) {
	n := newNode(t)
	p := n.start(t)
	c := n.client(t)
	var disks []*disk
	for i, typ := range []host.DiskType{host.MonolithicFlat, host.TwoGbMaxExtentSparse} {
		disks = append(disks, attachDisk(t, c, fmt.Sprint("disk", i), typ))
	}
	held, err := c.Sync(t.Context(), nil)
	if err != nil || len(held) != 2 {
		t.Fatalf("sync: %d disks, %v", len(held), err)
	}
	for round := range 3 {
		for _, d := range disks {
			d.write(t, int64(round)*mib, fmt.Sprint("round ", round))
		}
		p.kill(t)
		p = n.start(t)
		next, err := c.Sync(t.Context(), held)
		if err != nil || len(next) != 2 {
			t.Fatalf("sync with the next hostd: %d disks, %v", len(next), err)
		}
		host.CloseAll(held)
		held = next
		for _, d := range disks {
			for r := range round + 1 {
				d.check(t, int64(r)*mib, fmt.Sprint("round ", r))
			}
		}
	}
	host.CloseAll(held)
	for _, d := range disks {
		d.k.Release(t)
		if err := c.Detach(t.Context(), d.id); err != nil {
			t.Fatal(err)
		}
	}
}

// An upgrade: the successor takes every disk over while they are written, then has the socket.
func TestSuccession(t *testing.T) {
	n := newNode(t)
	old := n.start(t)
	c := n.client(t)
	var disks []*disk
	for i, typ := range []host.DiskType{host.MonolithicFlat, host.TwoGbMaxExtentSparse, host.TwoGbMaxExtentSparse} {
		disks = append(disks, attachDisk(t, c, fmt.Sprint("disk", i), typ))
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	written := make([]int, len(disks))
	for i, d := range disks {
		wg.Go(func() {
			for ; ; written[i]++ {
				select {
				case <-stop:
					return
				default:
				}
				if err := d.k.write(int64(written[i]%1000)*4096, fmt.Sprintf("%08d", written[i])); err != nil {
					t.Errorf("write %d: %v", written[i], err)
					return
				}
			}
		})
	}
	next := n.start(t)
	if !strings.Contains(next.log.String(), "took over") {
		t.Errorf("the successor took nothing over:\n%s", next.log)
	}
	atts, err := c.Attachments(t.Context())
	if err != nil || len(atts) != len(disks) {
		t.Fatalf("the successor serves %+v %v", atts, err)
	}
	old.kill(t)
	if _, err := c.Sync(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	close(stop)
	wg.Wait()
	for i, d := range disks {
		if written[i] == 0 {
			t.Fatal("nothing was written during the succession")
		}
		for w := max(0, written[i]-1000); w < written[i]; w++ {
			d.check(t, int64(w%1000)*4096, fmt.Sprintf("%08d", w))
		}
		if err := c.Detach(t.Context(), d.id); !errors.Is(err, fault.InUse) {
			t.Fatalf("detach of a device in use: %v", err)
		}
		d.k.Release(t)
		if err := c.Detach(t.Context(), d.id); err != nil {
			t.Fatal(err)
		}
	}
}

func TestHealth(t *testing.T) {
	n := newNode(t)
	p := n.start(t, "--datastore=gone="+filepath.Join(n.dir, "gone"))
	for path, want := range map[string]string{
		"/healthz": "ok", "/readyz": "ok", "/readyz?verbose": "datastore gone is not ready", "/metrics": `vmdk_hostd_datastore_ready{datastore="gone"} 0`,
	} {
		var resp *http.Response
		var err error
		eventually(t, "the health endpoint listens", func() bool { // the socket serves a moment earlier
			resp, err = http.Get("http://" + p.health + path)
			return !errors.Is(err, syscall.ECONNREFUSED)
		})
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		_, err = b.ReadFrom(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(b.String(), want) {
			t.Errorf("%s: %s %v %s", path, resp.Status, err, b.String())
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestCommandLine(t *testing.T) {
	for args, want := range map[string]string{
		"serve":               "--datastore",
		"serve --datastore=x": "NAME=PATH",
		"serve --datastore=a=/tmp,scope=x --node-name=n --run-dir=DIR --socket=DIR/s":                "scope",
		"serve --datastore=a=/tmp/../etc --node-name=n --run-dir=DIR --socket=DIR/s":                 "plain path",
		"serve --datastore=a=/tmp --run-dir=DIR":                                                     "--node-name",
		"serve --datastore=a=/tmp --log-level=loud":                                                  "--log-level",
		"serve --datastore=a=lun:dev/sda --node-name=n":                                              "plain absolute path",
		"serve --datastore=a=lun: --node-name=n":                                                     "names no LUN",
		"serve --datastore=a=lun:/dev/sda,fencing=hope --node-name=n":                                "fencing=lease-only",
		"serve --datastore=a=lun:/dev/sda --datastore=a=/tmp --node-name=n":                          "given twice",
		"serve --datastore=A=lun:/dev/sda --node-name=n":                                             "name of a datastore",
		"serve --datastore=a=lun:/dev/sda --node-name=n --run-dir=DIR --socket=DIR/s":                "--tls-ca-cert",
		"serve --datastore=a=lun:/dev/sda --node-name=n --run-dir=DIR --socket=DIR/s --peers=x":      "--peers",
		"serve --datastore=a=lun:/dev/sda --node-name=n --run-dir=DIR --socket=DIR/s --listen-nbd=9": "--listen-nbd",
	} {
		c := hostd.NewCommand()
		c.SetArgs(strings.Fields(strings.ReplaceAll(args, "DIR", t.TempDir())))
		c.SetErr(&bytes.Buffer{})
		if err := c.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want something about %s", args, err, want)
		}
	}
}
