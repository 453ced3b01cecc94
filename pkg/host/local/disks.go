package local

import (
	"context"
	"errors"
	"slices"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/hotadd"
	"github.com/vmdk-csi/vmdk-csi/pkg/volume"
)

// Create implements host.Disks.
func (h *Host) Create(ctx context.Context, spec host.DiskSpec) (host.Disk, error) {
	spec, err := spec.Normalize()
	if err != nil {
		return host.Disk{}, err
	}
	if spec.Host != "" && spec.Host != h.c.Host.Host {
		return host.Disk{}, fault.New(fault.NotFound, "Ask that host.", "host %q is not this one, %q", spec.Host, h.c.Host.Host)
	}
	s, err := h.store(spec.Datastore)
	if err != nil {
		return host.Disk{}, err
	}
	id := host.DiskID(spec.Name)
	end, err := h.begin(ctx, id, "create")
	if err != nil {
		return host.Disk{}, err
	}
	defer end()
	if err := h.elsewhere(id, s); err != nil {
		return host.Disk{}, err
	}
	v, err := s.open()
	if err != nil {
		return host.Disk{}, err
	}
	var d host.Disk
	if spec.Source != nil {
		d, err = h.createFrom(ctx, s, v, spec)
	} else {
		d, err = v.Create(ctx, spec)
	}
	if err != nil {
		return host.Disk{}, noted(s, err)
	}
	h.places.put(id, s)
	return h.complete(s, d)
}

// complete adds claims and attachments.
func (h *Host) complete(s *store, d host.Disk) (host.Disk, error) {
	s.dress(&d)
	s.background.tell(&d)
	var err error
	if d.Claims, err = h.claims.of(d.ID); err != nil {
		return host.Disk{}, err
	}
	if a := h.get(d.ID); a != nil {
		d.Attachments = []host.Attachment{a.view()}
	}
	return d, nil
}

// Delete implements host.Disks.
func (h *Host) Delete(ctx context.Context, id string) error {
	if !host.ValidDiskID(id) {
		return nil // no disk has such an id
	}
	end, err := h.begin(ctx, id, "delete")
	if err != nil {
		return err
	}
	defer end()
	if a := h.get(id); a != nil {
		return fault.New(fault.InUse, "Detach it first.", "disk %s is attached on host %q", id, h.c.Host.Host)
	}
	claimed, err := h.claims.of(id)
	if err != nil {
		return err
	}
	if len(claimed) > 0 {
		return fault.New(fault.InUse, "Detach it there first.", "disk %s is claimed by node %q", id, claimed[0].Node)
	}
	return h.remove(ctx, id)
}

// remove deletes the disk where it is. When it is nowhere, remainders of earlier deletions are swept, and then a datastore
// that is not ready matters: the disk may be there.
func (h *Host) remove(ctx context.Context, id string) error {
	a, missing, err := h.search(ctx, id, func(v *volume.Volumes) (bool, error) { return v.Has(id) })
	if err != nil {
		return err
	}
	if a.has {
		held, err := a.v.Held(id)
		if err != nil && !errors.Is(err, fault.NotFound) {
			return err
		}
		if held.Epoch != 0 && !held.Rebooted {
			return fault.New(fault.InUse, "Detach it first.", "disk %s was attached on host %q and not detached", id, h.c.Host.Host)
		}
		if err := a.v.Delete(ctx, id); err != nil {
			return noted(a.s, err)
		}
		h.places.drop(id)
		a.s.background.due("") // its snapshots may need fewer links than it did, and other disks share them no more
		return nil
	}
	if missing == nil {
		h.askAll(h.told(ctx), 0, func(v *volume.Volumes) (bool, error) { return false, v.Delete(ctx, id) }, func(a answer) bool {
			err = errors.Join(err, a.err)
			return false
		})
		return err
	}
	return fault.New(fault.Unavailable, "", "whether disk %s is deleted is unknown: %w", id, missing)
}

// Get implements host.Disks.
func (h *Host) Get(ctx context.Context, id string) (host.Disk, error) {
	s, v, err := h.find(ctx, id)
	if err != nil {
		return host.Disk{}, err
	}
	d, err := v.Get(ctx, id)
	if err != nil {
		return host.Disk{}, err
	}
	return h.complete(s, d)
}

