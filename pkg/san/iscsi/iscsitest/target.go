package iscsitest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/san/iscsi"
)

// TargetName is the target's iSCSI name.
const TargetName = "iqn.2026-01.example:disks"

// Target is Debian's iSCSI target in user space, with one logical unit that is a file.
type Target struct {
	Image  string // the file
	Portal string // host:port
	Users  bool   // from the next Start on: CHAP, "node" with "a secret of a node", "array" with "a secret of the array"
	t      testing.TB
	// control names the daemon's socket.
	control string
	cmd     *exec.Cmd
}

// program finds tgtd or tgtadm: VMDK_CSI_TGT is the directory where the test setup has unpacked the package.
func program(t testing.TB, name string) *exec.Cmd {
	t.Helper()
	if dir := os.Getenv("VMDK_CSI_TGT"); dir != "" {
		cmd := exec.Command(filepath.Join(dir, "usr/sbin", name))
		cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+filepath.Join(dir, "usr/lib/x86_64-linux-gnu"))
		return cmd
	}
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skip("no tgtd: the Debian package tgt is not there, and VMDK_CSI_TGT names no directory with it")
	}
	return exec.Command(path)
}

var controls atomic.Int32

// New starts a target with a logical unit of size bytes; it ends with the test, which is skipped where there is no tgtd.
func New(t testing.TB, size int64) *Target {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("tgtd needs root for its control socket")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	portal := l.Addr().String()
	l.Close()
	g := &Target{t: t, Portal: portal, Image: filepath.Join(t.TempDir(), "lun"), control: fmt.Sprint(10000 + os.Getpid()%20000 + int(controls.Add(1)))}
	if err := os.WriteFile(g.Image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(g.Image, size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		g.Stop()
		for _, suffix := range []string{"", ".lock"} { // which a killed tgtd leaves
			_ = os.Remove("/var/run/tgtd/socket." + g.control + suffix)
		}
	})
	g.Start()
	return g
}

// Start starts it, anew after Stop.
func (g *Target) Start() {
	g.t.Helper()
	cmd := program(g.t, "tgtd")
	cmd.Args = append(cmd.Args, "-f", "-C", g.control, "--iscsi", "portal="+g.Portal)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	g.cmd = cmd
	g.admin(true, "--lld", "iscsi", "--mode", "target", "--op", "new", "--tid", "1", "-T", TargetName)
	g.admin(false, "--lld", "iscsi", "--mode", "logicalunit", "--op", "new", "--tid", "1", "--lun", "1", "-b", g.Image)
	g.admin(false, "--lld", "iscsi", "--mode", "logicalunit", "--op", "update", "--tid", "1", "--lun", "1", "--params", "thin_provisioning=1")
	if g.Users {
		g.admin(false, "--lld", "iscsi", "--mode", "account", "--op", "new", "--user", "node", "--password", "a secret of a node")
		g.admin(false, "--lld", "iscsi", "--mode", "account", "--op", "bind", "--tid", "1", "--user", "node")
		g.admin(false, "--lld", "iscsi", "--mode", "account", "--op", "new", "--user", "array", "--password", "a secret of the array")
		g.admin(false, "--lld", "iscsi", "--mode", "account", "--op", "bind", "--tid", "1", "--user", "array", "--outgoing")
	}
	g.admin(false, "--lld", "iscsi", "--mode", "target", "--op", "bind", "--tid", "1", "-I", "ALL")
}

// admin runs tgtadm; with wait it tries until the daemon answers.
func (g *Target) admin(wait bool, args ...string) {
	g.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		cmd := program(g.t, "tgtadm")
		cmd.Args = append(append(cmd.Args, "-C", g.control), args...)
		out, err := cmd.CombinedOutput()
		if err == nil {
			return
		}
		if !wait || time.Now().After(deadline) {
			g.t.Fatalf("tgtadm %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// Stop kills it.
func (g *Target) Stop() {
	if g.cmd != nil {
		_ = g.cmd.Process.Kill()
		_ = g.cmd.Wait()
		g.cmd = nil
	}
}

// Signal sends a signal to it.
func (g *Target) Signal(s syscall.Signal) {
	g.t.Helper()
	if err := g.cmd.Process.Signal(s); err != nil {
		g.t.Fatal(err)
	}
}

// URL names the logical unit.
func (g *Target) URL() string { return "iscsi://" + g.Portal + "/" + TargetName + "/1" }

// Config reaches the logical unit.
func (g *Target) Config() iscsi.Config {
	return iscsi.Config{Portal: g.Portal, Target: TargetName, Initiator: "iqn.2026-01.example:node", LUN: 1, Timeout: 4 * time.Second}
}
