package local

import (
	"context"
	"time"
)

const (
	// consolidateRate is how many bytes a merge copies per second at most.
	consolidateRate = 200 << 20
	// A disk with more requests per second than busyRequests is in use: its merge goes slower by busyFactor.
	busyRequests = 200
	busyFactor   = 8
	busyWindow   = 250 * time.Millisecond
)

// pacer holds a merge back: to a rate, and to a lower one while the disk's user is at work.
type pacer struct {
	rate     float64 // bytes per second
	requests func() uint64

	next   time.Time // when everything that was asked for may be copied
	looked time.Time
	last   uint64
	busy   bool
}

// newPacer makes a pacer; requests counts those of the disk's user, nil if there is none.
func newPacer(rate int64, requests func() uint64) *pacer {
	if rate <= 0 {
		rate = consolidateRate
	}
	return &pacer{rate: float64(rate), requests: requests}
}

// pace waits until n bytes may be copied. One goroutine at a time calls it.
func (p *pacer) pace(ctx context.Context, n int64) error {
	now := time.Now()
	p.look(now)
	if p.next.Before(now) {
		p.next = now
	}
	rate := p.rate
	if p.busy {
		rate /= busyFactor
	}
	p.next = p.next.Add(time.Duration(float64(n) / rate * float64(time.Second)))
	return sleep(ctx, p.next.Sub(now))
}

// look finds out whether the disk is in use.
func (p *pacer) look(now time.Time) {
	since := now.Sub(p.looked)
	if p.requests == nil || since < busyWindow {
		return
	}
	count := p.requests()
	if !p.looked.IsZero() && count >= p.last { // a new worker counts anew
		p.busy = float64(count-p.last)/since.Seconds() > busyRequests
	}
	p.looked, p.last = now, count
}

// requestsOf counts the requests of the user of an attached disk.
func (h *Host) requestsOf(id string) func() uint64 {
	a := h.get(id)
	if a == nil || a.worker == nil {
		return nil
	}
	w := a.worker
	return func() uint64 { return w.State().Requests }
}
