package remote

import (
	"context"
	"crypto/tls"
)

// Ticket is what a Disk asks for.
func (c *Client) Ticket(ctx context.Context, id string) (ticket, address string, err error) {
	r, err := c.open(ctx, diskBody{ID: id, Session: 1})
	return r.Ticket, r.Address, err
}

func (c *Client) TLS() *tls.Config { return c.c.TLS }
