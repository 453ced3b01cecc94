package lunlease_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx/sim"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/lunlease"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/store"
)

const dataAt = 1 << 20 // where owners write, far from the lease

// world is a LUN, the hosts that want it, and what an onlooker sees who knows everything. Its time is synctest's.
type world struct {
	t     *testing.T
	seed  uint64
	lun   fsx.File
	late  bool // requests may take longer than MaxIO
	start time.Time

	mu     sync.Mutex
	hosts  []*contender
	newest uint64 // number of the youngest owner
	last   uint64 // its generation
	events []string
}

func (w *world) note(format string, args ...any) {
	w.events = append(w.events, fmt.Sprintf("%10v ", time.Since(w.start).Round(time.Millisecond))+fmt.Sprintf(format, args...))
}

// wrong fails the test with what happened before. Called with mu held.
func (w *world) wrong(format string, args ...any) {
	w.note(format, args...)
	for _, e := range w.events[max(0, len(w.events)-60):] {
		w.t.Log(e)
	}
	w.t.Errorf("seed %d: "+format, append([]any{w.seed}, args...)...)
}

// contender is a host with its path to the LUN and its clock.
type contender struct {
	fsx.File
	w    *world
	name string
	rate float64 // of its clock

	mu      sync.Mutex
	rng     *rand.Rand
	dead    bool
	stopped time.Time // the end of a pause
	lease   *lunlease.Lease
}

// Now implements san.Clock.
func (c *contender) Now() time.Duration {
	return time.Duration(float64(time.Since(c.w.start)) * c.rate)
}

// After implements san.Clock; a host that is stopped hears of it when it goes on.
func (c *contender) After(d time.Duration) <-chan time.Time {
	ch := make(chan time.Time, 1)
	time.AfterFunc(time.Duration(float64(d)/c.rate)+1, func() {
		c.stall()
		ch <- time.Time{}
	})
	return ch
}

// stall waits until the host is not stopped.
func (c *contender) stall() {
	for {
		c.mu.Lock()
		left := time.Until(c.stopped)
		c.mu.Unlock()
		if left <= 0 {
			return
		}
		time.Sleep(left)
	}
}

func (c *contender) draw(n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rng.IntN(n)
}

var errDead = errors.New("the host is dead")

// travel is a request's way to the medium: mostly short, sometimes nearly as long as is allowed, or longer.
func (c *contender) travel(late bool) {
	most := 20 * time.Millisecond
	switch n := c.draw(100); {
	case n < 4 && late:
		most = 25 * time.Second
	case n < 14:
		most = 2900 * time.Millisecond
	case n < 30:
		most = 500 * time.Millisecond
	}
	time.Sleep(time.Duration(c.draw(int(most))))
}

func (c *contender) request(late bool, do func() error) error {
	c.mu.Lock()
	dead := c.dead
	c.mu.Unlock()
	if dead {
		return errDead
	}
	defer c.stall() // the answer is heard later
	c.travel(late)
	if c.draw(200) == 0 {
		return errors.New("lost on the way")
	}
	err := do()
	time.Sleep(time.Duration(c.draw(int(30 * time.Millisecond))))
	if c.draw(200) == 0 {
		return errors.New("the answer was lost")
	}
	return err
}

func (c *contender) ReadAt(p []byte, off int64) (n int, err error) {
	err = c.request(c.w.late, func() error {
		n, err = c.File.ReadAt(p, off)
		return err
	})
	return n, err
}

func (c *contender) WriteAt(p []byte, off int64) (int, error) {
	owner := binary.LittleEndian.Uint64(p)
	if off == dataAt {
		c.w.mu.Lock()
		if owner < c.w.newest {
			c.w.wrong("%s begins to write as owner %d, there is owner %d already", c.name, owner, c.w.newest)
		}
		c.w.mu.Unlock()
	}
	late := c.w.late && (off == dataAt || binary.LittleEndian.Uint32(p[52:]) == 1) // a release that comes late frees another's LUN
	return len(p), c.request(late, func() error {
		c.w.mu.Lock()
		defer c.w.mu.Unlock()
		if off == dataAt && !c.w.late && owner < c.w.newest {
			c.w.wrong("a write of %s as owner %d lands behind owner %d", c.name, owner, c.w.newest)
		}
		if off == store.LeaseAt {
			c.w.note("%s writes the block: beat %d of generation %d", c.name, binary.LittleEndian.Uint64(p[40:]), binary.LittleEndian.Uint64(p[32:]))
		}
		_, err := c.File.WriteAt(p, off)
		return err
	})
}

func (c *contender) Datasync() error { return c.request(c.w.late, func() error { return nil }) }

