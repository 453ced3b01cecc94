package guest

import (
	"bytes"
	"fmt"
	"net"
	"net/rpc"
	"net/rpc/jsonrpc"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/test/guest/call"
)

// machine is the virtual machine, one for all tests: it takes some 10 seconds to start.
type machine struct {
	dir    string
	guest  *rpc.Client
	hostd  *hostd
	kernel string // its version
	cmd    *exec.Cmd
	ended  chan struct{} // the process is gone
	conns  []net.Conn
	serve  sync.WaitGroup
}

// controllers in the order in which their SCSI buses are used.
var controllers = []string{"virtio-scsi-pci", "pvscsi", "lsi53c895a"}

func start(t *testing.T) *machine {
	t.Helper()
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("qemu-system-x86_64 is not installed (hack/setup.sh installs it): there is nothing to emulate a machine with")
	}
	if runtime.GOARCH != "amd64" {
		t.Skip("the guest is made of this machine's programs, which are not for amd64")
	}
	began := time.Now()
	dir, err := os.MkdirTemp("", "guest") // short: sockets lie in it
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{dir: dir, ended: make(chan struct{})}
	t.Cleanup(m.stop)
	if err := m.boot(qemu); err != nil {
		t.Fatalf("%v\n%s", err, m.console())
	}
	t.Logf("the guest (Linux %s) answered after %s", m.kernel, time.Since(began).Round(100*time.Millisecond))
	return m
}

// tree is hack/guest.sh's directory.
func tree() (string, error) {
	if d := os.Getenv("VMDK_CSI_GUEST"); d != "" {
		return d, nil
	}
	cmd := exec.Command("../../hack/guest.sh")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	return strings.TrimSpace(string(out)), err
}

func (m *machine) path(name string) string { return filepath.Join(m.dir, name) }

func (m *machine) boot(qemu string) error {
	dir, err := tree()
	if err != nil {
		return fmt.Errorf("hack/guest.sh: %w", err)
	}
	build := exec.Command("go", "build", "-ldflags", "-s -w", "-o", m.path("agent"), "./agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the agent: %w\n%s", err, out)
	}
	if err := initramfs(m.path("initrd"), dir, m.path("agent")); err != nil {
		return err
	}
	// QEMU 7.2's emulation of five-level page tables (la57) hangs Debian's kernel.
	args := []string{"-M", "pc", "-accel", "tcg", "-cpu", "max,-la57", "-m", "768", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", filepath.Join(dir, "vmlinuz"), "-initrd", m.path("initrd"),
		"-append", "console=ttyS0 quiet loglevel=5 panic=-1 mitigations=off nokaslr",
		"-serial", "file:" + m.path("console"), "-qmp", "unix:" + m.path("qmp") + ",server=on,wait=off",
		"-device", "virtio-serial-pci"}
	for _, p := range []string{call.Control, call.Hostd} {
		args = append(args, "-chardev", fmt.Sprintf("socket,id=%s,path=%s,server=on,wait=off", p, m.path(p)),
			"-device", fmt.Sprintf("virtserialport,chardev=%s,name=%s", p, p))
	}
	for i, c := range controllers {
		args = append(args, "-device", fmt.Sprintf("%s,id=scsi%d", c, i))
	}
	if err := m.makeLUN(); err != nil {
		return fmt.Errorf("make the LUN: %w", err)
	}
	args = append(args, "-drive", "if=none,id=lun,format=raw,cache=none,file.locking=off,file="+m.path("lun"), "-device", "virtio-blk-pci,drive=lun")
	m.cmd = exec.Command(qemu, args...)
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var stderr bytes.Buffer
	m.cmd.Stderr = &stderr
	// The process dies with the thread that started it.
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		started <- m.cmd.Start()
		if m.cmd.Process != nil {
			_ = m.cmd.Wait()
		}
		close(m.ended)
	}()
	if err := <-started; err != nil {
		return err
	}
	if err := m.connect(); err != nil {
		return fmt.Errorf("%w: %s", err, &stderr)
	}
	return nil
}

// bootTime is for a machine that does other things meanwhile.
const bootTime = 3 * time.Minute

func (m *machine) connect() error {
	control, err := m.dial(call.Control)
	if err != nil {
		return err
	}
	m.guest = jsonrpc.NewClient(control)
	back, err := m.dial(call.Hostd)
	if err != nil {
		return err
	}
	m.hostd = newHostd(m)
	server := rpc.NewServer()
	if err := server.RegisterName("Hostd", m.hostd); err != nil {
		return err
	}
	m.serve.Go(func() { server.ServeCodec(jsonrpc.NewServerCodec(back)) })
	var r call.Text
	c := m.guest.Go("Guest.Ready", call.Text{}, &r, make(chan *rpc.Call, 1))
	select {
	case <-c.Done:
		m.kernel = r.Text
		return c.Error
	case <-m.ended:
		return fmt.Errorf("the machine ended")
	case <-time.After(bootTime):
		return fmt.Errorf("the guest did not answer within %s", bootTime)
	}
}

func (m *machine) dial(name string) (net.Conn, error) {
	for end := time.Now().Add(30 * time.Second); ; {
		c, err := net.Dial("unix", m.path(name))
		if err == nil {
			m.conns = append(m.conns, c)
			return c, nil
		}
		select {
		case <-m.ended:
			return nil, fmt.Errorf("QEMU ended at once")
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(end) {
			return nil, err
		}
	}
}

// console is the end of what the guest's kernel said.
func (m *machine) console() string {
	b, err := os.ReadFile(m.path("console"))
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return "the guest's console:\n  " + strings.Join(lines[max(0, len(lines)-25):], "\n  ")
}

func (m *machine) stop() {
	if m.cmd != nil && m.cmd.Process != nil {
		_ = m.cmd.Process.Kill()
		<-m.ended
	}
	if m.guest != nil {
		m.guest.Close()
	}
	for _, c := range m.conns {
		c.Close()
	}
	m.serve.Wait()
	os.RemoveAll(m.dir)
}

// do calls the agent.
func (m *machine) do(t *testing.T, method string, args any) (call.Text, error) {
	t.Helper()
	var r call.Text
	err := m.call(method, args, &r)
	return r, err
}

// callTime bounds a call of the agent; those that wait on purpose have a deadline of their own.
const callTime = 2 * time.Minute

func (m *machine) call(method string, args, reply any) error {
	c := m.guest.Go("Guest."+method, args, reply, make(chan *rpc.Call, 1))
	select {
	case <-c.Done:
		return c.Error
	case <-m.ended:
		return fmt.Errorf("the machine ended")
	case <-time.After(callTime):
		return fmt.Errorf("%s: no answer within %s", method, callTime)
	}
}

// must is do without an error.
func (m *machine) must(t *testing.T, method string, args any) string {
	t.Helper()
	r, err := m.do(t, method, args)
	if err != nil {
		t.Fatalf("%s %+v: %v\n%s", method, args, err, m.console())
	}
	return r.Text
}
