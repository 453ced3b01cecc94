package local

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/hotadd"
	"github.com/vmdk-csi/vmdk-csi/pkg/lease"
	"github.com/vmdk-csi/vmdk-csi/pkg/transport"
	"github.com/vmdk-csi/vmdk-csi/pkg/volume"
)

// attached is a disk that this host has open. Its fields belong to who holds the disk's lock in Host.busy, but for view.
type attached struct {
	store *store
	lent  bool // to another host (Lend): it has no device, and is no attachment of this node

	mu     sync.Mutex
	att    host.Attachment
	dev    host.Device // duplicates of its own
	worker Worker      // nil once it was stopped
	dirty  bool        // stopped, but not cleanly: it is checked before its release
	lost   error       // what a stop that was not clean lost, for the caller who completes the detach
}

func (a *attached) close() { host.Held{Device: a.dev}.Close() }

// view is the attachment as it is now.
func (a *attached) view() host.Attachment {
	a.mu.Lock()
	defer a.mu.Unlock()
	v := a.att
	if a.worker != nil {
		st := a.worker.State()
		v.WorkerPID, v.Restarts, v.Trouble = st.PID, v.Restarts+st.Restarts, st.Trouble
		if st.Size > 0 {
			v.Size = st.Size
		}
	}
	return v
}

func (a *attached) set(w Worker) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.worker = w
}

// held is what a holder keeps: duplicates, and the pidfd of the worker if there is one just now.
func (a *attached) held() (host.Held, error) {
	h, err := host.Held{Attachment: a.view(), Device: a.dev}.Dup()
	if err != nil {
		return h, err
	}
	a.mu.Lock()
	w := a.worker
	a.mu.Unlock()
	if w != nil {
		// Without a pidfd the successor relies on the claim of the table alone.
		if h.Worker, err = w.PidFD(); err != nil && !errors.Is(err, fault.Unavailable) {
			h.Close()
			return host.Held{}, err
		}
	}
	return h, nil
}

// Attach implements host.Attacher. Steps:
//
//  1. a transport gives the slot                      hostd dies: the bus remembers it, the next attach gets it again
//  2. the manifest names this host (a new epoch)      hostd dies: this host acquires it again
//  3. the worker opens the disk and serves the device hostd dies: the worker with it; the caller's device is dead too
//
// A failure undoes them in the opposite order.
func (h *Host) Attach(ctx context.Context, req host.AttachRequest, dev host.Device) (host.Attachment, error) {
	end, err := h.begin(ctx, req.ID, "attach")
	if err != nil {
		return host.Attachment{}, err
	}
	defer end()
	if a := h.get(req.ID); a != nil {
		if a.lent {
			return host.Attachment{}, isLent(req.ID)
		}
		if a.worker == nil {
			return host.Attachment{}, fault.New(fault.Precondition, "Detach it first.", "disk %s is being detached", req.ID)
		}
		if a.att.ReadOnly != req.ReadOnly {
			return host.Attachment{}, fault.New(fault.Precondition, "Detach it first.",
				"disk %s is attached with readOnly=%v, asked for is readOnly=%v", req.ID, a.att.ReadOnly, req.ReadOnly)
		}
		return a.view(), nil
	}
	if h.c.Workers == nil || h.c.Transports == nil {
		return host.Attachment{}, fault.New(fault.Unsupported, "Use a host with workers.", "host %q attaches no disks", h.c.Host.Host)
	}
	if dev.Fuse == nil || dev.Table == nil {
		return host.Attachment{}, fault.New(fault.Invalid, "", "attach of disk %s without a device", req.ID)
	}
	if _, err := h.c.Transports.Order(req.Transport); err != nil {
		return host.Attachment{}, err
	}
	s, v, err := h.find(ctx, req.ID)
	if err != nil {
		return host.Attachment{}, err
	}
	return h.attach(ctx, s, v, req, dev)
}

