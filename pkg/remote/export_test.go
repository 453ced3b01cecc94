package remote

import (
	"context"
	"crypto/tls"
	"math"
)

// Ticket is what a Disk asks for, in a session that is later than any.
func (c *Client) Ticket(ctx context.Context, id string) (ticket, address string, err error) {
	r, err := c.open(ctx, diskBody{ID: id, Session: math.MaxInt64})
	return r.Ticket, r.Address, err
}

func (c *Client) TLS() *tls.Config { return c.c.TLS }

// Map asks for a map as a Disk does, and loses it.
func (c *Client) Map(ctx context.Context, id string, seq int64) error {
	_, err := c.getMap(ctx, diskBody{ID: id, Session: 1, Mapless: true, Seq: seq}, false)
	return err
}

// Mapless opens the disk as a Disk does that has no map.
func (c *Client) Mapless(ctx context.Context, id string, seq int64) error {
	_, err := c.open(ctx, diskBody{ID: id, Session: 1, Mapless: true, Seq: seq})
	return err
}
