package lun

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/sys"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/hotadd"
	"github.com/vmdk-csi/vmdk-csi/pkg/remote"
	"github.com/vmdk-csi/vmdk-csi/pkg/transport"
)

// attached is a disk that this node has. Its fields belong to who holds the disk's lock in Host.busy, but for view.
type attached struct {
	store *datastore
	order []string // of transports that were asked for
	// before is what was asked for before NBD, of a disk in a directory.
	before []host.Skipped

	mu     sync.Mutex
	att    host.Attachment
	dev    host.Device // duplicates of its own
	worker Worker      // nil once it was stopped
	lost   error       // what a stop that was not clean lost, for the caller who completes the detach
}

func (a *attached) close() { host.Held{Device: a.dev}.Close() }

// view is the attachment as it is now.
func (a *attached) view() host.Attachment {
	a.mu.Lock()
	defer a.mu.Unlock()
	v := a.att
	if a.worker == nil {
		return v
	}
	st := a.worker.State()
	v.WorkerPID, v.Restarts, v.Trouble = st.PID, v.Restarts+st.Restarts, st.Trouble
	if st.Size > 0 {
		v.Size = st.Size
	}
	if st.Transport != "" {
		v.Transport, v.Skipped = st.Transport, a.skipped(st)
	}
	return v
}

