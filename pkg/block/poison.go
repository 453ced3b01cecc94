package block

import (
	"sync/atomic"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// poison remembers the first failed Flush.
type poison struct{ err atomic.Pointer[fault.Fault] }

func (p *poison) check() error {
	if f := p.err.Load(); f != nil {
		return f
	}
	return nil
}

// set stores why the medium's state is unknown; the first reason stays.
func (p *poison) set(cause error) error {
	p.err.CompareAndSwap(nil, fault.New(fault.Poisoned, "Detach the disk, check it, and attach it again.",
		"a flush failed, what it should have stored is uncertain: %w", cause))
	return p.check()
}

type poisoning struct {
	Device
	dead poison
}

// Poison makes the first failed Flush of d final: it and every later call fail with fault.Poisoned.
func Poison(d Device) Device { return &poisoning{Device: d} }

func (p *poisoning) ReadAt(b []byte, off int64) (int, error) {
	if err := p.dead.check(); err != nil {
		return 0, err
	}
	return p.Device.ReadAt(b, off)
}

func (p *poisoning) WriteAt(b []byte, off int64) (int, error) {
	if err := p.dead.check(); err != nil {
		return 0, err
	}
	return p.Device.WriteAt(b, off)
}

func (p *poisoning) Flush() error {
	if err := p.dead.check(); err != nil {
		return err
	}
	if err := p.Device.Flush(); err != nil {
		return p.dead.set(err)
	}
	return p.dead.check() // a concurrent Flush failed: this one proves nothing either
}

func (p *poisoning) Discard(off, n int64) error {
	if err := p.dead.check(); err != nil {
		return err
	}
	return p.Device.Discard(off, n)
}

func (p *poisoning) WriteZeroes(off, n int64) error {
	if err := p.dead.check(); err != nil {
		return err
	}
	return p.Device.WriteZeroes(off, n)
}
