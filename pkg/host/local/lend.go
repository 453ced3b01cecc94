package local

import (
	"context"
	"errors"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/lease"
)

// Lend opens a disk in this process, for hosts that do not reach it. It is this host's in the manifest, and no attachment of this
// node: no slot, no device, in no answer of Attachments, Sync and Handover. Steps:
//
//  1. the manifest names this host (a new epoch)  dies: this host acquires it again
//  2. Config.Workers serves it (WorkerSpec.Lent)  dies: as 1; who lends remembers that it does
//
// Repeated in the same mode it finds the disk open. Kinds: those of Attach; InUse: it is attached on this node.
func (h *Host) Lend(ctx context.Context, id string, readOnly bool) (host.Attachment, error) {
	end, err := h.begin(ctx, id, "lend")
	if err != nil {
		return host.Attachment{}, err
	}
	defer end()
	if a := h.get(id); a != nil {
		switch {
		case !a.lent:
			return host.Attachment{}, fault.New(fault.InUse, "Detach it there first.", "disk %s is attached on node %q", id, h.c.Host.Host)
		case a.worker == nil:
			return host.Attachment{}, fault.New(fault.Unavailable, "Try again.", "disk %s is being closed", id)
		case a.att.ReadOnly != readOnly:
			return host.Attachment{}, fault.New(fault.Precondition, "Detach it first.", "disk %s is open with readOnly=%v, asked for is readOnly=%v",
				id, a.att.ReadOnly, readOnly)
		}
		return a.view(), nil
	}
	if h.c.Workers == nil {
		return host.Attachment{}, fault.New(fault.Unsupported, "Use a host with workers.", "host %q opens no disks", h.c.Host.Host)
	}
	s, v, err := h.find(ctx, id)
	if err != nil {
		return host.Attachment{}, err
	}
	o, err := v.OpenForAttach(ctx, id, readOnly)
	if err != nil {
		return host.Attachment{}, noted(s, err)
	}
	defer o.Dir.Close()
	a := &attached{store: s, lent: true, att: host.Attachment{ID: o.ID, Host: h.c.Host.Host, UUID: o.UUID, Size: o.Size, ReadOnly: o.ReadOnly,
		Epoch: o.Epoch, Since: time.Now().UTC().Truncate(time.Second)}}
	if err := h.serve(ctx, a, o, host.Device{}, nil); err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
		if !o.ReadOnly && o.Before == lease.Clean {
			err = errors.Join(err, v.Release(undo, o.ID, o.Epoch, false))
		}
		return host.Attachment{}, noted(s, err)
	}
	s.background.due(o.ID)
	h.log.Info("disk opened for other hosts", "disk", o.ID, "epoch", o.Epoch, "readOnly", o.ReadOnly, "before", o.Before)
	return a.view(), nil
}

// TakeBack closes and releases a disk that was lent, also by an earlier process of this host. Not lent is taken back already.
// Kinds: Poisoned (closed, but what was not flushed may be lost), Unavailable.
func (h *Host) TakeBack(ctx context.Context, id string) error {
	end, err := h.begin(ctx, id, "take back")
	if err != nil {
		return err
	}
	defer end()
	switch a := h.get(id); {
	case a == nil:
		return h.detachForgotten(ctx, id)
	case !a.lent:
		return nil
	default:
		return h.detach(ctx, a, end)
	}
}

// Lendable says whether a disk may be lent that was not yet. Kinds: NotFound, InUse (it is attached on this node), Unavailable (also: it
// was attached on this node, whose holder has not brought it back since hostd was restarted).
func (h *Host) Lendable(ctx context.Context, id string) error {
	_, v, err := h.find(ctx, id)
	if err != nil {
		return err
	}
	if a := h.get(id); a != nil {
		if a.lent {
			return nil
		}
		return fault.New(fault.InUse, "Detach it there first.", "disk %s is attached on node %q", id, h.c.Host.Host)
	}
	_, err = h.server(v, id)
	return err
}

func isLent(id string) error {
	return fault.New(fault.InUse, "Detach it there first.", "disk %s is attached on another node, through this host", id)
}
