package san

import (
	"context"
	"encoding/json"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/store"
)

// Request asks for a map.
type Request struct {
	Volume   string `json:"volume"`
	Snapshot string `json:"snapshot,omitempty"` // "": the disk as it is now
	Mode     Mode   `json:"mode"`
	Node     string `json:"node"`
}

// Subject is what a map will be of. While it is open nobody else changes it: its files are locked, its links are not merged.
type Subject interface {
	// Dir has the files that runs name.
	Dir() fsx.Dir
	Size() int64
	// Writable tells why the subject cannot have a read-write map (snapshots, a delta disk), nil if it can.
	Writable() error
	// Runs are all of it, in order, without gaps.
	Runs() iter.Seq2[Run, error]
	Close() error
}

// Source opens what can be mapped; it is the engine.
type Source interface {
	Open(ctx context.Context, r Request) (Subject, error)
}

// Fencer cuts a node off the LUN: when Fence returns nil, nothing that the node sent or will send with this key is executed.
type Fencer interface {
	Fence(ctx context.Context, node string, key uint64) error
}

// Timed is a Fencer that cannot cut everybody off: whose key it says is stopped by time alone.
type Timed interface {
	Timed(key uint64) bool
}

// Config of a Server.
type Config struct {
	Store  *store.Store
	Source Source
	Clock  Clock // nil: BootTime
	// Lease of a grant, default 60s; MaxIO is the longest that a request of a node can be on its way, default 10s; Margin is for
	// clocks that differ, default 5s.
	Lease, MaxIO, Margin time.Duration
	// Fencer may be nil. Then LeaseOnly says that read-write maps are granted all the same: a node that hangs for longer than
	// Lease + MaxIO + Margin in the middle of a write may write when the blocks have another owner.
	Fencer    Fencer
	LeaseOnly bool
	// LUN is what a node needs to find it; Store, Nonce and Bytes are filled in.
	LUN LUN
	// Key is the node's reservation key; nil: none.
	Key func(node string) uint64
}

// Server grants maps. Its methods may be called concurrently.
type Server struct {
	c     Config
	grace time.Duration // no read-write grants before

	mu     sync.Mutex
	grants map[uint64]*grant
	ended  chan struct{} // closed and replaced whenever a grant ended
	told   chan struct{} // closed and replaced whenever a grant ended or was recalled
}

// grant is a durable promise, or one that is being made (ID 0 in no map yet).
type grant struct {
	Request
	Key    uint64 `json:"key,omitempty"`
	Digest string `json:"digest"`

	id, generation uint64
	until          time.Duration // the server's end of its lease, MaxIO and Margin included
	subject        Subject       // nil after a restart whose Source could not open it
	recalled       bool
	ending         bool // somebody is fencing or ending it
	evicted        bool // it is not renewed any more
}

// NewServer takes the grants over that the store has: their holders have one lease to renew them, in which none that could be
// in their way is made. Subjects that the Source cannot open any more are kept from nobody, but their extents are.
func NewServer(ctx context.Context, c Config) *Server {
	if c.Clock == nil {
		c.Clock = BootTime{}
	}
	setDefault(&c.Lease, 60*time.Second)
	setDefault(&c.MaxIO, 10*time.Second)
	setDefault(&c.Margin, 5*time.Second)
	nonce := c.Store.Nonce()
	c.LUN.Store, c.LUN.Nonce, c.LUN.Bytes = c.Store.UUID().String(), store.UUID(nonce).String(), c.Store.Size()
	s := &Server{c: c, grants: map[uint64]*grant{}, ended: make(chan struct{}), told: make(chan struct{})}
	for _, old := range c.Store.Grants() {
		g := &grant{id: old.ID, generation: old.Generation, until: s.deadline()}
		if json.Unmarshal(old.Data, g) == nil {
			g.subject, _ = c.Source.Open(ctx, g.Request)
		}
		s.grants[g.id] = g
		s.grace = c.Clock.Now() + c.Lease
	}
	return s
}

func setDefault(d *time.Duration, to time.Duration) {
	if *d == 0 {
		*d = to
	}
}

func (s *Server) deadline() time.Duration {
	return s.c.Clock.Now() + s.c.Lease + s.c.MaxIO + s.c.Margin
}

