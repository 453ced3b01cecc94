package nbd

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/block"
	"github.com/vmdk-csi/vmdk-csi/pkg/block/blocktest"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Volatile is a disk that loses, when its process dies, what no flush has covered, or some of it.
type volatile struct {
	*block.Mem
	mu      sync.Mutex
	durable *block.Mem
	changes []func(d block.Device) error // since the last flush, in order
}

func newVolatile(size int64) *volatile {
	return &volatile{Mem: block.Memory(size), durable: block.Memory(size)}
}

func (v *volatile) change(do func(d block.Device) error) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := do(v.Mem); err != nil {
		return err
	}
	v.changes = append(v.changes, do)
	return nil
}

func (v *volatile) WriteAt(p []byte, off int64) (int, error) {
	own := bytes.Clone(p)
	err := v.change(func(d block.Device) error { _, err := d.WriteAt(own, off); return err })
	return len(p), err
}

func (v *volatile) Discard(off, n int64) error {
	return v.change(func(d block.Device) error { return d.Discard(off, n) })
}

func (v *volatile) WriteZeroes(off, n int64) error {
	return v.change(func(d block.Device) error { return d.WriteZeroes(off, n) })
}

func (v *volatile) Flush() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, do := range v.changes {
		if err := do(v.durable); err != nil {
			return err
		}
	}
	v.changes = nil
	return nil
}

// Die is what the next process finds: what was flushed, and any of the rest.
func (v *volatile) die(rng *rand.Rand) *volatile {
	v.mu.Lock()
	defer v.mu.Unlock()
	d := v.durable.Clone()
	for _, do := range v.changes {
		if rng.IntN(2) == 0 {
			_ = do(d) // a clone fails no request
		}
	}
	return &volatile{Mem: d.Clone(), durable: d}
}

const (
	loadWorkers = 6
	loadRegion  = 1 << 20
)

