package lun

import (
	"context"
	"slices"
	"sync"

	"github.com/vmdk-csi/vmdk-csi/internal/statefile"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/hotadd"
)

// claims is the file of claims of disks on LUNs: disk id to claims. It is read by each operation, so that a successor process sees its
// predecessor's.
type claims struct {
	mu   sync.Mutex
	path string
}

func (c *claims) all() (map[string][]host.Claim, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return statefile.Load[map[string][]host.Claim](c.path)
}

func (c *claims) of(id string) ([]host.Claim, error) {
	m, err := c.all()
	return m[id], err
}

// change makes f of all claims what the file holds, unless f fails or changes nothing.
func (c *claims) change(id string, f func(all map[string][]host.Claim) ([]host.Claim, error)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	m, err := statefile.Load[map[string][]host.Claim](c.path)
	if err != nil {
		return err
	}
	next, err := f(m)
	if err != nil || slices.Equal(next, m[id]) {
		return err
	}
	if m[id] = next; len(next) == 0 {
		delete(m, id)
	}
	return statefile.Save(c.path, m)
}

// Claim implements host.Claims.
func (h *Host) Claim(ctx context.Context, id string, c host.Claim) error {
	s, err := h.diskOn(ctx, id)
	if err != nil {
		return err
	}
	if s == nil {
		return h.c.Base.Claim(ctx, id, c)
	}
	end, err := h.begin(id, "claim")
	if err != nil {
		return err
	}
	defer end()
	d, err := s.Client.Get(ctx, id)
	if err == nil {
		err = claimable(d)
	}
	if err != nil {
		return h.forget(id, err)
	}
	if c.Node != h.c.Node {
		return fault.New(fault.NotFound, "This host attaches disks for itself only.", "node %q is not this one, %q", c.Node, h.c.Node)
	}
	return h.claims.change(id, func(all map[string][]host.Claim) ([]host.Claim, error) {
		next, err := host.AddClaim(id, all[id], c)
		if err == nil && len(all[id]) == 0 && len(all) >= hotadd.Slots {
			err = fault.New(fault.Exhausted, "Detach a disk from it, or use another node.", "node %q: all %d slots are claimed", c.Node, hotadd.Slots)
		}
		return next, err
	})
}

// Unclaim implements host.Claims.
func (h *Host) Unclaim(ctx context.Context, id, node string) error {
	mine, err := h.claims.of(id)
	if err != nil {
		return err
	}
	if len(mine) == 0 && h.get(id) == nil {
		return h.c.Base.Unclaim(ctx, id, node)
	}
	if node != "" && node != h.c.Node {
		return nil
	}
	end, err := h.begin(id, "unclaim")
	if err != nil {
		return err
	}
	defer end()
	if h.get(id) != nil {
		return fault.New(fault.InUse, "Try again when the node has let it go.", "disk %s is attached on node %q", id, h.c.Node)
	}
	return h.claims.change(id, func(map[string][]host.Claim) ([]host.Claim, error) { return nil, nil })
}
