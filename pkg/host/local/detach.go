package local

import (
	"context"
	"errors"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/transport"
)

// goneTime is how long a detach waits for the kernel to let go of the device: clearing a loop device is asynchronous.
const goneTime = 2 * time.Second

// Detach implements host.Attacher. Steps:
//
//  1. the kernel has let go of the device (else InUse)
//  2. the worker flushes, closes the disk and ends       hostd dies: the disk is checked and released by a repetition
//  3. commit the release                                 hostd dies: a repetition finds it released
//  4. free the slot, drop the descriptors
func (h *Host) Detach(ctx context.Context, id string) error {
	end, err := h.begin(ctx, id, "detach")
	if err != nil {
		return err
	}
	defer end()
	a := h.get(id)
	switch {
	case a == nil:
		return h.detachForgotten(ctx, id)
	case a.lent:
		return nil // not attached here
	}
	return h.detach(ctx, a, end)
}

func (h *Host) detach(ctx context.Context, a *attached, end func()) error {
	id := a.att.ID
	if a.worker != nil {
		if err := h.stop(ctx, a); err != nil {
			return err
		}
	}
	if err := h.release(ctx, a); err != nil {
		return err
	}
	lost := a.lost
	h.drop(a)
	end()
	a.store.background.due(id) // a merge that the detach stopped goes on
	h.log.Info("disk detached", "disk", id, "epoch", a.att.Epoch, "lost", lost)
	return lost
}

// stop is steps 1 and 2.
func (h *Host) stop(ctx context.Context, a *attached) error {
	if err := h.unused(a); err != nil {
		return err
	}
	before := a.worker.State()
	err := a.worker.Stop(ctx)
	switch fault.KindOf(err) {
	case fault.Unavailable, fault.Timeout:
		return fault.Wrap(err, "detach disk %s", a.att.ID) // it is served on: try again
	case "":
		if before.Ended || before.Poisoned {
			a.dirty = true // it ended by itself, which is no clean close
		}
	default:
		a.dirty = true
		a.lost = fault.New(fault.Poisoned, "Check the content of the disk: what was written after the last flush may be lost.",
			"disk %s was not closed cleanly: %w", a.att.ID, err)
		if kerr := a.worker.Kill(); kerr != nil {
			return fault.Wrap(kerr, "detach disk %s", a.att.ID)
		}
	}
	a.set(nil)
	return nil
}

// unused is step 1.
func (h *Host) unused(a *attached) error {
	if a.lent {
		return nil // who has it let it go
	}
	gone, err := h.c.DeviceGone(a.dev.Fuse, goneTime)
	if err != nil {
		return fault.Wrap(err, "detach disk %s", a.att.ID)
	}
	if !gone {
		return fault.New(fault.InUse, "Unmount it and clear its loop device first.",
			"disk %s: the kernel still has its device open", a.att.ID)
	}
	return nil
}

// release is steps 3 and 4.
func (h *Host) release(ctx context.Context, a *attached) error {
	if !a.att.ReadOnly {
		v, err := a.store.open()
		if err == nil {
			err = noted(a.store, v.Release(ctx, a.att.ID, a.att.Epoch, a.dirty))
		}
		if err != nil {
			return fault.Wrap(err, "detach disk %s", a.att.ID)
		}
	}
	if a.lent {
		return nil
	}
	return h.freeSlot(ctx, a.att.Transport, a.att.ID)
}

// detachForgotten releases a disk that a process of this host attached of which nothing is left: hostd and the holder of
// its descriptors have died, so the device is dead. The check finds what the last flush left.
func (h *Host) detachForgotten(ctx context.Context, id string) error {
	s, v, err := h.find(ctx, id)
	if errors.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	held, err := v.Held(id)
	if errors.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if held.Epoch != 0 {
		if err := noted(s, v.Release(ctx, id, held.Epoch, true)); err != nil {
			return fault.Wrap(err, "detach disk %s", id)
		}
		h.log.Info("disk released that an earlier process attached", "disk", id, "epoch", held.Epoch)
	}
	if h.c.Transports == nil {
		return nil
	}
	return h.freeSlot(ctx, transport.Default, id)
}