// got checks that nobody else has the LUN, and numbers the owner.
func (c *contender) got(l *lunlease.Lease) uint64 {
	w := c.w
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, other := range w.hosts {
		other.mu.Lock()
		if o := other.lease; o != nil && !other.dead && o.Check() == nil {
			w.wrong("%s gets the LUN, generation %d, and %s has it, generation %d", c.name, l.Generation(), other.name, o.Generation())
		}
		other.mu.Unlock()
	}
	if l.Generation() <= w.last && !w.late { // a late beat can bring an old generation back
		w.wrong("generation %d comes after %d", l.Generation(), w.last)
	}
	w.last = l.Generation()
	w.newest++
	w.note("%s has the LUN as owner %d, of generation %d", c.name, w.newest, l.Generation())
	c.mu.Lock()
	c.lease = l
	c.mu.Unlock()
	return w.newest
}

// live wants the LUN, uses it, gives it back or dies, again and again.
func (c *contender) live(ctx context.Context) {
	for ctx.Err() == nil {
		l, err := lunlease.Acquire(ctx, c, lunlease.Me{Host: c.name}, lunlease.Options{Clock: c})
		if err != nil {
			time.Sleep(time.Duration(c.draw(int(time.Second))))
			c.reborn()
			continue
		}
		n := c.got(l)
		c.use(ctx, l, n)
		err = l.Release()
		c.w.mu.Lock()
		c.w.note("%s releases as owner %d: %v", c.name, n, err)
		c.w.mu.Unlock()
		c.mu.Lock()
		c.lease = nil
		c.mu.Unlock()
		time.Sleep(time.Duration(c.draw(int(3 * time.Second))))
		c.reborn()
	}
}

func (c *contender) reborn() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dead = false
}

// use writes as the owner until it is over or does not want any more.
func (c *contender) use(ctx context.Context, l *lunlease.Lease, owner uint64) {
	end := time.Now().Add(time.Duration(c.draw(int(40 * time.Second))))
	p := make([]byte, 4096)
	binary.LittleEndian.PutUint64(p, owner)
	for time.Now().Before(end) && ctx.Err() == nil {
		if _, err := l.File().WriteAt(p, dataAt); errors.Is(err, fault.Fenced) {
			return
		}
		time.Sleep(time.Duration(c.draw(int(400 * time.Millisecond))))
		c.stall()
		switch n := c.draw(300); {
		case n == 0:
			c.mu.Lock()
			c.dead = true
			c.mu.Unlock()
		case n < 4:
			c.mu.Lock()
			c.stopped = time.Now().Add(time.Duration(c.rng.IntN(int(25 * time.Second))))
			c.mu.Unlock()
			c.stall()
		}
	}
}

func contest(t *testing.T, seed uint64, hosts int, late bool) (owners int) {
	synctest.Test(t, func(t *testing.T) {
		lun, err := sim.New(sim.Options{}).Root().Open("lun", fsx.ReadWrite|fsx.Create)
		must(t, err)
		defer lun.Close()
		must(t, lun.Truncate(4<<20))
		_, err = store.Format(lun, store.FormatOptions{ExtentSize: 64 << 10, AreaSize: 64 << 10})
		must(t, err)
		w := &world{t: t, seed: seed, lun: lun, late: late, start: time.Now()}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		var all sync.WaitGroup
		for i := range hosts {
			rng := rand.New(rand.NewPCG(seed, uint64(i)))
			c := &contender{File: lun, w: w, name: string(rune('a' + i)), rng: rng, rate: 0.96 + 0.08*rng.Float64()}
			w.hosts = append(w.hosts, c)
			all.Go(func() { c.live(ctx) })
		}
		all.Wait()
		owners = int(w.newest)
	})
	return owners
}

// TestContenders: whatever hosts do that want a LUN (they die, hang and wake up, give it back, have clocks that differ by some percent, and a
// way to the LUN on which requests get lost or take nearly as long as is allowed), there is one owner at a time, and no write of an earlier one
// lands behind the next one's beginning. With requests that take longer than allowed, but for releases, none begins.
//
// A run is repeated by its name: -run 'TestContenders/late=false/hosts=3/seed=17$'.
func TestContenders(t *testing.T) {
	seeds := uint64(150)
	if testing.Short() {
		seeds = 25
	}
	for _, late := range []bool{false, true} {
		t.Run(fmt.Sprintf("late=%t", late), func(t *testing.T) {
			for _, hosts := range []int{2, 3} {
				t.Run(fmt.Sprintf("hosts=%d", hosts), func(t *testing.T) {
					total := 0
					for seed := range seeds {
						t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) { total += contest(t, seed, hosts, late) })
					}
					t.Logf("%d owners in %d runs of 5 minutes", total, seeds)
					if total < int(seeds) {
						t.Errorf("there were %d owners only", total)
					}
				})
			}
		})
	}
}
