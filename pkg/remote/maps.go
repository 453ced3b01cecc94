package remote

import (
	"context"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/san"
)

// idleTime is how long a map waits for the requests of broken connections.
const idleTime = 5 * time.Second

// mapped is /v1/map. See the package's documentation.
func (s *Server) mapped(ctx context.Context, c call[mapBody]) (any, error) {
	maps := c.store.Maps()
	if maps == nil {
		return nil, noMaps(c.body.Datastore)
	}
	a, done, err := s.takeFor(ctx, c.store, &c.body.diskBody)
	if err != nil {
		return nil, err
	}
	defer done()
	if err := s.enter(ctx, a, &c.body.diskBody, maps); err != nil {
		return nil, err
	}
	if _, err := s.ensure(ctx, a, c.store, c.body.ReadOnly); err != nil {
		return nil, err
	}
	r := san.Request{Volume: a.volume, Node: a.node, Mode: san.ReadWrite}
	if c.body.ReadOnly {
		r.Mode = san.ReadOnly
	}
	if c.body.Check {
		m, err := maps.Check(ctx, r)
		return mappedBody{m}, err
	}
	if r.Mode == san.ReadWrite {
		a.mu.Lock()
		a.mapping = true
		a.mu.Unlock()
		defer func() {
			a.mu.Lock()
			a.mapping = false
			a.mu.Unlock()
		}()
		idle, cancel := context.WithTimeout(ctx, idleTime)
		defer cancel()
		if err := s.disconnect(idle, a); err != nil {
			return nil, err
		}
	}
	m, err := maps.Get(ctx, r)
	if err == nil && ctx.Err() != nil { // nobody is there to take it
		_ = maps.Return(context.WithoutCancel(ctx), m.Grant, m.Generation)
		err = ctx.Err()
	}
	return mappedBody{m}, err
}

func noMaps(datastore string) error {
	return fault.New(fault.Unsupported, "", "datastore %s has no block maps", datastore)
}

// grants are the maps of a request about a grant, if it is one of the node that asks. One that is not there is left to the server of
// maps to answer.
func grants(c call[grantBody]) (*san.Server, error) {
	maps := c.store.Maps()
	if maps == nil {
		return nil, noMaps(c.body.Datastore)
	}
	for _, o := range maps.Outstanding() {
		if o.Grant == c.body.Grant && (o.Node != c.body.Node || o.Volume != c.body.ID) {
			return nil, fault.New(fault.Denied, "", "grant %d is none of disk %s on node %s", o.Grant, c.body.ID, c.body.Node)
		}
	}
	return maps, nil
}

func (s *Server) renew(ctx context.Context, c call[grantBody]) (any, error) {
	maps, err := grants(c)
	if err != nil {
		return nil, err
	}
	return maps.Renew(ctx, c.body.Grant, c.body.Generation, c.body.Digest)
}

func (s *Server) giveBack(ctx context.Context, c call[grantBody]) (none, error) {
	maps, err := grants(c)
	if err != nil {
		return none{}, err
	}
	if c.body.Unflushed {
		return none{}, maps.Abandon(ctx, c.body.ID, c.body.Node, c.body.Grant, c.body.Generation)
	}
	return none{}, maps.Return(ctx, c.body.Grant, c.body.Generation)
}

// recalled is /v1/recall: it answers when the map is wanted back, or after a while.
func (s *Server) recalled(ctx context.Context, c call[grantBody]) (any, error) {
	maps, err := grants(c)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, pollTime)
	defer cancel()
	recalled, err := maps.Recalled(ctx, c.body.Grant, c.body.Generation)
	return recallBody{recalled}, err
}