// Load does random requests in a region of its own and checks what it reads, until it has done enough.
func load(c *Client, worker int, seed uint64, steps int, step func()) (model []byte, err error) {
	rng := rand.New(rand.NewPCG(seed, uint64(worker)))
	base := int64(worker) * loadRegion
	model = make([]byte, loadRegion)
	for i := range steps {
		step()
		off := rng.IntN(loadRegion)
		n := 1 + rng.IntN(min(loadRegion-off, 1<<rng.IntN(19)))
		part := model[off : off+n]
		at := base + int64(off)
		switch rng.IntN(10) {
		case 0:
			err = c.Flush()
		case 1:
			clear(part)
			err = c.Discard(at, int64(n))
		case 2:
			clear(part)
			err = c.WriteZeroes(at, int64(n))
		case 3, 4, 5:
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
	}
	return model, nil
}

// The server is killed again and again under load. What was acknowledged is there, flushed or not.
func TestServerIsKilled(t *testing.T) {
	for _, tc := range []struct {
		name  string
		multi bool
		keep  int64
	}{{"one connection", false, 0}, {"many", true, 0}, {"little room", true, 256 << 10}} {
		t.Run(tc.name, func(t *testing.T) {
			seed := blocktest.Seed()
			t.Logf("SEED=%d", seed)
			steps, kills := 400, 12
			if testing.Short() {
				steps, kills = 120, 5
			}
			rng := rand.New(rand.NewPCG(seed, 99))
			disk := newVolatile(loadWorkers * loadRegion)
			serve := func() Resolver { return named{"": {Device: disk, MultiConn: tc.multi}} }
			g := newRig(t, serve(), ServerOptions{})
			c := g.client(ClientOptions{KeepBytes: tc.keep, Patience: time.Minute})
			done := make(chan struct{}, loadWorkers*steps)
			models := make([][]byte, loadWorkers)
			errs := make([]error, loadWorkers)
			var wg sync.WaitGroup
			for w := range loadWorkers {
				wg.Add(1)
				go func() {
					defer wg.Done()
					models[w], errs[w] = load(c, w, seed, steps, func() { done <- struct{}{} })
				}()
			}
			over := make(chan struct{})
			go func() {
				wg.Wait()
				close(over)
			}()
			for range kills {
				for range steps * loadWorkers / (kills + 1) {
					select {
					case <-done:
					case <-over: // an error ended the load early
					}
				}
				g.kill()
				disk = disk.die(rng)
				g.start(serve(), ServerOptions{})
			}
			<-over
			if err := errors.Join(errs...); err != nil {
				t.Fatal(err)
			}
			for w, model := range models {
				got := make([]byte, loadRegion)
				if _, err := c.ReadAt(got, int64(w)*loadRegion); err != nil || !bytes.Equal(got, model) {
					t.Fatalf("region %d differs: %v", w, err)
				}
			}
			if err := c.Flush(); err != nil {
				t.Fatal(err)
			}
			g.kill()
			for w, model := range models {
				got := make([]byte, loadRegion)
				if _, err := disk.durable.ReadAt(got, int64(w)*loadRegion); err != nil || !bytes.Equal(got, model) {
					t.Fatalf("region %d was flushed and is lost: %v", w, err)
				}
			}
		})
	}
}

// What a server loses that the client does not send again is what the test above must see.
func TestVolatileDiskLoses(t *testing.T) {
	v := newVolatile(1 << 20)
	for i := range int64(64) {
		if _, err := v.WriteAt([]byte{1}, i*512); err != nil {
			t.Fatal(err)
		}
	}
	d := v.die(rand.New(rand.NewPCG(1, 1)))
	b := make([]byte, 64*512)
	if _, err := d.ReadAt(b, 0); err != nil || bytes.Count(b, []byte{1}) == 64 || bytes.Count(b, []byte{1}) == 0 {
		t.Errorf("%v, %d of 64 writes", err, bytes.Count(b, []byte{1}))
	}
}

// Gated is a disk whose next write waits.
type gated struct {
	*block.Mem
	mu      sync.Mutex
	arrived chan struct{}
	open    chan struct{}
}

func (g *gated) WriteAt(p []byte, off int64) (int, error) {
	g.mu.Lock()
	arrived, open := g.arrived, g.open
	g.arrived = nil
	g.mu.Unlock()
	if arrived != nil {
		close(arrived)
		<-open
	}
	return g.Mem.WriteAt(p, off)
}

// The connection breaks, the server lives, and a write of the old connection still waits in it. It must not take effect after
// what the next session writes.
func TestLateWriteIsFencedOff(t *testing.T) {
	d := &gated{Mem: block.Memory(1 << 20), arrived: make(chan struct{}), open: make(chan struct{})}
	arrived, release := d.arrived, sync.OnceFunc(func() { close(d.open) })
	g := serveDevice(t, d)
	t.Cleanup(release)
	c := g.client(ClientOptions{})
	first := make(chan error, 1)
	go func() {
		_, err := c.WriteAt(bytes.Repeat([]byte{1}, 64<<10), 0)
		first <- err
	}()
	<-arrived
	g.server.mu.Lock()
	for x := range g.server.conns {
		x.raw.Close()
	}
	g.server.mu.Unlock()
	until(t, "the next session knocks", func() bool {
		g.server.mu.Lock()
		defer g.server.mu.Unlock()
		f := g.server.sessions[c.id]
		return f != nil && f.epoch == 2
	})
	select {
	case err := <-first:
		t.Fatalf("the write was answered although it waits: %v", err)
	default:
	}
	release()
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	if _, err := c.WriteAt(bytes.Repeat([]byte{2}, 64<<10), 0); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 64<<10)
	if _, err := d.ReadAt(b, 0); err != nil || !bytes.Equal(b, bytes.Repeat([]byte{2}, 64<<10)) {
		t.Errorf("%v, %d...", err, b[0])
	}
}