// Get grants a map:
//
//  1. The rules: no other map of the volume is in the way.
//  2. The subject is opened, which keeps it from changing, and the map composed and validated.
//  3. The grant is made durable. (Crash: nobody has the map; its grant is ended like one of a node that is silent.)
//  4. The map is composed again: what it names now, the grant keeps.
//
// Kinds: InUse (another map is out), Precondition (the disk cannot be mapped so), InProgress (a restart's grace), Unsupported (use
// another transport).
func (s *Server) Get(ctx context.Context, r Request) (m *Map, err error) {
	if (r.Mode != ReadOnly && r.Mode != ReadWrite) || r.Volume == "" || r.Node == "" {
		return nil, fault.New(fault.Invalid, "", "block map for volume %q, node %q, mode %q", r.Volume, r.Node, r.Mode)
	}
	g := &grant{Request: r}
	if s.c.Key != nil {
		g.Key = s.c.Key(r.Node)
	}
	reserved, err := s.reserve(g)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.drop(g)
		}
	}()
	if g.subject, err = s.c.Source.Open(ctx, r); err != nil {
		return nil, err
	}
	if m, err = s.compose(g); err != nil {
		return nil, err
	}
	g.Digest = m.Digest
	data, err := json.Marshal(g)
	if err != nil {
		return nil, err
	}
	kept, err := s.c.Store.AddGrant(data)
	if kept.ID != 0 {
		g.id, g.generation = kept.ID, kept.Generation
	}
	if err != nil {
		return nil, err
	}
	again, err := s.compose(g)
	if err != nil {
		return nil, err
	}
	if again.Digest != m.Digest {
		return nil, fault.New(fault.Internal, "", "volume %s changed while its map was made", r.Volume)
	}
	again.Grant, again.Generation = g.id, g.generation
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.grants, reserved)
	s.grants[g.id] = g
	g.until = s.deadline()
	return again, nil
}

// tell wakes who waits for a recall. Called with mu held.
func (s *Server) tell() {
	close(s.told)
	s.told = make(chan struct{})
}

// Check is Get without the grant: it says why Get would refuse, and who would have to stop for a map finds out what is in it before.
func (s *Server) Check(ctx context.Context, r Request) (*Map, error) {
	g := &grant{Request: r}
	if s.c.Key != nil {
		g.Key = s.c.Key(r.Node)
	}
	if _, err := s.reserve(g); err != nil {
		return nil, err
	}
	defer s.drop(g)
	var err error
	if g.subject, err = s.c.Source.Open(ctx, r); err != nil {
		return nil, err
	}
	return s.compose(g)
}

// pending grants are in the map under numbers that no store gives.
const pendingGrant = 1 << 63

// reserve checks the rules and takes the volume.
func (s *Server) reserve(g *grant) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g.Mode == ReadWrite {
		if now := s.c.Clock.Now(); now < s.grace {
			return 0, fault.New(fault.InProgress, "Try again after it.", "the metadata server was started anew: for %s more it only renews", s.grace-now)
		}
		if s.c.Fencer == nil && !s.c.LeaseOnly {
			return 0, fault.New(fault.Precondition, "Use a LUN with persistent reservations, or set fencing: lease-only, knowing its risk.",
				"the LUN has no reservations: node %s could not be stopped from writing", g.Node)
		}
	}
	next := uint64(pendingGrant)
	for id, other := range s.grants {
		next = max(next, id+1)
		if other.Volume == g.Volume && (other.Mode == ReadWrite || g.Mode == ReadWrite) {
			return 0, fault.New(fault.InUse, "Detach it there first.", "volume %s has a block map (%s) on node %s", g.Volume, other.Mode, other.Node)
		}
	}
	g.id, g.until = next, s.deadline()
	s.grants[next] = g
	return next, nil
}

// drop undoes a Get that failed.
func (s *Server) drop(g *grant) {
	s.mu.Lock()
	for id, other := range s.grants {
		if other == g {
			delete(s.grants, id)
		}
	}
	s.mu.Unlock()
	s.finish(g)
}

// finish ends a grant that is in no table any more.
func (s *Server) finish(g *grant) {
	if g.id < pendingGrant {
		_ = s.c.Store.EndGrant(g.id) // fails in a store that is poisoned: then nothing is given away any more
	}
	if g.subject != nil {
		_ = g.subject.Close()
	}
	s.mu.Lock()
	close(s.ended)
	s.ended = make(chan struct{})
	s.tell()
	s.mu.Unlock()
}

func (s *Server) compose(g *grant) (*Map, error) {
	m := &Map{Volume: g.Volume, Snapshot: g.Snapshot, Node: g.Node, Mode: g.Mode, Size: g.subject.Size(),
		Lease: s.c.Lease, MaxIO: s.c.MaxIO, LUNs: []LUN{s.c.LUN}}
	m.LUNs[0].Key = g.Key
	if g.Mode == ReadWrite {
		if err := g.subject.Writable(); err != nil {
			return nil, err
		}
	}
	var err error
	if m.Extents, err = compose(s.c.Store, g.subject.Dir(), m.Size, g.subject.Runs()); err != nil {
		return nil, err
	}
	if g.Mode == ReadWrite && slices.ContainsFunc(m.Extents, func(x Extent) bool { return x.Zero }) {
		return nil, fault.New(fault.Precondition, "Make it eagerzeroedthick, or use NBD.", "volume %s has parts without a place on the LUN", g.Volume)
	}
	m.Digest = m.Sum()
	return m, m.Validate()
}
