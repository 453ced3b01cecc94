package nbd

import (
	"context"
	"errors"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

func (c *Client) publish(s *session) {
	c.size.Store(s.size)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cur = s
	if c.failed == nil { // else it is closed
		close(c.ready)
	}
}

// Fail makes every request fail from now on; the first reason stays.
func (c *Client) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failed != nil {
		return
	}
	c.failed = err
	if c.cur == nil {
		close(c.ready)
	}
}

func (c *Client) failure() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failed
}

// Session is the current one; it waits for it.
func (c *Client) session() (*session, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if c.failed != nil {
			return nil, c.failed
		}
		if c.cur != nil {
			return c.cur, nil
		}
		ready := c.ready
		c.mu.Unlock()
		<-ready
		c.mu.Lock()
	}
}

// Do sends a request until it is answered.
func (c *Client) do(k *pending) error {
	for {
		s, err := c.session()
		if err != nil {
			return err
		}
		if err := s.roundTrip(k); !errors.Is(err, errBroken) {
			return err
		}
		<-s.gone
	}
}

// Watch makes the next session when one breaks, until the client fails.
func (c *Client) watch(s *session) {
	defer close(c.done)
	for {
		select {
		case <-s.broken:
		case <-c.life.Done():
			s.leave()
		}
		s.wg.Wait() // nobody reads into a caller's memory, and nothing is kept any more
		c.mu.Lock()
		c.cur = nil
		if c.failed == nil {
			c.ready = make(chan struct{})
		}
		c.mu.Unlock()
		close(s.gone)
		if c.life.Err() != nil {
			return
		}
		next, err := c.reopen(s)
		if err != nil {
			c.fail(err)
			<-c.life.Done()
			return
		}
		s = next
		c.publish(s)
	}
}

const (
	firstPause = 10 * time.Millisecond
	lastPause  = time.Second
)

// Reopen makes a session instead of old, with patience.
func (c *Client) reopen(old *session) (*session, error) {
	begin := time.Now()
	c.o.Log.Warn("nbd: the server is gone", "address", c.o.Address, "err", old.why)
	ctx, cancel := context.WithTimeout(c.life, c.o.Patience)
	defer cancel()
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		s, err := c.open(ctx)
		if err == nil {
			if err = c.restore(ctx, s, old.instance); err == nil {
				c.o.Log.Info("nbd: the server is back", "address", c.o.Address, "after", time.Since(begin))
				return s, nil
			}
			s.stop(err)
			s.wg.Wait()
		}
		if f := c.failure(); f != nil {
			return nil, f
		}
		if k := fault.KindOf(err); k != fault.Unavailable && k != fault.Timeout && k != fault.InProgress && !errors.Is(err, errBroken) {
			return nil, err
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, fault.New(fault.Unavailable, "Bring the server back, and open the disk anew.",
				"the NBD server at %s did not come back in %v: %w", c.o.Address, c.o.Patience, err)
		}
	}
}

// Restore sends what a new instance of the server may not have: step 4 of the package's comment.
//
// The instance that is compared must be the last one that has everything: a session that broke while it was being restored is none,
// which is why reopen compares with old, however often it tries.
func (c *Client) restore(ctx context.Context, s *session, instance string) error {
	defer context.AfterFunc(ctx, func() { s.stop(context.Cause(ctx)) })()
	if s.size < c.size.Load() {
		return fault.New(fault.Damaged, "Look whether the server serves the right disk.", "the disk has shrunk from %d bytes to %d", c.size.Load(), s.size)
	}
	c.mu.Lock()
	kept := c.kept.all
	c.mu.Unlock()
	if len(kept) == 0 || s.instance != "" && s.instance == instance {
		return nil
	}
	if s.readOnly() {
		return fault.New(fault.Poisoned, "Check the disk.", "the disk came back read-only, and %d changes were not flushed", len(kept))
	}
	for i := range kept {
		if err := s.roundTrip(kept[i].pending()); err != nil {
			if errors.Is(err, errBroken) {
				return err
			}
			return fault.New(fault.Poisoned, "Check the disk.", "a change that had been acknowledged was refused after the server came back: %w", err)
		}
	}
	return nil
}
