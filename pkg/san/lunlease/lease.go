package lunlease

import (
	"context"
	"encoding/hex"
	"errors"
	"sync"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/store"
)

// Lease is the right to be a LUN's owner, for as long as it is not lost.
type Lease struct {
	contender
	id         string
	generation uint64
	stop       context.CancelFunc
	running    sync.WaitGroup
	lost       chan struct{}

	mu      sync.Mutex
	until   time.Duration // when the lease ends for its owner
	gone    error         // why it is none any more
	active  int           // requests under way through File
	changed chan struct{} // closed and replaced with every change of these
}

// start begins to beat. r was written at sent.
func start(c *contender, r record, sent time.Duration) *Lease {
	ctx, stop := context.WithCancel(context.Background())
	l := &Lease{contender: *c, id: hex.EncodeToString(r.id[:]), generation: r.generation, stop: stop, lost: make(chan struct{}),
		until: sent + c.Expiry - c.margin(), changed: make(chan struct{})}
	if g, ok := c.lun.(guarded); ok {
		g.Guard(l.mayWrite)
	}
	l.running.Add(2)
	go func() {
		defer l.running.Done()
		l.beat(ctx, r)
	}()
	go func() {
		defer l.running.Done()
		l.watchClock(ctx)
	}()
	return l
}

// guarded is a LUN that asks before each command that writes whether it still may, also before those that it repeats by itself.
type guarded interface{ Guard(check func() error) }

// ID is what this lease drew: no other has it.
func (l *Lease) ID() string { return l.id }

// Generation is how many owners the LUN has had, this one included.
func (l *Lease) Generation() uint64 { return l.generation }

// Lost is closed when the LUN is not ours any more. A Release does not close it.
func (l *Lease) Lost() <-chan struct{} { return l.lost }

// Check tells whether the LUN is ours now. Kind: Fenced.
func (l *Lease) Check() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.check()
}

func (l *Lease) check() error {
	if l.gone == nil && l.Clock.Now() >= l.until {
		l.lose(fault.New(fault.Fenced, "Look at the path to the LUN; another host takes it over.", "no beat reached the LUN for %v: the lease is over", l.Expiry-l.margin()))
	}
	return l.gone
}

// mayWrite is Check for what the lease itself writes, too: a Release comes when Check fails already.
func (l *Lease) mayWrite() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.lost:
		return l.gone
	default:
	}
	if l.Clock.Now() >= l.until {
		return fault.New(fault.Fenced, "Look at the path to the LUN; another host takes it over.", "the lease of the LUN is over")
	}
	return nil
}

// left is how long the lease lasts if no beat comes.
func (l *Lease) left() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.until - l.Clock.Now()
}

// lose ends the lease; the first reason stays. Called with mu held.
func (l *Lease) lose(why error) {
	if l.gone != nil {
		return
	}
	l.gone = why
	close(l.lost)
	l.tell()
	l.Log.Warn("the LUN is not ours any more", "error", why)
}

// tell wakes whoever waits for a change. Called with mu held.
func (l *Lease) tell() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// beat writes the block once a Period until the lease ends; at once for a beginning, because settling took a part of it.
func (l *Lease) beat(ctx context.Context, r record) {
	for ok := true; ok; ok = l.sleep(ctx, l.Period) == nil {
		if ok, err := l.beatOnce(&r); !ok {
			return
		} else if err != nil {
			l.Log.Warn("a beat did not reach the LUN", "error", err)
		}
	}
}

// beatOnce reads the block, which must be ours, and writes the next beat; not ok when there can be none any more.
func (l *Lease) beatOnce(r *record) (ok bool, err error) {
	sent := l.Clock.Now()
	now, _, err := read(l.lun)
	if err == nil && (now.state != owned || now.id != r.id) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.lose(fault.New(fault.Fenced, "", "the LUN is %s now", now.whose()))
		return false, nil
	}
	if l.left() < l.MaxIO { // a write could land behind the next owner's claim
		return false, nil
	}
	if err != nil {
		return true, err
	}
	r.beat++
	if _, err = l.lun.WriteAt(r.encode(), store.LeaseAt); err != nil {
		return true, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.check() == nil { // it came in time
		l.until = sent + l.Expiry - l.margin()
		l.tell()
	}
	return true, nil
}

// watchClock notices the end of the lease while a beat hangs.
func (l *Lease) watchClock(ctx context.Context) {
	for {
		l.mu.Lock()
		if l.check() != nil {
			l.mu.Unlock()
			return
		}
		left := l.until - l.Clock.Now()
		l.mu.Unlock()
		if l.sleep(ctx, left) != nil {
			return
		}
	}
}

// Release gives the LUN back, so that the next Acquire need not wait, and ends File. It waits for requests under way and for a beat that hangs. If the
// lease was lost nothing is written. nil: it was given back.
func (l *Lease) Release() error {
	l.mu.Lock()
	was := l.gone
	if was == nil { // no lose: Lost is for what happens to us
		l.gone = fault.New(fault.Fenced, "", "the LUN was released")
		l.tell()
	}
	until := l.until
	for l.active > 0 {
		changed := l.changed
		l.mu.Unlock()
		<-changed
		l.mu.Lock()
	}
	l.mu.Unlock()
	l.stop()
	l.running.Wait()
	if was != nil {
		return was
	}
	r, _, err := read(l.lun)
	switch {
	case err != nil:
		return err
	case r.state != owned || hex.EncodeToString(r.id[:]) != l.id:
		return fault.New(fault.Fenced, "", "the LUN is %s now", r.whose())
	case l.Clock.Now()+l.MaxIO > until:
		return fault.New(fault.Timeout, "", "the lease of the LUN is nearly over: it runs out by itself")
	}
	r.state = released
	_, err = l.lun.WriteAt(r.encode(), store.LeaseAt)
	return fault.Wrap(errors.Join(err, l.lun.Datasync()), "release the LUN")
}

// File is the LUN. A request that would begin with less than MaxIO of the lease left waits for the next beat; after the lease all fail with
// fault.Fenced. What was read when it ended fails, too. Its Close does nothing.
func (l *Lease) File() fsx.File { return &file{l} }