func (h *Host) attach(ctx context.Context, s *store, v *volume.Volumes, req host.AttachRequest, dev host.Device) (host.Attachment, error) {
	d, err := v.Get(ctx, req.ID)
	if err != nil {
		return host.Attachment{}, err
	}
	chosen, err := h.c.Transports.Attach(ctx, req.Transport, hotadd.Disk{ID: d.ID, UUID: d.UUID})
	if err != nil {
		return host.Attachment{}, err
	}
	for _, skip := range chosen.Skipped {
		h.log.Info("transport not used", "disk", d.ID, "transport", skip.Name, "reason", skip.Reason)
	}
	o, err := v.OpenForAttach(ctx, req.ID, req.ReadOnly)
	if err != nil {
		return host.Attachment{}, noted(s, errors.Join(err, h.freeSlot(ctx, chosen.Name, req.ID)))
	}
	defer o.Dir.Close()
	if o.ReadOnly {
		if dev.Scratch, err = newScratch(h.c.StateDir); err != nil {
			return host.Attachment{}, errors.Join(err, h.freeSlot(ctx, chosen.Name, req.ID))
		}
		defer dev.Scratch.Close()
	}
	a := &attached{store: s, att: host.Attachment{
		ID: o.ID, Host: h.c.Host.Host, Slot: host.Slot(chosen.Slot), UUID: o.UUID, Size: o.Size, ReadOnly: o.ReadOnly,
		Transport: chosen.Name, Skipped: skipped(chosen), Epoch: o.Epoch, Since: time.Now().UTC().Truncate(time.Second),
	}}
	if err := h.serve(ctx, a, o, dev, nil); err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
		if !o.ReadOnly && o.Before == lease.Clean {
			// Nobody had a device to write to, so the disk is as clean as it was.
			err = errors.Join(err, v.Release(undo, o.ID, o.Epoch, false))
		}
		return host.Attachment{}, noted(s, errors.Join(err, h.freeSlot(undo, chosen.Name, req.ID)))
	}
	s.background.due(o.ID)
	h.log.Info("disk attached", "disk", o.ID, "slot", chosen.Slot, "epoch", o.Epoch, "readOnly", o.ReadOnly, "before", o.Before)
	return a.view(), nil
}

func skipped(c transport.Chosen) (list []host.Skipped) {
	for _, s := range c.Skipped {
		list = append(list, host.NotUsed(s.Name, s.Reason))
	}
	return list
}

// undoTime bounds what a failed attach undoes.
const undoTime = 30 * time.Second

func (h *Host) freeSlot(ctx context.Context, name, id string) error {
	return h.c.Transports.Detach(context.WithoutCancel(ctx), name, id)
}

// serve starts a worker and makes the disk known. old is the process that served it before, or nil.
func (h *Host) serve(ctx context.Context, a *attached, o *volume.Opened, dev host.Device, old *os.File) error {
	dup, err := host.Held{Attachment: a.att, Device: dev}.Dup()
	if err != nil {
		return err
	}
	a.dev = dup.Device
	// Known before it is served: whatever happens next, Detach and Handover find it.
	h.put(a)
	w, err := h.c.Workers.Start(ctx, WorkerSpec{
		ID: o.ID, Datastore: a.store.cfg.Name, Lent: a.lent, Dir: o.Dir, Links: o.Refs, Device: a.dev, ReadOnly: o.ReadOnly, Format: o.Format, NoLocks: o.NoLocks,
	}, old)
	if err != nil {
		h.drop(a)
		return fault.Wrap(err, "serve disk %s", o.ID)
	}
	a.set(w)
	return nil
}

// Attachments implements host.Attacher.
func (h *Host) Attachments(context.Context) ([]host.Attachment, error) {
	if err := h.working(); err != nil {
		return nil, err
	}
	list := []host.Attachment{}
	for _, a := range h.own() {
		list = append(list, a.view())
	}
	return list, nil
}

// Grown implements host.Attacher.
func (h *Host) Grown(ctx context.Context, id string) (host.Attachment, error) {
	end, err := h.begin(ctx, id, "grow")
	if err != nil {
		return host.Attachment{}, err
	}
	defer end()
	a := h.get(id)
	if a == nil || a.lent || a.worker == nil {
		return host.Attachment{}, fault.New(fault.NotFound, "", "disk %s is not attached on host %q", id, h.c.Host.Host)
	}
	if !a.att.ReadOnly {
		// A growth to the size that it has makes the kernel ask again, and nothing else.
		if err := a.worker.Grow(ctx, a.view().Size); err != nil {
			return host.Attachment{}, err
		}
	}
	return a.view(), nil
}

// expand grows a disk, through its worker if it has one here.
func (h *Host) expand(ctx context.Context, v *volume.Volumes, id string, size int64) (host.Disk, error) {
	a := h.get(id)
	if a != nil && a.att.ReadOnly {
		return host.Disk{}, fault.New(fault.Precondition, "Detach it first.", "disk %s is attached read-only", id)
	}
	if _, err := h.server(v, id); err != nil {
		return host.Disk{}, err
	}
	if a == nil {
		return v.Expand(ctx, id, size, nil)
	}
	d, err := v.Expand(ctx, id, size, growing{a.worker, v, id})
	if err != nil {
		return d, err
	}
	a.mu.Lock()
	a.att.Size = d.Size
	a.mu.Unlock()
	return d, nil
}

// growing is a worker during an expansion: one that replaces it meanwhile must open the head as far as it came.
type growing struct {
	Worker
	v  *volume.Volumes
	id string
}

func (g growing) Grow(ctx context.Context, size int64) error {
	if links, err := g.v.Links(g.id); err == nil {
		g.SetLinks(volume.LooseRefs(links))
	}
	return g.Worker.Grow(ctx, size)
}
