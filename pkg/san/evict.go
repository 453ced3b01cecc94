package san

import (
	"context"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Evict ends the grants that a node has of a volume without its help, and returns when it has none:
//
//  1. They are not renewed any more, and who listens for a recall hears that they have ended. (Crash: the next server knows them as
//     grants that nobody evicts; who asked asks again.)
//  2. The node is fenced; what cannot be fenced has a lease, MaxIO and Margin that pass (Expire must be called meanwhile).
//  3. The grants end, with all that a fenced node has. (Crash before: as 1.)
//  4. The LUN is flushed: what the node wrote and could not flush is in the cache that all paths share.
//
// Kinds: InProgress (ctx ended first), and those of the Fencer.
func (s *Server) Evict(ctx context.Context, volume, node string) error {
	for {
		s.mu.Lock()
		var fence *grant
		out, news := 0, false
		for id, g := range s.grants {
			if id >= pendingGrant || g.Volume != volume || g.Node != node {
				continue
			}
			out++
			news = news || !g.evicted
			g.evicted = true
			if !g.ending && s.prompt(g) {
				fence = g
			}
		}
		if fence != nil {
			fence.ending = true
		}
		if news {
			s.tell()
		}
		ended := s.ended
		s.mu.Unlock()
		switch {
		case out == 0:
			return fault.Wrap(s.c.Store.Flush(), "flush the LUN for node %s", node)
		case fence != nil:
			if err := s.end(ctx, fence); err != nil {
				s.mu.Lock()
				fence.ending = false
				s.mu.Unlock()
				return fault.Wrap(err, "fence node %s, from which volume %s is taken", node, volume)
			}
			continue
		}
		select {
		case <-ended:
		case <-ctx.Done():
			return fault.New(fault.InProgress, "Try again: its lease passes.", "node %s has %d block maps of volume %s: %w", node, out, volume, ctx.Err())
		}
	}
}

// prompt says that the holder can be cut off before its lease is over.
func (s *Server) prompt(g *grant) bool {
	if s.c.Fencer == nil {
		return false
	}
	t, ok := s.c.Fencer.(Timed)
	return !ok || !t.Timed(g.Key)
}