// List implements host.Disks. The token is the id of the last disk returned.
func (h *Host) List(ctx context.Context, max int, token string) ([]host.Disk, string, error) {
	if err := host.CheckList(max, token); err != nil {
		return nil, "", err
	}
	all, err := h.claims.all()
	if err != nil {
		return nil, "", err
	}
	var disks []host.Disk
	more := false
	for _, s := range h.stores {
		v, err := s.open()
		if err != nil {
			continue // its disks are unknown; Datastores says why
		}
		some, rest, err := v.List(ctx, max, token)
		if err != nil {
			return nil, "", err
		}
		more = more || rest
		for _, d := range some {
			s.dress(&d)
			s.background.tell(&d)
			d.Claims = all[d.ID]
			if a := h.get(d.ID); a != nil {
				d.Attachments = []host.Attachment{a.view()}
			}
			disks = append(disks, d)
		}
	}
	slices.SortFunc(disks, func(a, b host.Disk) int { return compare(a.ID, b.ID) })
	if max > 0 && len(disks) > max {
		disks, more = disks[:max], true
	}
	next := ""
	if more && len(disks) > 0 {
		next = disks[len(disks)-1].ID
	}
	return disks, next, nil
}

// Expand implements host.Disks.
func (h *Host) Expand(ctx context.Context, id string, size int64) (host.Disk, error) {
	if err := host.CheckSize(size); err != nil {
		return host.Disk{}, err
	}
	end, err := h.begin(ctx, id, "expand")
	if err != nil {
		return host.Disk{}, err
	}
	defer end()
	s, v, err := h.find(ctx, id)
	if err != nil {
		return host.Disk{}, err
	}
	d, err := h.expand(ctx, v, id, size)
	if err != nil {
		return host.Disk{}, noted(s, err)
	}
	return h.complete(s, d)
}

// Claim implements host.Claims.
func (h *Host) Claim(ctx context.Context, id string, c host.Claim) error {
	end, err := h.begin(ctx, id, "claim")
	if err != nil {
		return err
	}
	defer end()
	if d, err := h.Get(ctx, id); err != nil {
		return err
	} else if d.Phase == host.Retired {
		return fault.New(fault.NotFound, "", "disk %s does not exist: it was deleted, and its links stay for its snapshots", id)
	}
	if c.Node != h.c.Host.Host {
		return fault.New(fault.NotFound, "This host attaches disks for itself only.", "node %q is not this one, %q", c.Node, h.c.Host.Host)
	}
	return h.claims.change(id, func(all map[string][]host.Claim) ([]host.Claim, error) {
		next, err := host.AddClaim(id, all[id], c)
		if err == nil && len(all[id]) == 0 && len(all) >= hotadd.Slots {
			err = fault.New(fault.Exhausted, "Detach a disk from it, or use another node.",
				"node %q: all %d slots are claimed", c.Node, hotadd.Slots)
		}
		return next, err
	})
}

// Unclaim implements host.Claims.
func (h *Host) Unclaim(ctx context.Context, id, node string) error {
	if !host.ValidDiskID(id) || node != "" && node != h.c.Host.Host {
		return nil
	}
	end, err := h.begin(ctx, id, "unclaim")
	if err != nil {
		return err
	}
	defer end()
	if err := h.letGo(ctx, id); err != nil {
		return err
	}
	return h.claims.change(id, func(map[string][]host.Claim) ([]host.Claim, error) { return nil, nil })
}

// letGo makes sure that this host does not hold the disk. What an earlier start of this machine held is released here,
// after a check, because no process is left that could detach it.
func (h *Host) letGo(ctx context.Context, id string) error {
	if h.get(id) != nil {
		return fault.New(fault.InUse, "Try again when the node has let it go.", "disk %s is attached on node %q", id, h.c.Host.Host)
	}
	s, v, err := h.find(ctx, id)
	if errors.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	held, err := v.Held(id)
	switch {
	case errors.Is(err, fault.NotFound):
		return nil
	case err != nil:
		return err
	case held.Epoch == 0:
		return nil
	case !held.Rebooted:
		return fault.New(fault.InUse, "Try again when the node has let it go.", "disk %s was attached on node %q and not detached",
			id, h.c.Host.Host)
	}
	if err := v.Release(ctx, id, held.Epoch, true); err != nil {
		return noted(s, err)
	}
	h.log.Info("disk released that this host attached before its machine's last start", "disk", id, "epoch", held.Epoch)
	return nil
}
