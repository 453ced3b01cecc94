package lun

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/hotadd"
	"github.com/vmdk-csi/vmdk-csi/pkg/remote"
)

func compare(a, b string) int { return strings.Compare(a, b) }

// adopters is how many disks are adopted at once: each waits for the death of a process and the start of another.
const adopters = 4

// Adopter is a base that can take a disk over from another process.
type Adopter interface {
	Adopt(ctx context.Context, held host.Held) error
}

// Sync implements host.Keeper. A disk that cannot be adopted is logged and left out of the answer: the holder keeps it and brings it
// again.
func (h *Host) Sync(ctx context.Context, held []host.Held) ([]host.Held, error) {
	if err := h.working(); err != nil {
		return nil, err // what its successor holds is not known here
	}
	var theirs []host.Held
	var wg sync.WaitGroup
	turns := make(chan struct{}, adopters)
	for _, one := range held {
		if h.storeOf(one.Attachment) == nil {
			theirs = append(theirs, one)
			continue
		}
		if h.get(one.Attachment.ID) != nil {
			continue
		}
		turns <- struct{}{}
		wg.Go(func() {
			defer func() { <-turns }()
			if err := h.Adopt(ctx, one); err != nil {
				h.log.Warn("a held disk was not adopted", "disk", one.Attachment.ID, "error", err)
			}
		})
	}
	base, err := h.c.Base.Sync(ctx, theirs)
	wg.Wait()
	if err != nil {
		return nil, err
	}
	mine := base
	defer func() { host.CloseAll(mine) }()
	for _, a := range h.all() {
		one, err := a.held()
		if err != nil {
			return nil, err
		}
		mine = append(mine, one)
	}
	return host.DupAll(mine)
}

// Adopt serves a disk that another process's worker served, if the datastore's server says that it is this node's still. The
// descriptors stay the caller's. Kinds: Precondition (it is not), NotFound, Unavailable.
func (h *Host) Adopt(ctx context.Context, held host.Held) error {
	att := held.Attachment
	s := h.storeOf(att)
	if s == nil {
		base, ok := h.c.Base.(Adopter)
		if !ok {
			return fault.New(fault.Unsupported, "", "the host of datastore %q takes no disk over", att.Datastore)
		}
		return base.Adopt(ctx, held)
	}
	end, err := h.begin(att.ID, "adopt")
	if err != nil {
		return err
	}
	defer end()
	if h.get(att.ID) != nil {
		return nil
	}
	return h.adopt(ctx, s, held)
}

func (h *Host) adopt(ctx context.Context, s *datastore, held host.Held) error {
	att := held.Attachment
	if held.Device.Fuse == nil || held.Device.Table == nil {
		return fault.New(fault.Invalid, "", "disk %s is held without its device", att.ID)
	}
	if h.c.Workers == nil {
		return fault.New(fault.Unsupported, "", "host %q attaches no disks", h.c.Node)
	}
	d, err := s.Client.Get(ctx, att.ID)
	if err != nil {
		return err
	}
	if att.Host != h.c.Node || !h.hadIt(d) {
		return fault.New(fault.Precondition, "Attach it again.", "disk %s was attached on host %q, and is not open for host %q any more", att.ID, att.Host, h.c.Node)
	}
	o, err := s.Client.OpenVolume(ctx, att.ID, att.ReadOnly)
	if err != nil {
		return err
	}
	slot, err := h.c.Bus.Attach(ctx, hotadd.Disk{ID: att.ID, UUID: d.UUID})
	if err != nil {
		return err
	}
	a := &attached{store: s}
	// The server's epoch: one that was started anew has another.
	att.Slot, att.Size, att.UUID, att.Epoch = host.Slot(slot), o.Disk.Size, d.UUID, epoch(o, att.ReadOnly)
	if s.directory {
		a.order, a.before = []string{remote.NBD}, att.Skipped
	} else if a.order, err = orderOf(att); err != nil {
		return err
	}
	att.Restarts++
	att.WorkerPID = 0 // until the new one serves
	a.att = att
	if err := h.serve(ctx, a, held.Device, held.Worker); err != nil {
		return err
	}
	h.log.Info("disk adopted", "disk", att.ID, "datastore", s.Name, "epoch", att.Epoch, "slot", slot)
	return nil
}

// orderOf is the order that an attachment was made with: what was skipped, then what served, then NBD.
func orderOf(att host.Attachment) ([]string, error) {
	var names []string
	for _, s := range att.Skipped {
		names = append(names, s.Transport)
	}
	if att.Transport != "" {
		names = append(names, att.Transport)
	}
	if len(names) == 0 {
		names = []string{remote.SAN}
	}
	return parseOrder(strings.Join(names, ":"))
}

// Handover implements host.Keeper: the disks of LUNs, then those of the base. When take fails the disk is served here again, and so
// are those that were not given yet; the ones before it belong to the successor.
func (h *Host) Handover(ctx context.Context, take func(host.Held) error) (err error) {
	h.mu.Lock()
	if h.given {
		h.mu.Unlock()
		return nil
	}
	h.given = true
	h.mu.Unlock()
	defer func() {
		if err != nil {
			h.mu.Lock()
			h.given = false
			h.mu.Unlock()
		}
	}()
	for {
		// Operations that began before may still attach a disk: ask again until there is none.
		list := h.all()
		if len(list) == 0 && h.busy.Idle() {
			return h.c.Base.Handover(ctx, take)
		}
		for _, a := range list {
			if err := h.give(ctx, a, take); err != nil {
				return fault.Wrap(err, "hand over disk %s", a.att.ID)
			}
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

func (h *Host) give(ctx context.Context, a *attached, take func(host.Held) error) error {
	id := a.att.ID
	end, err := h.wait(ctx, id)
	if err != nil {
		return err
	}
	defer end()
	if h.get(id) != a {
		return nil // detached meanwhile
	}
	if a.worker == nil {
		// Stopped but not closed: the successor closes it when it is asked to detach it.
		h.drop(a)
		return nil
	}
	held, err := a.held()
	if err != nil {
		return err
	}
	if err := a.worker.Kill(); err != nil {
		held.Close()
		return err
	}
	keep, err := held.Dup()
	if err != nil {
		held.Close()
		return err
	}
	defer keep.Close()
	if err := take(held); err != nil {
		h.drop(a)
		return errors.Join(err, h.adopt(context.WithoutCancel(ctx), a.store, keep))
	}
	h.drop(a)
	return nil
}

// wait is begin for a handover: it waits for the operation that runs.
func (h *Host) wait(ctx context.Context, id string) (func(), error) {
	for {
		end, err := h.busy.TryLock(id, "hand over")
		if err == nil {
			return end, nil
		}
		if err := pause(ctx); err != nil {
			return nil, err
		}
	}
}

// pause is between two looks at what is waited for.
func pause(ctx context.Context) error {
	t := time.NewTimer(5 * time.Millisecond)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return fault.Wrap(ctx.Err(), "wait for an operation that runs")
	}
}
