// Command agent is process 1 of the test's guest: it loads the kernel's modules, puts the node plugin's service on the
// disks that the hypervisor adds, and does what the test asks on a virtio-serial port.
package main

import (
	"context"
	"fmt"
	"net/rpc"
	"net/rpc/jsonrpc"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/driver"
	"github.com/vmdk-csi/vmdk-csi/pkg/hotadd/guest"
	"github.com/vmdk-csi/vmdk-csi/pkg/node"
	"github.com/vmdk-csi/vmdk-csi/test/guest/call"
)

func main() {
	err := run()
	fmt.Println("agent:", err)
	time.Sleep(time.Second) // the console is slow
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func run() error {
	if err := prepare(); err != nil {
		return err
	}
	hostd, err := openPort(call.Hostd)
	if err != nil {
		return err
	}
	control, err := openPort(call.Control)
	if err != nil {
		return err
	}
	h := &hostdClient{rpc: jsonrpc.NewClient(hostd)}
	devices := node.SCSIDevices{Identify: h.identify}
	service, err := node.New(node.Config{JournalDir: "/run/vmdk-csi/volumes", LinkDir: "/run/vmdk-csi/by-id", Hostd: h, Devices: devices,
		Mounts: node.NewKernelMounts(), FileSystems: node.Tools{}, Partitions: node.Tables{}})
	if err != nil {
		return err
	}
	server := rpc.NewServer()
	if err := server.Register(&Guest{node: &driver.Node{ID: "guest", Volumes: service}, kernel: guest.Kernel{}}); err != nil {
		return err
	}
	fmt.Println("agent: ready")
	server.ServeCodec(jsonrpc.NewServerCodec(control))
	return fmt.Errorf("the test is gone")
}

// prepare does what an init does before anything else.
func prepare() error {
	for _, m := range []struct{ kind, target string }{
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/run"}, {"tmpfs", "/tmp"}} {
		if err := unix.Mount(m.kind, m.target, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	if err := os.Setenv("PATH", "/usr/sbin:/usr/bin"); err != nil {
		return err
	}
	list, err := os.ReadFile("/modules/order")
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(list)) {
		f, err := os.Open(filepath.Join("/modules", name+".ko"))
		if err != nil {
			return err
		}
		if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && err != unix.EEXIST {
			return fmt.Errorf("module %s: %w", name, err)
		}
		f.Close()
	}
	return nil
}

// port is a virtio-serial port. It reads as ended while nobody is connected outside.
type port struct{ *os.File }

func (p port) Read(b []byte) (int, error) {
	for {
		n, err := unix.Read(int(p.Fd()), b)
		if n > 0 || err != nil && err != unix.EINTR {
			return n, err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func openPort(name string) (port, error) {
	deadline := time.Now().Add(30 * time.Second)
	for {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return port{}, err
		}
		for _, n := range names {
			if text, err := os.ReadFile(n); err == nil && strings.TrimSpace(string(text)) == name {
				fd, err := unix.Open("/dev/"+filepath.Base(filepath.Dir(n)), unix.O_RDWR|unix.O_CLOEXEC, 0)
				if err == nil {
					return port{os.NewFile(uintptr(fd), name)}, nil
				}
			}
		}
		if time.Now().After(deadline) {
			return port{}, fmt.Errorf("there is no port %s", name)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// bounded is the context of a call.
func bounded(seconds int) (context.Context, context.CancelFunc) {
	if seconds == 0 {
		return context.WithCancel(context.Background())
	}
	return context.WithTimeout(context.Background(), time.Duration(seconds)*time.Second)
}
