package nbd

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/block"
	"github.com/vmdk-csi/vmdk-csi/pkg/block/blocktest"
)

// Tool runs a program of Debian's libnbd-bin, nbdkit or qemu-utils.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Fatalf("%s is missing; install it with: apt-get install libnbd-bin nbdkit qemu-utils", name)
	}
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func randomDisk(t *testing.T, size int64) (*block.Mem, []byte) {
	t.Helper()
	d, want := block.Memory(size), make([]byte, size)
	rng := rand.New(rand.NewPCG(1, 2))
	for off := int64(0); off < size; off += 2 << 20 { // data and holes in turn
		for i := off; i < min(size, off+1<<20); i++ {
			want[i] = byte(rng.Uint32())
		}
	}
	if _, err := d.WriteAt(want, 0); err != nil {
		t.Fatal(err)
	}
	return d, want
}

// Our server, their clients, over TLS with certificates on both sides.
func TestPeersOverTLS(t *testing.T) {
	a := newAuthority(t)
	a.sign("client", false) // the names are those of GnuTLS's directories
	d, want := randomDisk(t, 8<<20)
	_, address := a.serve(named{"disk": {Device: d, MultiConn: true}}, nil)
	uri := "nbds://" + strings.Replace(address, "127.0.0.1", "localhost", 1) + "/disk?tls-certificates=" + a.dir
	if out := tool(t, "nbdinfo", uri); !strings.Contains(out, "with TLS") || !strings.Contains(out, "can_multi_conn: true") {
		t.Errorf("nbdinfo: %s", out)
	}
	copied := a.path("copy.raw")
	tool(t, "nbdcopy", uri, copied)
	if got, err := os.ReadFile(copied); err != nil || !bytes.Equal(got, want) {
		t.Errorf("nbdcopy has not the disk: %v", err)
	}
	if err := exec.CommandContext(t.Context(), "nbdinfo", "nbd://"+address+"/disk").Run(); err == nil {
		t.Error("nbdinfo got in without TLS")
	}
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	out := tool(t, "qemu-img", "info", "--object", "tls-creds-x509,id=t,endpoint=client,dir="+a.dir,
		"--image-opts", "driver=nbd,host=localhost,port="+port+",export=disk,tls-creds=t")
	if !strings.Contains(out, "8 MiB") {
		t.Errorf("qemu-img: %s", out)
	}
}

// Their client writes and reads back through ours.
func TestPeersWrite(t *testing.T) {
	from, want := randomDisk(t, 8<<20)
	to := block.Memory(8 << 20)
	// The checkers begin with a hole and the disk with data: shifted by one they are the truth.
	holes := func(off, n int64) iter.Seq2[Extent, error] { return checkered(1<<20)(off+1<<20, n) }
	g := newRig(t, named{"": {Device: from, MultiConn: true, Allocation: holes}}, ServerOptions{})
	h := newRig(t, named{"": {Device: to, MultiConn: true}}, ServerOptions{})
	uri := func(g *rig) string { return "nbd+unix:///?socket=" + g.path }
	tool(t, "qemu-io", "-f", "raw", "-c", "write -P 7 0 64k", "-c", "write -z 1M 1M", "-c", "discard 3M 1M", "-c", "write -f -P 8 5M 4k", "-c", "read -P 7 0 64k",
		"-c", "read -P 0 1M 1M", "-c", "flush", uri(h))
	tool(t, "nbdcopy", "--flush", uri(g), uri(h))
	got := make([]byte, 8<<20)
	if _, err := to.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("nbdcopy from us to us: %v", err)
	}
}

// Started waits until a program serves on a socket.
func started(t *testing.T, socket, name string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Fatalf("%s is missing; install it with: apt-get install nbdkit qemu-utils", name)
	}
	cmd := exec.CommandContext(context.Background(), name, args...)
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		_ = cmd.Wait()
	})
	for limit := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			return
		}
		if time.Now().After(limit) {
			t.Fatalf("%s does not serve: %s", name, said.String())
		}
	}
}

// Their servers, our client.
func TestClientOfPeers(t *testing.T) {
	for _, peer := range []string{"nbdkit", "qemu-nbd"} {
		t.Run(peer, func(t *testing.T) {
			blocktest.Run(t, blocktest.Subject{New: func(t *testing.T) block.Device {
				socket := socketPath(t)
				if peer == "nbdkit" {
					started(t, socket, "nbdkit", "-f", "-U", socket, "memory", fmt.Sprintf("size=%d", blocktest.Size))
				} else {
					file := socket + ".raw"
					if err := os.WriteFile(file, nil, 0o600); err != nil {
						t.Fatal(err)
					}
					if err := os.Truncate(file, blocktest.Size); err != nil {
						t.Fatal(err)
					}
					started(t, socket, "qemu-nbd", "-t", "-e", "8", "-f", "raw", "-k", socket, file)
				}
				c, err := Connect(t.Context(), ClientOptions{Network: "unix", Address: socket})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.Close() })
				if s, _ := c.session(); s.instance != "" {
					t.Errorf("%s has the instance %q", peer, s.instance)
				}
				return c
			}})
		})
	}
}
