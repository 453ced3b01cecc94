package cli

import (
	"context"
	"time"
)

// Pace limits a copy to rate bytes per second: it is called before each piece of n bytes and waits. 0 is no limit, and nil.
func Pace(rate int64) func(ctx context.Context, n int64) error {
	if rate <= 0 {
		return nil
	}
	next := time.Now()
	return func(ctx context.Context, n int64) error {
		if now := time.Now(); next.Before(now) {
			next = now // what was not used is lost, so that a pause is not followed by a burst
		}
		t := time.NewTimer(time.Until(next))
		defer t.Stop()
		next = next.Add(time.Duration(float64(n) / float64(rate) * float64(time.Second)))
		select {
		case <-t.C:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
