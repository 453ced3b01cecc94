package store

import (
	"slices"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Grant is a promise to somebody outside that extents stay what they are: none that is freed after it is used again before
// it ended. What it says is its maker's.
type Grant struct {
	ID         uint64 `json:"id"`
	Generation uint64 `json:"generation"` // of the commit that made it durable
	Data       []byte `json:"data"`       // at most 2048 bytes
}

// Grants are those that have not ended, oldest first.
func (s *Store) Grants() []Grant {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.grants)
}

// AddGrant makes a grant and returns when it is durable. It covers what is in the store when it returns.
func (s *Store) AddGrant(data []byte) (Grant, error) {
	if len(data) > maxGrantData {
		return Grant{}, fault.New(fault.OutOfRange, "", "a grant of %d bytes: at most %d", len(data), maxGrantData)
	}
	g := Grant{Data: slices.Clone(data)}
	err := s.change(grantHeader+int64(len(data)), func() error {
		if len(s.grants) >= maxGrants {
			return fault.New(fault.Exhausted, "Return some.", "the store has %d grants, which is all it can have", len(s.grants))
		}
		g.ID, g.Generation = s.nextGrant, s.next
		s.nextGrant++
		s.grants = append(slices.Clone(s.grants), g)
		s.recorded += grantHeader + int64(len(data))
		return nil
	})
	if err != nil {
		return Grant{}, err
	}
	return g, s.commit()
}

// EndGrant ends one: its holder gave it back, or can do no more with it. Of an unknown one it is a no-op. It need not be
// durable: what becomes free by it is used in a catalogue that is.
func (s *Store) EndGrant(id uint64) error {
	return s.change(0, func() error {
		s.grants = slices.DeleteFunc(slices.Clone(s.grants), func(g Grant) bool { return g.ID == id })
		s.releaseHeld()
		return nil
	})
}

// grantOlderThan tells whether somebody may still use what that generation freed: a grant of the same generation may have been
// made before the freeing. Called with mu held.
func (s *Store) grantOlderThan(generation uint64) bool {
	return len(s.grants) > 0 && s.grants[0].Generation <= generation
}
