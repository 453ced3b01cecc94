package block

import (
	"context"
	"sync"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Gate is a Device whose requests can be held back. Requests that meet a closed gate wait until it opens; Close
// returns when none is inside. That is the pause in which a snapshot swaps what is behind it.
type Gate struct {
	mu      sync.Mutex
	d       Device
	inside  int
	opened  chan struct{} // not nil: closed to new requests; closed when the gate opens
	drained chan struct{} // not nil: Close waits for inside == 0
	failed  error
}

// NewGate is an open gate in front of d.
func NewGate(d Device) *Gate { return &Gate{d: d} }

// enter waits until the gate is open and returns the device behind it.
func (g *Gate) enter() (Device, error) {
	for {
		g.mu.Lock()
		if g.failed != nil {
			defer g.mu.Unlock()
			return nil, g.failed
		}
		if g.opened == nil {
			g.inside++
			defer g.mu.Unlock()
			return g.d, nil
		}
		wait := g.opened
		g.mu.Unlock()
		<-wait
	}
}

func (g *Gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
	g.wake()
}

// wake tells a waiting Close that nobody is inside. Called with mu held.
func (g *Gate) wake() {
	if g.inside == 0 && g.drained != nil {
		close(g.drained)
		g.drained = nil
	}
}

// Close holds new requests back and returns when those inside are done. If ctx ends first the gate is open again and
// the error Is(fault.Timeout). A gate that is closed already gives fault.InProgress.
func (g *Gate) Close(ctx context.Context) error {
	g.mu.Lock()
	if g.failed != nil {
		defer g.mu.Unlock()
		return g.failed
	}
	if g.opened != nil {
		g.mu.Unlock()
		return fault.New(fault.InProgress, "", "the disk is already paused by another operation")
	}
	g.opened = make(chan struct{})
	drained := make(chan struct{})
	g.drained = drained
	g.wake()
	g.mu.Unlock()
	select {
	case <-drained:
		return nil
	case <-ctx.Done():
		g.Open()
		return fault.New(fault.Timeout, "", "requests of the disk did not finish in time: %w", context.Cause(ctx))
	}
}

// Open lets requests through again; an open gate stays open.
func (g *Gate) Open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.drained = nil
	if g.opened != nil {
		close(g.opened)
		g.opened = nil
	}
}

// Swap puts d behind the gate and returns what was there. The caller must have closed it.
func (g *Gate) Swap(d Device) Device {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.opened == nil || g.inside > 0 {
		panic("block: Swap behind an open gate")
	}
	old := g.d
	g.d = d
	return old
}

// Fail ends the gate: waiting and later requests fail with err. Requests inside go on.
func (g *Gate) Fail(err error) {
	g.mu.Lock()
	g.failed = err
	g.mu.Unlock()
	g.Open()
}

// ReadAt implements Device.
func (g *Gate) ReadAt(p []byte, off int64) (int, error) {
	d, err := g.enter()
	if err != nil {
		return 0, err
	}
	defer g.leave()
	return d.ReadAt(p, off)
}

// WriteAt implements Device.
func (g *Gate) WriteAt(p []byte, off int64) (int, error) {
	d, err := g.enter()
	if err != nil {
		return 0, err
	}
	defer g.leave()
	return d.WriteAt(p, off)
}

// Flush implements Device.
func (g *Gate) Flush() error { return g.through(Device.Flush) }

// Discard implements Device.
func (g *Gate) Discard(off, n int64) error {
	return g.through(func(d Device) error { return d.Discard(off, n) })
}

// WriteZeroes implements Device.
func (g *Gate) WriteZeroes(off, n int64) error {
	return g.through(func(d Device) error { return d.WriteZeroes(off, n) })
}

func (g *Gate) through(call func(Device) error) error {
	d, err := g.enter()
	if err != nil {
		return err
	}
	defer g.leave()
	return call(d)
}

// Size implements Device; it does not wait.
func (g *Gate) Size() int64 {
	g.mu.Lock()
	d := g.d
	g.mu.Unlock()
	return d.Size()
}
