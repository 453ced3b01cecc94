package sanity

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// envBin is where the parent built the programs.
const envBin = "VMDK_CSI_SANITY_BIN"

// buildPrograms builds the programs once for all backends.
func buildPrograms(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command("go", "build", "-o", dir, "github.com/vmdk-csi/vmdk-csi/cmd/vmdk-hostd",
		"github.com/vmdk-csi/vmdk-csi/cmd/vmdk-csi-node", "github.com/vmdk-csi/vmdk-csi/cmd/vmdk-csi-controller")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return dir
}

// process is a program under test; what it writes goes to the test's output.
type process struct {
	name string
	cmd  *exec.Cmd
	done chan error
}

func start(t *testing.T, program string, args ...string) *process {
	t.Helper()
	if !filepath.IsAbs(program) {
		program = filepath.Join(os.Getenv(envBin), program)
	}
	p := &process{name: filepath.Base(program), cmd: exec.Command(program, args...), done: make(chan error, 1)}
	p.cmd.Stdout, p.cmd.Stderr = os.Stderr, os.Stderr
	// The child that runs the backend may die of a failing spec's panic: its programs must not stay.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", p.name, err)
	}
	go func() { p.done <- p.cmd.Wait() }()
	return p
}

// stop ends it in good order, and says so if that does not work.
func (p *process) stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("%s ended early: %w", p.name, errors.Join(err, <-p.done))
	}
	select {
	case err := <-p.done:
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		return nil
	case <-time.After(60 * time.Second):
		_ = p.cmd.Process.Kill()
		return fmt.Errorf("%s did not end on SIGTERM: %w", p.name, <-p.done)
	}
}

// kill is kill -9.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// listening waits for a unix socket that accepts.
func listening(t *testing.T, p *process, path string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var d net.Dialer
	for {
		c, err := d.DialContext(ctx, "unix", path)
		if err == nil {
			c.Close()
			return
		}
		select {
		case ended := <-p.done:
			p.done <- ended
			t.Fatalf("%s ended: %v", p.name, ended)
		case <-ctx.Done():
			t.Fatalf("%s does not listen on %s: %v", p.name, path, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// startLocal runs hostd and one process with both CSI services.
func startLocal(t *testing.T, dir string) endpoints {
	t.Helper()
	store := filepath.Join(dir, "store")
	if err := os.Mkdir(store, 0o700); err != nil {
		t.Fatal(err)
	}
	socket, endpoint := filepath.Join(dir, "hostd.sock"), filepath.Join(dir, "csi.sock")
	hostd := startHostd(t, dir, store)
	node := start(t, "vmdk-csi-node", "--kubernetes=false", "--controller", "--node-name=node-a", "--hostd="+socket,
		"--endpoint=unix://"+endpoint, "--plugin-dir="+filepath.Join(dir, "plugin"), "--link-dir="+filepath.Join(dir, "by-id"), "--v=2")
	listening(t, node, endpoint)
	return endpoints{node: endpoint, left: func() ([]string, error) { return filesIn(store) }, stop: func() error {
		return errors.Join(node.stop(), hostd.stop(), emptyDirs(filepath.Join(dir, "plugin", "volumes"), filepath.Join(dir, "by-id")))
	}}
}

func startHostd(t *testing.T, dir, store string) *process {
	t.Helper()
	socket := filepath.Join(dir, "hostd.sock")
	hostd := start(t, "vmdk-hostd", "serve", "--node-name=node-a", "--datastore=local="+store, "--socket="+socket,
		"--run-dir="+filepath.Join(dir, "run"), "--state-dir="+filepath.Join(dir, "state"))
	listening(t, hostd, socket)
	return hostd
}

// filesIn are the files of disks and names on a datastore.
func filesIn(store string) ([]string, error) {
	var left []string
	for _, room := range []string{"volumes", "names"} {
		err := filepath.WalkDir(filepath.Join(store, room), func(path string, d os.DirEntry, err error) error {
			if errors.Is(err, os.ErrNotExist) {
				return nil
			}
			if err == nil && !d.IsDir() {
				left = append(left, strings.TrimPrefix(path, store))
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return left, nil
}
