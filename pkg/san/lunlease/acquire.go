package lunlease

import (
	"context"
	"crypto/rand"
	"log/slog"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/san"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/reserve"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/store"
)

// Options of Acquire; zero values mean the defaults. All hosts of a LUN should have the same.
type Options struct {
	Period time.Duration // between beats; 1s
	Expiry time.Duration // how long the block stands still until its owner is taken for dead; 10s, at most 24h
	MaxIO  time.Duration // how long a request may take to reach the medium; 3 tenths of Expiry
	Clock  san.Clock     // nil: san.BootTime
	// Fence, if set, is called before a LUN is taken over from an owner that did not release it; what it returns ends Acquire. When it returned nil,
	// nothing that the old owner sends reaches the medium any more.
	Fence func(ctx context.Context, old Owner) error
	// Unit, if set, is the LUN's reservations (lunpath.Reservations): every host that wants the LUN registers Key(its name), so it is opened Blank; who gets it
	// has preempted the dead owner's key before that, and has the reservation when Acquire returns. It stays, also after Release.
	// Reset, if set, ends all commands that the LUN has, for units that cannot end one host's.
	Unit  reserve.Unit
	Reset func(ctx context.Context) error
	Log   *slog.Logger // nil: silence
}

// margin is what the owner's clock may be slower than others'.
func (o *Options) margin() time.Duration { return o.Expiry / 10 }

func (o *Options) settle() time.Duration { return 2 * o.Period }

func (o *Options) check() error {
	if o.Expiry == 0 {
		o.Expiry = 10 * time.Second
	}
	if o.Period == 0 {
		o.Period = o.Expiry / 10
	}
	if o.MaxIO == 0 {
		o.MaxIO = o.Expiry * 3 / 10
	}
	if o.Clock == nil {
		o.Clock = san.BootTime{}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Period < time.Millisecond || o.MaxIO < 0 || o.Expiry > 24*time.Hour || o.margin()+o.MaxIO+3*o.Period > o.Expiry {
		return fault.New(fault.Invalid, "", "a LUN's lease of %v with beats every %v and requests of up to %v does not fit", o.Expiry, o.Period, o.MaxIO)
	}
	return nil
}

// contender is one Acquire.
type contender struct {
	Options
	lun fsx.File
	me  Me
}

// Acquire waits until the LUN is ours; ctx ends the waiting. lun stays the caller's and is used by the Lease until Release returned: through
// Lease.File alone. Kinds: NotFound and Damaged (no store on it), Invalid, Timeout (ctx ended), what the LUN and Fence give.
func Acquire(ctx context.Context, lun fsx.File, me Me, o Options) (*Lease, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	if me.Host == "" || len(me.Host) > maxText || len(me.Address) > maxText {
		return nil, fault.New(fault.Invalid, "", "a host named %q at %q: names and addresses of up to %d bytes are needed", me.Host, me.Address, maxText)
	}
	c := &contender{o, lun, me}
	if err := c.register(ctx); err != nil { // first: who is not registered cannot even read
		return nil, err
	}
	if _, err := store.Identify(lun); err != nil { // else the block is somebody else's data
		return nil, err
	}
	for {
		old, began, err := c.watch(ctx)
		if err != nil {
			return nil, err
		}
		if l, err := c.claim(ctx, old, began); l != nil || err != nil {
			return l, err
		}
	}
}

// sleep waits for d by the clock.
func (c *contender) sleep(ctx context.Context, d time.Duration) error {
	for end := c.Clock.Now() + d; ; {
		left := end - c.Clock.Now()
		if left <= 0 {
			return nil
		}
		select {
		case <-c.Clock.After(left):
		case <-ctx.Done():
			return fault.Wrap(context.Cause(ctx), "wait for the LUN")
		}
	}
}

// watch waits until nobody owns the LUN (steps 1 and 2), and tells when the read that saw it began.
func (c *contender) watch(ctx context.Context) (old record, began time.Duration, err error) {
	var last [sectorSize]byte
	var since time.Duration
	fenced := false
	for first := true; ; first = false {
		began = c.Clock.Now()
		r, raw, err := read(c.lun)
		if err != nil {
			return r, 0, err
		}
		if first || raw != last {
			last, since, fenced = raw, c.Clock.Now(), false
		}
		switch {
		case r.state == unused || r.state == released:
			return r, began, nil
		case began-since < max(c.Expiry, r.expiry):
		case r.state == broken || fenced:
			return r, began, nil
		default:
			c.Log.Info("the LUN's owner does not beat any more", "host", r.me.Host, "address", r.me.Address, "generation", r.generation)
			if err := c.fence(ctx, r.owner()); err != nil {
				return r, 0, fault.Wrap(err, "fence %s, which owned the LUN", r.me.Host)
			}
			fenced = true
			continue
		}
		if err := c.sleep(ctx, c.Period); err != nil {
			return r, 0, err
		}
	}
}

// claim is steps 3 to 5; nil when somebody else has, or may have, the LUN.
func (c *contender) claim(ctx context.Context, old record, began time.Duration) (*Lease, error) {
	r := record{state: owned, generation: old.generation + 1, beat: 1, expiry: c.Expiry, me: c.me}
	_, _ = rand.Read(r.id[:]) // never fails (crypto/rand.Read)
	p, sent := r.encode(), c.Clock.Now()
	if _, err := c.lun.WriteAt(p, store.LeaseAt); err != nil {
		return nil, fault.Wrap(err, "claim the LUN")
	}
	if err := c.lun.Datasync(); err != nil {
		return nil, fault.Wrap(err, "claim the LUN")
	}
	if took := c.Clock.Now() - began; took > c.settle() {
		c.Log.Warn("claiming the LUN took too long, the claim is void", "took", took, "limit", c.settle())
		return nil, nil
	}
	if err := c.sleep(ctx, c.settle()); err != nil {
		return nil, err
	}
	if err := c.reserve(ctx); err != nil { // before the last look: a claim that was lost meanwhile is seen
		return nil, err
	}
	_, now, err := read(c.lun)
	if err != nil {
		return nil, err
	}
	if now != [sectorSize]byte(p) || c.Clock.Now() >= sent+c.Expiry-c.margin() {
		return nil, nil
	}
	return start(c, r, sent), nil
}
