package san_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/block"
	"github.com/vmdk-csi/vmdk-csi/pkg/block/blocktest"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/san"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/store"
)

// breakable is a LUN whose next sync can be made to fail.
type breakable struct {
	fsx.File
	broken *bool
}

func (b breakable) Datasync() error {
	if *b.broken {
		return fault.New(fault.Poisoned, "", "broken")
	}
	return b.File.Datasync()
}

func TestMapperIsADevice(t *testing.T) {
	broken := false
	blocktest.Run(t, blocktest.Subject{
		New: func(t *testing.T) block.Device {
			broken = false
			r := newRig(t, 16<<20, store.FormatOptions{ExtentSize: 64 << 10, AreaSize: 64 << 10})
			// In pieces that lie apart: a file beside grows in turn.
			f, err := r.store.Root().Open("f", fsx.ReadWrite|fsx.Create)
			must(t, err)
			for off := int64(0); off < blocktest.Size; off += 192 << 10 {
				must(t, f.Allocate(off, min(192<<10, blocktest.Size-off)))
				r.flat("beside"+string(rune('a'+off/(192<<10))), 1)
			}
			must(t, f.Datasync(), f.Close())
			m := r.get("f", "node", san.ReadWrite)
			if len(m.Extents) < 10 {
				t.Fatalf("the map has %d extents", len(m.Extents))
			}
			return r.mapper(m, breakable{r.open(), &broken})
		},
		BreakFlush: func(block.Device) { broken = true },
	})
}

