package remote

import (
	"context"
	"encoding/json"
	"errors"
	"slices"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// about is the disk or snapshot of a request, and whether only a host that has it open for this node can answer: a session goes on
// where it began, and nobody else can end it.
func about(path string, body any) (id string, held bool) {
	switch b := body.(type) {
	case *idBody:
		return b.ID, path == pathClose
	case *createBody:
		if src := b.Spec.Source; src != nil {
			return src.Disk + src.Snapshot, false // one of them is empty
		}
	case *evictBody:
		return b.ID, false
	case *expandBody:
		return b.ID, false
	case *snapshotBody:
		return b.Spec.Disk, false
	case *listBody:
		return b.Disk, false
	case *diskBody:
		return b.ID, b.Session != 0
	case *mapBody:
		return b.ID, true
	case *grantBody:
		return b.ID, true
	}
	return "", false
}

// known is the peer that is asked first.
func (c *Client) known(id string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.last != "" {
		return c.last
	}
	return c.at[id]
}

// remember notes which peer has a disk open for this node, "": none.
func (c *Client) remember(id, peer string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.at == nil {
		c.at = map[string]string{}
	}
	if c.at[id] = peer; peer == "" {
		delete(c.at, id)
	}
}

// errNotHeld says that every peer has answered, and none has the disk open for this node.
type errNotHeld struct{ error }

func (e errNotHeld) Unwrap() error { return e.error }

type serving struct {
	servesAnswer
	peer string
	err  error
}

// find asks all peers who serves the datastore: the first that does, or, if it is Spread, the one that has the disk open for this node,
// else one that has it at all and held does not forbid that.
func (c *Client) find(ctx context.Context, id string, held bool) (string, error) {
	peers, err := c.c.Peers(ctx)
	if err != nil {
		return "", fault.New(fault.Unavailable, "", "find who may serve datastore %s: %w", c.c.Datastore, err)
	}
	b, err := json.Marshal(servesBody{head: head{c.c.Datastore, c.c.Node}, ID: id})
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, whoTime)
	defer cancel()
	answers := make(chan serving, len(peers))
	for _, p := range peers {
		go func() {
			a := serving{peer: p}
			a.err = c.post(ctx, p, pathServes, b, &a.servesAnswer)
			answers <- a
		}()
	}
	var found, some *serving
	var why, silent []error
	for range peers { // all of them, so that none is left behind; the one that is looked for ends the others
		a := <-answers
		switch {
		case a.err != nil:
			why, silent = append(why, a.err), append(silent, a.err)
		case a.Missing != nil:
			why = append(why, a.Missing)
		case found == nil && (!a.Spread || a.Holds || id == ""):
			found = &a
			cancel()
		case some == nil:
			some = &a
		}
	}
	switch {
	case found != nil && !found.Spread:
		c.mu.Lock()
		c.last = found.peer
		c.mu.Unlock()
		return found.peer, nil
	case found != nil:
		if found.Holds {
			c.remember(id, found.peer)
		}
		return found.peer, nil
	case some != nil && !held:
		return some.peer, nil
	case held && allAre(silent, fault.NotFound):
		return "", errNotHeld{fault.New(fault.Unavailable, "Attach it anew.", "no host has disk %s of datastore %s open for node %s", id, c.c.Datastore, c.c.Node)}
	case some == nil && len(why) > 0 && allAre(why, fault.NotFound):
		return "", fault.New(fault.NotFound, "", "no host has %s in datastore %s", id, c.c.Datastore)
	}
	return "", c.nobody(why)
}

// allAre says whether every error is of a kind; there may be none.
func allAre(list []error, k fault.Kind) bool {
	return !slices.ContainsFunc(list, func(err error) bool { return !errors.Is(err, k) })
}
