package san

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Renewal is the answer to a Renew.
type Renewal struct {
	Lease    time.Duration `json:"lease"`
	Recalled bool          `json:"recalled,omitempty"` // flush, return the map, and use another transport
}

// Renew gives a grant one more lease. NotFound: the map is no longer its holder's, who must forget it at once.
func (s *Server) Renew(_ context.Context, id, generation uint64, digest string) (Renewal, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.grants[id]
	if g == nil || g.ending || g.evicted || g.generation != generation || g.Digest != digest {
		return Renewal{}, fault.New(fault.NotFound, "Get a new map.", "grant %d of generation %d has ended", id, generation)
	}
	g.until = s.deadline()
	return Renewal{Lease: s.c.Lease, Recalled: g.recalled}, nil
}

// Return ends a grant; its holder has nothing under way and has flushed what it wrote. One that has ended is a no-op.
func (s *Server) Return(_ context.Context, id, generation uint64) error {
	s.mu.Lock()
	g := s.grants[id]
	if g == nil || g.generation != generation || g.ending {
		s.mu.Unlock()
		return nil
	}
	delete(s.grants, id)
	s.mu.Unlock()
	s.finish(g)
	return nil
}

// Recall asks for all maps of a volume back and waits until they are: returned, or ended because their holders were silent
// (Expire must be called meanwhile). Nodes hear of it with their next renewal.
func (s *Server) Recall(ctx context.Context, volume string) error {
	for {
		s.mu.Lock()
		out := 0
		for _, g := range s.grants {
			if g.Volume == volume {
				if !g.recalled {
					g.recalled = true
					s.tell()
				}
				out++
			}
		}
		ended := s.ended
		s.mu.Unlock()
		if out == 0 {
			return nil
		}
		select {
		case <-ended:
		case <-ctx.Done():
			return fault.New(fault.InProgress, "Try again: it is being taken back.", "volume %s has %d block maps out: %w", volume, out, ctx.Err())
		}
	}
}

// Recalled waits until the server wants a grant back (true), or ctx ends (false). NotFound: it has ended.
func (s *Server) Recalled(ctx context.Context, id, generation uint64) (bool, error) {
	for {
		s.mu.Lock()
		g, told := s.grants[id], s.told
		gone := g == nil || g.ending || g.evicted || g.generation != generation
		recalled := !gone && g.recalled
		s.mu.Unlock()
		switch {
		case gone:
			return false, fault.New(fault.NotFound, "Get a new map.", "grant %d of generation %d has ended", id, generation)
		case recalled:
			return true, nil
		}
		select {
		case <-told:
		case <-ctx.Done():
			return false, nil
		}
	}
}

// Abandon ends the grants of a volume that a node has and could not return, because its path to the LUN failed or its process died;
// only that one of this id and generation, unless id is 0. The node, or who speaks for it, is sure that nothing of it is under way.
//
//  1. The owner flushes the LUN by its own path: all paths share the cache that the node could not flush. (Fails: the grants stay.)
//  2. The grants end. (Crash before: they are ended like those of a node that is silent.)
func (s *Server) Abandon(ctx context.Context, volume, node string, id, generation uint64) error {
	if err := s.c.Store.Flush(); err != nil {
		return fault.Wrap(err, "flush the LUN for node %s", node)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		var over *grant
		for n, g := range s.grants {
			if n < pendingGrant && !g.ending && g.Volume == volume && g.Node == node && (id == 0 || n == id && g.generation == generation) {
				over = g
			}
		}
		if over == nil || ctx.Err() != nil { // who has left may have another map by now
			return ctx.Err()
		}
		delete(s.grants, over.id)
		s.mu.Unlock()
		s.finish(over)
		s.mu.Lock()
	}
}

// Expire ends what was not renewed: the node is fenced, then its grants end. One that cannot be fenced stays, and is tried again
// with the next call.
func (s *Server) Expire(ctx context.Context) error {
	s.mu.Lock()
	now := s.c.Clock.Now()
	var silent []*grant
	for id, g := range s.grants {
		if id < pendingGrant && g.generation != 0 && !g.ending && now >= g.until {
			g.ending = true
			silent = append(silent, g)
		}
	}
	s.mu.Unlock()
	slices.SortFunc(silent, func(a, b *grant) int { return int(a.id) - int(b.id) })
	var all error
	for _, g := range silent {
		if err := s.end(ctx, g); err != nil {
			all = errors.Join(all, fault.Wrap(err, "fence node %s, which was silent with a map of volume %s", g.Node, g.Volume))
			s.mu.Lock()
			g.ending = false
			s.mu.Unlock()
		}
	}
	return all
}

// end fences the holder of a grant and ends it, with all others that the node has: it has no access to the LUN any more.
func (s *Server) end(ctx context.Context, g *grant) error {
	over := []*grant{g}
	if s.c.Fencer != nil {
		if err := s.c.Fencer.Fence(ctx, g.Node, g.Key); err != nil {
			return err
		}
	}
	s.mu.Lock()
	for id, other := range s.grants {
		if s.c.Fencer != nil && other != g && other.Node == g.Node && id < pendingGrant && !other.ending {
			other.ending = true
			over = append(over, other)
		}
	}
	for _, o := range over {
		delete(s.grants, o.id)
	}
	s.mu.Unlock()
	for _, o := range over {
		s.finish(o)
	}
	return nil
}

// Out is a map that a node has.
type Out struct {
	Request
	Grant    uint64        `json:"grant"`
	Left     time.Duration `json:"left"` // until silence means death
	Recalled bool          `json:"recalled,omitempty"`
}

// Outstanding are the grants, by number.
func (s *Server) Outstanding() []Out {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Out
	for id, g := range s.grants {
		if id < pendingGrant {
			all = append(all, Out{Request: g.Request, Grant: id, Left: g.until - s.c.Clock.Now(), Recalled: g.recalled})
		}
	}
	slices.SortFunc(all, func(a, b Out) int { return int(a.Grant) - int(b.Grant) })
	return all
}