// TestReadOnlyMap: zeros come from nowhere, and nothing can be written.
func TestReadOnlyMap(t *testing.T) {
	r := newRig(t, 16<<20, store.FormatOptions{ExtentSize: 64 << 10, AreaSize: 64 << 10})
	f, err := r.store.Root().Open("f", fsx.ReadWrite|fsx.Create)
	must(t, err)
	want := make([]byte, 1<<20)
	copy(want[300<<10:], bytes.Repeat([]byte("x"), 100))
	_, err = f.WriteAt(want[300<<10:300<<10+100], 300<<10)
	must(t, err, f.Truncate(1<<20), f.Datasync(), f.Close())
	if _, err := r.server.Get(ctx, san.Request{Volume: "f", Node: "n", Mode: san.ReadWrite}); !errors.Is(err, fault.Precondition) {
		t.Errorf("a read-write map of a file with holes: %v", err)
	}
	m := r.get("f", "n", san.ReadOnly)
	d := r.mapper(m)
	got := bytes.Repeat([]byte{0xee}, 1<<20)
	_, err = d.ReadAt(got, 0)
	must(t, err)
	if !bytes.Equal(got, want) || len(m.Extents) != 3 {
		t.Errorf("%d extents, content right: %v", len(m.Extents), bytes.Equal(got, want))
	}
	_, err = d.WriteAt([]byte("x"), 0)
	for what, err := range map[string]error{"write": err, "discard": d.Discard(0, 4096), "zero": d.WriteZeroes(0, 4096)} {
		if !errors.Is(err, fault.ReadOnly) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestLeaseOnTheNode: below MaxIO requests wait, a renewal lets them on, the end of the lease ends them.
func TestLeaseOnTheNode(t *testing.T) {
	r := newRig(t, 16<<20, store.FormatOptions{ExtentSize: 64 << 10, AreaSize: 64 << 10})
	r.flat("f", 1<<20)
	m := r.get("f", "n", san.ReadWrite)
	d := r.mapper(m)
	write := func() error { _, err := d.WriteAt(make([]byte, 4096), 0); return err }
	must(t, write())
	r.clock.pass(m.Lease - m.MaxIO + time.Second)
	answer := make(chan error, 1)
	waits := func() {
		t.Helper()
		go func() { answer <- write() }()
		select {
		case <-r.clock.added:
		case err := <-answer:
			t.Fatalf("a request with less than MaxIO left ended: %v", err)
		}
	}
	waits()
	if recalled, err := d.Renew(ctx); recalled || err != nil {
		t.Fatal(recalled, err)
	}
	must(t, <-answer)
	r.clock.pass(m.Lease - m.MaxIO + time.Second)
	waits()
	r.clock.pass(m.MaxIO)
	if err := <-answer; !errors.Is(err, fault.Unavailable) {
		t.Errorf("after the lease: %v", err)
	}
	if d.Gone() == nil || !errors.Is(d.Flush(), fault.Unavailable) {
		t.Error("the map is still there")
	}
}

// TestRun: a mapper renews in time, hears of a recall, and returns.
func TestRun(t *testing.T) {
	r := newRig(t, 16<<20, store.FormatOptions{ExtentSize: 64 << 10, AreaSize: 64 << 10})
	r.flat("f", 1<<20)
	d := r.mapper(r.get("f", "n", san.ReadWrite))
	_, err := d.WriteAt([]byte("from the node"), 8192)
	must(t, err)
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	for range 20 { // far longer than a lease
		<-r.clock.added
		r.clock.pass(20 * time.Second)
		must(t, r.server.Expire(ctx))
	}
	recalled := make(chan error, 1)
	asked := make(chan struct{})
	go func() {
		go func() { close(asked) }()
		recalled <- r.server.Recall(ctx, "f")
	}()
	<-asked
	for loop := true; loop; {
		select {
		case err := <-ended:
			must(t, err)
			loop = false
		case <-r.clock.added:
			r.clock.pass(20 * time.Second)
		}
	}
	must(t, d.Return(ctx), <-recalled)
	if n := len(r.server.Outstanding()); n != 0 {
		t.Errorf("%d maps are out", n)
	}
	f, err := r.store.Root().Open("f", fsx.ReadOnly)
	must(t, err)
	defer f.Close()
	p := make([]byte, 13)
	_, err = f.ReadAt(p, 8192)
	must(t, err)
	if string(p) != "from the node" {
		t.Errorf("the server reads %q", p)
	}
	if _, err := d.WriteAt(p, 0); !errors.Is(err, fault.Unavailable) {
		t.Errorf("a write after the return: %v", err)
	}
}

// TestWrongLUNs: a node does not touch what is not the map's LUN.
func TestWrongLUNs(t *testing.T) {
	o := store.FormatOptions{ExtentSize: 64 << 10, AreaSize: 64 << 10}
	r, other := newRig(t, 16<<20, o), newRig(t, 16<<20, o)
	r.flat("f", 1<<20)
	m := r.get("f", "n", san.ReadWrite)
	try := func(lun fsx.File) error {
		_, err := san.NewMapper(m, san.MapperConfig{LUNs: []fsx.File{lun}, Sent: r.clock.Now(), Clock: r.clock, Client: r.server})
		return err
	}
	if err := try(other.open()); !errors.Is(err, fault.Precondition) {
		t.Errorf("another store: %v", err)
	}
	shrunk := r.path + "-small"
	must(t, os.WriteFile(shrunk, make([]byte, 1<<20), 0o600))
	small, err := fsx.OpenDevice(shrunk, fsx.ReadWrite|fsx.Direct)
	must(t, err)
	defer small.Close()
	if err := try(small); !errors.Is(err, fault.Precondition) {
		t.Errorf("a smaller LUN: %v", err)
	}
	must(t, small.Truncate(16<<20))
	if err := try(small); !errors.Is(err, fault.Precondition) {
		t.Errorf("an empty LUN: %v", err)
	}
	must(t, try(r.open()))
	r.die()
	r.start() // the owner was replaced: its nonce is another one
	if err := try(r.open()); !errors.Is(err, fault.Precondition) {
		t.Errorf("a map of an earlier owner: %v", err)
	}
}

// TestReturnWaits: a request that is under way ends before the map is given back.
func TestReturnWaits(t *testing.T) {
	r := newRig(t, 16<<20, store.FormatOptions{ExtentSize: 64 << 10, AreaSize: 64 << 10})
	r.flat("f", 1<<20)
	slow := &slowLUN{File: r.open(), begun: make(chan struct{}), goOn: make(chan struct{})}
	d := r.mapper(r.get("f", "n", san.ReadWrite), slow)
	written := make(chan error, 1)
	go func() { _, err := d.WriteAt(make([]byte, 4096), 0); written <- err }()
	<-slow.begun
	short, cancel := context.WithCancel(ctx)
	cancel()
	if err := d.Return(short); !errors.Is(err, fault.Timeout) {
		t.Errorf("return beside a request: %v", err)
	}
	if len(r.server.Outstanding()) != 1 {
		t.Error("the map was given back")
	}
	close(slow.goOn)
	must(t, <-written)
}

type slowLUN struct {
	fsx.File
	begun, goOn chan struct{}
}

func (s *slowLUN) WriteAt(p []byte, off int64) (int, error) {
	close(s.begun)
	<-s.goOn
	return s.File.WriteAt(p, off)
}
