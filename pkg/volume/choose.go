package volume

import (
	"context"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/datastore"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// longChain is from how many links on a merge is worth space that it does not give back.
const longChain = 8

// Why links that nobody needs are not merged now.
const waitsShared = "other disks share the links: their space comes back when those are deleted"

// unneeded are the boundaries, by the index of their lower link, at which no snapshot of the disk ends.
func unneeded(m datastore.Manifest) []int {
	var out []int
	for i := range m.Links[:len(m.Links)-1] {
		if !m.SnapshotAt(m.Links[i].Descriptor) {
			out = append(out, i)
		}
	}
	return out
}

// ways are the directions in which the links at a boundary may be merged. Down writes into the lower link, whose extents no
// other disk may share; no snapshot of this disk ends there. Up writes into the upper one. A lower link that others share
// stays on the datastore, so Up frees nothing then: it is done to keep a long chain short. Down from the head empties the head
// grain by grain, so nobody may share that either.
func ways(d fsx.Dir, m datastore.Manifest, lower int) (down, up bool, err error) {
	if down, err = unshared(d, m.Links[lower]); err != nil {
		return false, false, err
	}
	if up, err = unshared(d, m.Links[lower+1]); err != nil {
		return false, false, err
	}
	if lower+2 == len(m.Links) && !up {
		down = false
	}
	if !down && len(m.Links) <= longChain {
		up = false
	}
	return down, up, nil
}

// consolidation says what is left to merge; nil if nothing is.
func consolidation(d fsx.Dir, m datastore.Manifest) *host.Consolidation {
	todo := unneeded(m)
	if len(todo) == 0 {
		return nil
	}
	c := &host.Consolidation{Links: len(todo), Reason: waitsShared}
	for _, i := range todo {
		down, up, err := ways(d, m, i)
		if err != nil {
			c.Reason = err.Error()
		} else if down || up {
			c.Reason = ""
			return c
		}
	}
	return c
}

// choice is a merge to be done.
type choice struct {
	lower     int
	direction chain.Direction
}

// choose picks the next merge: the one that was begun, else the lowest boundary that can be merged; nil if none can, with the
// reason why it waits ("": nothing is left to do). The direction is left open where both are possible.
func choose(d fsx.Dir, m datastore.Manifest, want chain.Direction) (*choice, string, error) {
	todo := unneeded(m)
	if len(todo) == 0 {
		return nil, "", nil
	}
	var found *choice
	for _, i := range todo {
		down, up, err := ways(d, m, i)
		if err != nil {
			return nil, "", err
		}
		down, up = down && want != chain.Up, up && want != chain.Down
		c := &choice{lower: i}
		switch {
		case !down && !up:
			continue
		case !up:
			c.direction = chain.Down
		case !down:
			c.direction = chain.Up
		}
		if m.Merge != nil && m.Merge.Lower == m.Links[i].Descriptor {
			if begun := chain.Direction(m.Merge.Direction); c.direction == "" || c.direction == begun {
				c.direction = begun
				return c, "", nil
			}
		}
		if found == nil {
			found = c
		}
	}
	if found == nil {
		return nil, waitsShared, nil
	}
	return found, "", nil
}

// decide settles the direction of a choice that may go both ways: the one that copies less.
func (v *Volumes) decide(ctx context.Context, d fsx.Dir, m datastore.Manifest, c *choice, server Server) error {
	if c.direction != "" {
		return nil
	}
	var down, up int64
	var err error
	if server != nil {
		down, up, err = server.MergeCost(ctx, c.lower)
	} else {
		down, up, err = v.engine.MergeCost(ctx, d, m.Links, c.lower)
	}
	if err != nil {
		return fault.Wrap(err, "what a merge of %s costs", m.Links[c.lower].Descriptor)
	}
	c.direction = chain.Up
	if down <= up {
		c.direction = chain.Down
	}
	return nil
}
