package lun

import (
	"context"
	"errors"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// goneTime is how long a detach waits for the kernel to let go of the device: clearing a loop device is asynchronous.
const goneTime = 2 * time.Second

// Detach implements host.Attacher. Steps:
//
//  1. the kernel has let go of the device (else InUse)
//  2. the worker flushes, gives back what it has of the disk, and ends  hostd dies: a repetition goes on with 3
//  3. the server closes the disk and releases it                        hostd dies: a repetition finds it closed
//  4. free the slot, drop the descriptors
//
// A server that does not answer makes 3 fail: the disk stays this node's until one does.
func (h *Host) Detach(ctx context.Context, id string) error {
	a := h.get(id)
	if a == nil {
		return h.detachForgotten(ctx, id)
	}
	end, err := h.begin(id, "detach")
	if err != nil {
		return err
	}
	defer end()
	if a = h.get(id); a == nil {
		return nil
	}
	if a.worker != nil {
		if err := h.stop(ctx, a); err != nil {
			return err
		}
	}
	if err := a.store.Client.CloseVolume(ctx, id); err != nil && fault.KindOf(err) != fault.Poisoned {
		return fault.Wrap(err, "detach disk %s", id)
	} else if err != nil && a.lost == nil {
		a.lost = err
	}
	if err := errors.Join(h.borrow(id, nil), h.c.Bus.Detach(context.WithoutCancel(ctx), id)); err != nil {
		return err
	}
	lost := a.lost
	h.drop(a)
	h.log.Info("disk detached", "disk", id, "datastore", a.store.Name, "lost", lost)
	return lost
}

// stop is steps 1 and 2.
func (h *Host) stop(ctx context.Context, a *attached) error {
	gone, err := h.c.DeviceGone(a.dev.Fuse, goneTime)
	if err != nil {
		return fault.Wrap(err, "detach disk %s", a.att.ID)
	}
	if !gone {
		return fault.New(fault.InUse, "Unmount it and clear its loop device first.", "disk %s: the kernel still has its device open", a.att.ID)
	}
	err = a.worker.Stop(ctx)
	switch fault.KindOf(err) {
	case fault.Unavailable, fault.Timeout:
		return fault.Wrap(err, "detach disk %s", a.att.ID) // it is served on: try again
	case "":
	default:
		a.lost = fault.New(fault.Poisoned, "Check the content of the disk: what was written after the last flush may be lost.",
			"disk %s was not closed cleanly: %w", a.att.ID, err)
		if kerr := a.worker.Kill(); kerr != nil {
			return fault.Wrap(kerr, "detach disk %s", a.att.ID)
		}
	}
	a.set(nil)
	return nil
}

// detachForgotten closes a disk that a process of this host attached of which nothing is left: hostd and the holder of its
// descriptors have died, so the device is dead.
func (h *Host) detachForgotten(ctx context.Context, id string) error {
	s, err := h.diskOn(ctx, id)
	if err != nil {
		return err
	}
	if s == nil {
		return h.c.Base.Detach(ctx, id)
	}
	end, err := h.begin(id, "detach")
	if err != nil {
		return err
	}
	defer end()
	if h.get(id) != nil {
		return fault.New(fault.InProgress, "Try again.", "disk %s was attached meanwhile", id)
	}
	if err := s.Client.CloseVolume(ctx, id); err != nil && !notFound(err) {
		return fault.Wrap(err, "detach disk %s", id)
	}
	return errors.Join(h.borrow(id, nil), h.c.Bus.Detach(context.WithoutCancel(ctx), id))
}