// skipped is what was asked for before the transport that serves.
func (a *attached) skipped(st WorkerState) (list []host.Skipped) {
	if a.store.directory {
		return slices.Clone(a.before)
	}
	for _, n := range a.order {
		if n == st.Transport {
			break
		}
		if n == transport.NameHotAdd {
			list = append(list, host.NotUsed(n, transport.NoHotAddOfLUN()))
		}
		for _, s := range st.Skipped {
			if s.Transport == n {
				list = append(list, s)
			}
		}
	}
	return list
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

// parseOrder reads an order of transports. NBD is always the last way: a disk whose map is recalled must go on.
func parseOrder(asked string) ([]string, error) {
	if asked == "" {
		return []string{remote.SAN, remote.NBD}, nil
	}
	names, err := transport.ParseOrder(asked)
	if err == nil && !slices.Contains(names, remote.NBD) {
		names = append(names, remote.NBD)
	}
	return names, err
}

// possible is what of an order a worker can do.
func possible(order []string) []string {
	return slices.DeleteFunc(slices.Clone(order), func(n string) bool { return n == transport.NameHotAdd })
}

// Attach implements host.Attacher. Steps:
//
//  1. the bus gives the slot                             hostd dies: the bus remembers it, the next attach gets it again
//  2. the datastore's server opens the disk for this node  hostd dies: the server finds it open for the next attach, or for a detach
//  3. the worker uses it and serves the device           hostd dies: the worker with it; the caller's device is dead too
//
// A failure undoes what this call did, in the opposite order.
func (h *Host) Attach(ctx context.Context, req host.AttachRequest, dev host.Device) (host.Attachment, error) {
	s, err := h.diskOn(ctx, req.ID)
	if err != nil {
		return host.Attachment{}, err
	}
	if s == nil {
		return h.attachDirectory(ctx, req, dev)
	}
	return h.attachTo(ctx, &attached{store: s}, req, dev)
}

// attachTo attaches a disk that another host has open for this one.
func (h *Host) attachTo(ctx context.Context, a *attached, req host.AttachRequest, dev host.Device) (host.Attachment, error) {
	end, err := h.begin(req.ID, "attach")
	if err != nil {
		return host.Attachment{}, err
	}
	defer end()
	if a := h.get(req.ID); a != nil {
		if a.worker == nil {
			return host.Attachment{}, fault.New(fault.Precondition, "Detach it first.", "disk %s is being detached", req.ID)
		}
		if a.att.ReadOnly != req.ReadOnly {
			return host.Attachment{}, fault.New(fault.Precondition, "Detach it first.",
				"disk %s is attached with readOnly=%v, asked for is readOnly=%v", req.ID, a.att.ReadOnly, req.ReadOnly)
		}
		return a.view(), nil
	}
	if h.c.Workers == nil {
		return host.Attachment{}, fault.New(fault.Unsupported, "Use a host with workers.", "host %q attaches no disks", h.c.Node)
	}
	if dev.Fuse == nil || dev.Table == nil {
		return host.Attachment{}, fault.New(fault.Invalid, "", "attach of disk %s without a device", req.ID)
	}
	if a.order, err = parseOrder(req.Transport); err != nil {
		return host.Attachment{}, err
	}
	if a.store.directory {
		if a.before == nil { // it is borrowed since an earlier process of this host
			at := max(0, slices.Index(a.order, remote.NBD))
			a.before = before(a.order[:at], fault.New(fault.InUse, "Detach it first.", "disk %s is attached through another host", req.ID))
		}
		a.order = []string{remote.NBD}
	}
	return h.attach(ctx, a, req, dev)
}

func (h *Host) attach(ctx context.Context, a *attached, req host.AttachRequest, dev host.Device) (host.Attachment, error) {
	d, err := a.store.Client.Get(ctx, req.ID)
	if err == nil {
		err = claimable(d)
	}
	if err != nil {
		return host.Attachment{}, h.forget(req.ID, err)
	}
	slot, err := h.c.Bus.Attach(ctx, hotadd.Disk{ID: d.ID, UUID: d.UUID})
	if err != nil {
		return host.Attachment{}, err
	}
	undo := func(err error) (host.Attachment, error) {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
		return host.Attachment{}, errors.Join(err, h.c.Bus.Detach(last, req.ID))
	}
	if err := h.borrow(req.ID, a.store); err != nil {
		return undo(err)
	}
	o, err := a.store.Client.OpenVolume(ctx, req.ID, req.ReadOnly)
	if err != nil {
		if !h.hadIt(d) && refused(err) {
			err = errors.Join(err, h.borrow(req.ID, nil))
		}
		return undo(err)
	}
	a.att = host.Attachment{ID: d.ID, Host: h.c.Node, Slot: host.Slot(slot), UUID: d.UUID, Size: o.Disk.Size, ReadOnly: req.ReadOnly,
		Epoch: epoch(o, req.ReadOnly), Datastore: a.store.Name, Since: time.Now().UTC().Truncate(time.Second)}
	if req.ReadOnly {
		dev.Scratch, err = sys.Scratch(h.c.StateDir, "redo")
	}
	if err == nil {
		err = h.serve(ctx, a, dev, nil)
	}
	if dev.Scratch != nil {
		dev.Scratch.Close()
	}
	if err != nil {
		if !h.hadIt(d) {
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
			defer cancel()
			cerr := a.store.Client.CloseVolume(last, req.ID)
			if cerr == nil {
				cerr = h.borrow(req.ID, nil)
			}
			err = errors.Join(err, cerr)
		}
		return undo(err)
	}
	v := a.view()
	h.log.Info("disk attached", "disk", v.ID, "datastore", a.store.Name, "slot", slot, "epoch", v.Epoch, "readOnly", v.ReadOnly, "transport", v.Transport)
	return v, nil
}

// undoTime bounds what a failed attach undoes.
const undoTime = 30 * time.Second

// epoch is what the attachment says: a reader owns nothing.
func epoch(o remote.Opened, readOnly bool) int64 {
	if readOnly {
		return 0
	}
	return o.Epoch
}

// hadIt says that the server had the disk open for this node before.
func (h *Host) hadIt(d host.Disk) bool {
	return slices.ContainsFunc(d.Attachments, func(a host.Attachment) bool { return a.Host == h.c.Node })
}

// serve starts a worker and makes the disk known. old is the process that served it before, or nil.
func (h *Host) serve(ctx context.Context, a *attached, dev host.Device, old *os.File) error {
	dup, err := host.Held{Attachment: a.att, Device: dev}.Dup()
	if err != nil {
		return err
	}
	a.dev = dup.Device
	// Known before it is served: whatever happens next, Detach and Handover find it.
	h.put(a)
	w, err := h.c.Workers.Start(ctx, WorkerSpec{
		ID: a.att.ID, Datastore: a.store.Name, Device: a.dev, ReadOnly: a.att.ReadOnly, Order: possible(a.order)}, old)
	if err != nil {
		h.drop(a)
		return fault.Wrap(err, "serve disk %s", a.att.ID)
	}
	a.set(w)
	return nil
}

// Attachments implements host.Attacher.
func (h *Host) Attachments(ctx context.Context) ([]host.Attachment, error) {
	list, err := h.c.Base.Attachments(ctx)
	if err != nil {
		return nil, err
	}
	if err := h.working(); err != nil {
		return nil, err
	}
	for _, a := range h.all() {
		list = append(list, a.view())
	}
	slices.SortFunc(list, func(a, b host.Attachment) int { return compare(a.ID, b.ID) })
	return list, nil
}

// Grown implements host.Attacher.
func (h *Host) Grown(ctx context.Context, id string) (host.Attachment, error) {
	if h.get(id) == nil {
		return h.c.Base.Grown(ctx, id)
	}
	end, err := h.begin(id, "grow")
	if err != nil {
		return host.Attachment{}, err
	}
	defer end()
	a := h.get(id)
	if a == nil || a.worker == nil {
		return host.Attachment{}, fault.New(fault.NotFound, "", "disk %s is not attached on host %q", id, h.c.Node)
	}
	if !a.att.ReadOnly {
		if err := a.worker.Grow(ctx, a.view().Size); err != nil {
			return host.Attachment{}, err
		}
	}
	return a.view(), nil
}

// transports is how this host reaches the disks of a LUN; err says why its server does not answer.
func (h *Host) transports(ctx context.Context, s *datastore, err error) []host.TransportView {
	san := host.TransportView{Transport: transport.NameSAN}
	nbd := host.TransportView{Transport: transport.NameNBD, Usable: err == nil, Reason: fault.From(err)}
	hotAdd := host.TransportView{Transport: transport.NameHotAdd, Reason: transport.NoHotAddOfLUN()}
	if err == nil {
		nbd.Detail = "the datastore's metadata server"
	}
	switch {
	case h.c.Workers == nil:
		why := fault.New(fault.Unsupported, "Use a host with workers.", "host %q attaches no disks", h.c.Node)
		san.Reason, nbd.Usable, nbd.Reason, nbd.Detail = why, false, why, ""
	case s.SAN == nil:
		san.Reason = fault.New(fault.Unsupported, "Give this host a path to the LUN.", "host %q has no path to the LUN", h.c.Node)
	default:
		detail, err := s.SAN(ctx)
		san.Usable, san.Detail, san.Reason = err == nil, detail, fault.From(err)
	}
	return []host.TransportView{san, hotAdd, nbd}
}
