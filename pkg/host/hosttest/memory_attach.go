package hosttest

import (
	"context"
	"maps"
	"os"
	"slices"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// Attach implements host.Attacher.
func (m *Memory) Attach(ctx context.Context, req host.AttachRequest, dev host.Device) (host.Attachment, error) {
	leave, err := m.enter(ctx, "attach", req.ID)
	if err != nil {
		return host.Attachment{}, err
	}
	defer leave()
	if m.handedOver[m.node] {
		return host.Attachment{}, fault.New(fault.Unavailable, "Try again.", "host %q handed its disks over", m.node)
	}
	d, err := m.find(req.ID)
	if err != nil {
		return host.Attachment{}, err
	}
	if h, ok := m.held[m.node][req.ID]; ok {
		if h.Attachment.ReadOnly != req.ReadOnly {
			return host.Attachment{}, fault.New(fault.Precondition, "Detach it first.", "disk %s is attached in the other mode", req.ID)
		}
		return h.Attachment, nil
	}
	for n, held := range m.held {
		if h, ok := held[req.ID]; ok && !(h.Attachment.ReadOnly && req.ReadOnly) {
			return host.Attachment{}, fault.New(fault.InUse, "Detach it there first.", "disk %s is held by host %q", req.ID, n)
		}
	}
	slot, ok := m.freeSlot()
	if !ok {
		return host.Attachment{}, fault.New(fault.Exhausted, "Detach a disk from this host.", "no slot is left on host %q", m.node)
	}
	a := host.Attachment{
		ID: d.ID, Host: m.node, Slot: slot, UUID: d.UUID, Size: d.Size, ReadOnly: req.ReadOnly,
		Transport: "hotadd", Since: since, WorkerPID: os.Getpid(),
	}
	if !req.ReadOnly {
		a.Epoch = 2
	}
	h, err := host.Held{Attachment: a, Device: dev}.Dup()
	if err != nil {
		return host.Attachment{}, err
	}
	m.held[m.node][req.ID] = h
	return a, nil
}

func (m *Memory) freeSlot() (host.Slot, bool) {
	taken := map[host.Slot]bool{}
	for _, h := range m.held[m.node] {
		taken[h.Attachment.Slot] = true
	}
	for c := range 4 {
		for u := range 16 {
			if s := (host.Slot{Controller: c, Unit: u}); u != 7 && !taken[s] {
				return s, true
			}
		}
	}
	return host.Slot{}, false
}

// Detach implements host.Attacher.
func (m *Memory) Detach(ctx context.Context, id string) error {
	leave, err := m.enter(ctx, "detach", id)
	if err != nil {
		return err
	}
	defer leave()
	if h, ok := m.held[m.node][id]; ok {
		h.Close()
		delete(m.held[m.node], id)
	}
	return nil
}

// Attachments implements host.Attacher.
func (m *Memory) Attachments(ctx context.Context) ([]host.Attachment, error) {
	leave, err := m.enter(ctx, "attachments", "")
	if err != nil {
		return nil, err
	}
	defer leave()
	var list []host.Attachment
	for _, id := range slices.Sorted(maps.Keys(m.held[m.node])) {
		list = append(list, m.held[m.node][id].Attachment)
	}
	return list, nil
}

// Grown implements host.Attacher.
func (m *Memory) Grown(ctx context.Context, id string) (host.Attachment, error) {
	leave, err := m.enter(ctx, "grown", id)
	if err != nil {
		return host.Attachment{}, err
	}
	defer leave()
	h, ok := m.held[m.node][id]
	if !ok {
		return host.Attachment{}, fault.New(fault.NotFound, "", "disk %s is not attached on host %q", id, m.node)
	}
	return h.Attachment, nil
}

// Sync implements host.Keeper.
func (m *Memory) Sync(ctx context.Context, held []host.Held) ([]host.Held, error) {
	leave, err := m.enter(ctx, "sync", "")
	if err != nil {
		return nil, err
	}
	defer leave()
	mine := m.held[m.node]
	for _, h := range held {
		id := h.Attachment.ID
		if _, ok := mine[id]; ok || m.disks[id] == nil {
			continue
		}
		dup, err := h.Dup()
		if err != nil {
			return nil, err
		}
		dup.Attachment.Restarts++
		mine[id] = dup
	}
	m.handedOver[m.node] = false
	return host.DupAll(slices.Collect(maps.Values(mine)))
}

// Handover implements host.Keeper.
func (m *Memory) Handover(ctx context.Context, take func(host.Held) error) error {
	leave, err := m.enter(ctx, "handover", "")
	if err != nil {
		return err
	}
	defer leave()
	m.handedOver[m.node] = true
	for id, h := range m.held[m.node] {
		dup, err := h.Dup()
		if err == nil {
			err = take(dup)
		}
		if err != nil {
			return err
		}
		h.Close()
		delete(m.held[m.node], id)
	}
	return nil
}
