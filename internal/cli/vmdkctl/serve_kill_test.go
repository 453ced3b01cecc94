package vmdkctl

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/nbd"
)

const (
	killWorkers = 4
	killRegion  = 4 << 20
)

// StartServing starts `vmdkctl serve` on a socket and waits until it accepts.
func (r *rig) startServing(socket, disk string) *exec.Cmd {
	r.t.Helper()
	cmd := r.command("serve", "--unix", socket, disk)
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	for limit := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			return cmd
		}
		if time.Now().After(limit) {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			r.t.Fatalf("vmdkctl serve does not serve: %s", said.String())
		}
	}
}

// KillLoad writes, zeroes, flushes and checks what it reads in a region of its own.
func killLoad(c *nbd.Client, worker int, seed uint64, steps int, step chan<- struct{}) (model []byte, err error) {
	rng := rand.New(rand.NewPCG(seed, uint64(worker)))
	model = make([]byte, killRegion)
	for i := range steps {
		off := rng.IntN(killRegion)
		n := 1 + rng.IntN(min(killRegion-off, 1<<rng.IntN(18)))
		part, at := model[off:off+n], int64(worker)*killRegion+int64(off)
		switch rng.IntN(8) {
		case 0:
			err = c.Flush()
		case 1:
			clear(part)
			err = c.Discard(at, int64(n))
		case 2, 3:
			got := make([]byte, n)
			if _, err = c.ReadAt(got, at); err == nil && !bytes.Equal(got, part) {
				err = errors.New("the read has not what was written")
			}
		default:
			for j := range part {
				part[j] = byte(rng.Uint32())
			}
			_, err = c.WriteAt(part, at)
		}
		if err != nil {
			return model, fmt.Errorf("worker %d, step %d, %d bytes at %d: %w", worker, i, n, at, err)
		}
		step <- struct{}{}
	}
	return model, nil
}

// The server of a chain is killed by SIGKILL and started anew while a client works. The client sees a pause, and the disk has
// everything.
func TestServerOfAChainIsKilled(t *testing.T) {
	seed := rand.Uint64()
	if os.Getenv("SEED") != "" {
		if _, err := fmt.Sscan(os.Getenv("SEED"), &seed); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("SEED=%d", seed)
	steps, kills := 300, 8
	if testing.Short() {
		steps, kills = 80, 3
	}
	r := newRig(t)
	r.ok("create", "base.vmdk", "--size", "16M", "--type", "monolithicSparse")
	r.peer("qemu-img", "create", "-q", "-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", "head.vmdk")
	dir, err := os.MkdirTemp("", "vmdkctl-nbd")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := dir + "/s"
	server := r.startServing(socket, "head.vmdk")
	defer func() { _ = server.Process.Kill() }()
	c, err := nbd.Connect(t.Context(), nbd.ClientOptions{Network: "unix", Address: socket, Patience: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	step, over := make(chan struct{}, killWorkers*steps), make(chan struct{})
	var models [killWorkers][]byte
	var errs [killWorkers]error
	var wg sync.WaitGroup
	for w := range killWorkers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			models[w], errs[w] = killLoad(c, w, seed, steps, step)
		}()
	}
	go func() {
		wg.Wait()
		close(over)
	}()
	for range kills {
		for range steps * killWorkers / (kills + 1) {
			select {
			case <-step:
			case <-over:
			}
		}
		_ = server.Process.Kill()
		_ = server.Wait()
		server = r.startServing(socket, "head.vmdk")
	}
	<-over
	if err := errors.Join(errs[:]...); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.Flush(), c.Close(), server.Process.Signal(unix.SIGTERM), server.Wait()); err != nil {
		t.Fatal(err)
	}
	r.peer("qemu-img", "check", "head.vmdk")
	r.peer("qemu-img", "convert", "-f", "vmdk", "-O", "raw", "head.vmdk", "all.raw")
	all, err := os.ReadFile(r.path("all.raw"))
	if err != nil {
		t.Fatal(err)
	}
	for w, model := range models {
		if !bytes.Equal(all[w*killRegion:(w+1)*killRegion], model) {
			t.Errorf("region %d is not what was written", w)
		}
	}
}

// What cannot be served on says why.
func TestServeOnWhatIsNone(t *testing.T) {
	r := newRig(t)
	r.ok("create", "disk.vmdk", "--size", "1M")
	r.fails(1, "NBD on a network needs TLS", "serve", "--listen", "127.0.0.1:0", "disk.vmdk")
	r.fails(1, "certificate nothing.crt", "serve", "--listen", "127.0.0.1:0", "--tls-cert", "nothing.crt", "--tls-key", "nothing.key", "--tls-ca", "nothing", "disk.vmdk")
	r.fails(1, "is no socket", "serve", "--unix", "disk.vmdk", "disk.vmdk")
}