// A client of an old epoch that comes late is refused.
func TestOldEpochIsRefused(t *testing.T) {
	g := serveDevice(t, block.Memory(1<<20))
	id := randomID()
	enter := func(epoch int) (*wire, uint32) {
		w := g.dial()
		w.greet()
		w.option(optStructuredReply, nil)
		b := append(appendString(nil, ""), 0, 0, 0, 1)
		what, _ := w.option(optSetMeta, appendString(b, fmt.Sprintf("%s%s:%d", sessionQuery, id, epoch)))
		return w, what
	}
	one, what := enter(1)
	if what != repAck {
		t.Fatalf("%#x", what)
	}
	if _, what := enter(2); what != repAck {
		t.Fatalf("%#x", what)
	}
	if n, err := one.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the old connection: %d, %v", n, err)
	}
	if _, what := enter(1); what != repErrShutdown {
		t.Errorf("the old epoch: %#x", what)
	}
}

func TestServerDoesNotComeBack(t *testing.T) {
	g := serveDevice(t, block.Memory(1<<20))
	c := g.client(ClientOptions{Patience: 200 * time.Millisecond})
	if _, err := c.WriteAt([]byte{1}, 0); err != nil {
		t.Fatal(err)
	}
	g.kill()
	if _, err := c.ReadAt(make([]byte, 1), 0); !errors.Is(err, fault.Unavailable) {
		t.Errorf("read: %v", err)
	}
	if err := c.Flush(); !errors.Is(err, fault.Unavailable) {
		t.Errorf("flush: %v", err)
	}
}

func TestAnotherDiskComesBack(t *testing.T) {
	g := serveDevice(t, block.Memory(1<<20))
	c := g.client(ClientOptions{})
	g.kill()
	g.start(named{"": {Device: block.Memory(1 << 19)}}, ServerOptions{})
	if _, err := c.ReadAt(make([]byte, 1), 0); !errors.Is(err, fault.Damaged) {
		t.Errorf("a smaller disk: %v", err)
	}
}

func TestCloseWhileTheServerIsGone(t *testing.T) {
	g := serveDevice(t, block.Memory(1<<20))
	c := g.client(ClientOptions{Patience: time.Hour})
	g.kill()
	read := make(chan error)
	go func() {
		_, err := c.ReadAt(make([]byte, 1), 0)
		read <- err
	}()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := <-read; !errors.Is(err, fault.Unavailable) {
		t.Errorf("read: %v", err)
	}
}

// A server that talks nonsense breaks sessions, and is given up in the end.
func TestServerThatLies(t *testing.T) {
	good := serveDevice(t, block.Memory(1<<20))
	c := good.client(ClientOptions{Patience: 300 * time.Millisecond})
	good.kill()
	_ = os.Remove(good.path)
	l, err := net.Listen("unix", good.path)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = nc.Write(bytes.Repeat([]byte("NBDMAGICIHAVEOPT\x00\x03"), 100))
			nc.Close()
		}
	}()
	if _, err := c.ReadAt(make([]byte, 1), 0); !errors.Is(err, fault.Unavailable) {
		t.Errorf("%v", err)
	}
	l.Close()
	<-ended
}

func TestKeepingIsBounded(t *testing.T) {
	g := serveDevice(t, block.Memory(8<<20))
	c := g.client(ClientOptions{KeepBytes: 1 << 20})
	p := make([]byte, 64<<10)
	for i := range int64(128) {
		if _, err := c.WriteAt(p, i*int64(len(p))); err != nil {
			t.Fatal(err)
		}
		if n := c.keptBytes(); n > 1<<20+64<<10+2*keptOverhead {
			t.Fatalf("%d bytes are kept", n)
		}
	}
	if err := c.Flush(); err != nil || c.keptBytes() != 0 {
		t.Errorf("after a flush: %v, %d bytes", err, c.keptBytes())
	}
}
