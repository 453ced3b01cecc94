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
