package local

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/hotadd"
)

// adopters is how many disks are adopted at once: each waits for the death of a process and the start of another.
const adopters = 4

// Sync implements host.Keeper. A disk that cannot be adopted is logged and left out of the answer: the holder keeps it and
// brings it again.
func (h *Host) Sync(ctx context.Context, held []host.Held) ([]host.Held, error) {
	if err := h.working(); err != nil {
		return nil, err // what its successor holds is not known here
	}
	var wg sync.WaitGroup
	turns := make(chan struct{}, adopters)
	for _, one := range held {
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
	wg.Wait()
	var mine []host.Held
	defer func() { host.CloseAll(mine) }()
	for _, a := range h.own() {
		one, err := a.held()
		if err != nil {
			return nil, err
		}
		mine = append(mine, one)
	}
	return host.DupAll(mine)
}

// Adopt serves a disk that another process's worker served, under the epoch that it has. The descriptors stay the
// caller's. Kinds: Precondition (this host does not hold that epoch any more), NotFound, Unavailable.
func (h *Host) Adopt(ctx context.Context, held host.Held) error {
	id := held.Attachment.ID
	end, err := h.begin(ctx, id, "adopt")
	if err != nil {
		return err
	}
	defer end()
	if h.get(id) != nil {
		return nil
	}
	return h.adopt(ctx, held)
}

func (h *Host) adopt(ctx context.Context, held host.Held) error {
	att := held.Attachment
	if held.Device.Fuse == nil || held.Device.Table == nil {
		return fault.New(fault.Invalid, "", "disk %s is held without its device", att.ID)
	}
	if h.c.Workers == nil || h.c.Transports == nil {
		return fault.New(fault.Unsupported, "", "host %q attaches no disks", h.c.Host.Host)
	}
	s, v, err := h.find(ctx, att.ID)
	if err != nil {
		return err
	}
	o, err := v.Reopen(ctx, att.ID, att.Epoch)
	if err != nil {
		return err
	}
	defer o.Dir.Close()
	chosen, err := h.c.Transports.Attach(ctx, att.Transport, hotadd.Disk{ID: att.ID, UUID: o.UUID})
	if err != nil {
		return err
	}
	att.Slot, att.Host, att.Size, att.UUID, att.ReadOnly = host.Slot(chosen.Slot), h.c.Host.Host, o.Size, o.UUID, o.ReadOnly
	att.Restarts++
	att.WorkerPID = 0 // until the new one serves
	a := &attached{store: s, att: att}
	if err := h.serve(ctx, a, o, held.Device, held.Worker); err != nil {
		return err
	}
	s.background.due(att.ID) // what its predecessor had begun goes on
	h.log.Info("disk adopted", "disk", att.ID, "epoch", att.Epoch, "slot", chosen.Slot)
	return nil
}

// Handover implements host.Keeper. For each disk: kill its worker, give the descriptors to take, which starts another
// worker, forget it. When take fails the disk is served here again, and so are those that were not given yet; the
// ones before it belong to the successor, who brings them back through their holder if it dies.
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
	for _, s := range h.stores {
		s.background.stop() // none begins any more
	}
	for {
		// Operations that began before may still attach a disk: ask again until there is none.
		list := h.own()
		if len(list) == 0 {
			if idle := h.busy.Idle(); idle {
				h.log.Info("everything is handed over")
				return nil
			}
			if err := sleep(ctx, 5*time.Millisecond); err != nil {
				return err
			}
			continue
		}
		for _, a := range list {
			if err := h.give(ctx, a, take); err != nil {
				return fault.Wrap(err, "hand over disk %s", a.att.ID)
			}
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
		// Stopped but not released: the successor releases it when it is asked to detach it.
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
		return errors.Join(err, h.adopt(context.WithoutCancel(ctx), keep))
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
		if gave, gerr := h.giveWay(ctx, id); gerr != nil {
			return nil, gerr
		} else if gave {
			continue
		}
		if err := sleep(ctx, 5*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return fault.Wrap(ctx.Err(), "wait for an operation that runs")
	}
}
