package remote

import (
	"context"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Evictor is a Datastore that remembers from which nodes a disk is taken.
type Evictor interface {
	// Expel makes durable that a node has no right to a disk any more, and says whether it has it still. It may be repeated.
	Expel(ctx context.Context, id, node string) (has bool, err error)
	// Expelled says that a disk is taken from a node, or was and the node's host did not open it anew (Datastore.Open).
	Expelled(id, node string) bool
}

// evictTime is how long a call waits for what the node has under way. The caller repeats it.
const evictTime = 10 * time.Second

// evict is /v1/evict. See the package's documentation.
func (s *Server) evict(ctx context.Context, c call[evictBody]) (none, error) {
	from := c.body.From
	if from == "" || from == c.body.Node {
		return none{}, fault.New(fault.Denied, "Close it.", "node %q asks to take disk %s from node %q", c.body.Node, c.body.ID, from)
	}
	store, ok := c.store.(Evictor)
	if !ok {
		return none{}, fault.New(fault.Unsupported, "Bring the node back to release it.", "datastore %s takes no disks from nodes", c.body.Datastore)
	}
	has, err := store.Expel(ctx, c.body.ID, from)
	if err != nil || !has {
		return none{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, evictTime)
	defer cancel()
	k := key{c.body.Datastore, c.body.ID, from}
	a, done, err := s.take(ctx, k)
	if err != nil {
		return none{}, err
	}
	defer done()
	s.c.Log.Warn("remote: a disk is taken from a node", "disk", k.volume, "node", from, "asked by", c.body.Node)
	a.mu.Lock()
	a.forget()
	a.mu.Unlock()
	if err := s.disconnect(ctx, a); err != nil {
		return none{}, err
	}
	if maps := c.store.Maps(); maps != nil {
		if err := maps.Evict(ctx, k.volume, from); err != nil {
			return none{}, err
		}
	}
	if err := c.store.Close(ctx, k.volume, from); err != nil {
		return none{}, err
	}
	s.mu.Lock()
	delete(s.attached, k)
	s.mu.Unlock()
	return none{}, nil
}

// takeFor is take for a node's process, which is refused when the disk was taken from the node.
func (s *Server) takeFor(ctx context.Context, store Datastore, b *diskBody) (*attached, func(), error) {
	if err := admitted(store, b); err != nil { // without a wait for who takes it
		return nil, nil, err
	}
	a, done, err := s.take(ctx, key{b.Datastore, b.ID, b.Node})
	if err != nil {
		return nil, nil, err
	}
	if err := admitted(store, b); err != nil {
		done()
		return nil, nil, err
	}
	return a, done, nil
}

// admitted refuses processes of a node from which the disk was taken. A host that opens it (session 0) begins anew.
func admitted(store Datastore, b *diskBody) error {
	e, ok := store.(Evictor)
	if !ok || b.Session == 0 || !e.Expelled(b.ID, b.Node) {
		return nil
	}
	return fault.New(fault.Fenced, "Detach the disk, and attach it anew.", "disk %s was taken from node %s, which was said to be down", b.ID, b.Node)
}
