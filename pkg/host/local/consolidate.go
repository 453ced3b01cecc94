package local

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/volume"
)

const (
	consolidateEvery = 2 * time.Minute        // how often a datastore is looked over without a reason
	consolidateMost  = 2                      // merges at once on this host
	yieldTime        = 100 * time.Millisecond // how long a merge that had to give way stays away
	retryFirst       = 10 * time.Second
	retrySoon        = 200 * time.Millisecond
	retryMost        = 10 * time.Minute
	lookGap          = 100 * time.Millisecond // between two looks at all disks, and
	lookShare        = 5                      // at the least so many times as long as the last one took
	leaveTime        = 10 * time.Second       // how long the end waits for a datastore that does not answer
)

// background is the consolidation on one datastore: one merge at a time. Any operation on the disk that is merged has it
// give way (Host.begin); it goes on later, with what is left.
type background struct {
	every time.Duration // 0: the constant
	wake  chan struct{}

	mu      sync.Mutex
	all     bool            // look at all disks
	asked   map[string]bool // disks to look at; all others are looked at every now and then
	waits   map[string]wait
	freed   map[string]int64 // bytes, of disks that have more to merge
	running *merge
}

// wait is why a disk is not looked at before a time.
type wait struct {
	until time.Time
	delay time.Duration // after a failure; it grows
	why   error         // nil: it gave way
}

// merge is one that runs. Its progress is guarded by background.mu.
type merge struct {
	disk        string
	cancel      context.CancelFunc
	done        chan struct{} // closed when it has ended
	copied, all int64
	delay       time.Duration // after the last failure
}

func newBackground(every time.Duration) *background {
	if every <= 0 {
		every = consolidateEvery
	}
	return &background{every: every, wake: make(chan struct{}, 1), asked: map[string]bool{}, waits: map[string]wait{}, freed: map[string]int64{}}
}

// due has the disk looked at soon; "" means all.
func (b *background) due(disk string) {
	b.mu.Lock()
	if disk == "" {
		b.all = true
	} else {
		b.asked[disk] = true
		delete(b.waits, disk)
	}
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// giveWay ends the merge of the disk if there is one, and returns when it has ended.
func (b *background) giveWay(ctx context.Context, disk string) (gave bool, err error) {
	b.mu.Lock()
	m := b.running
	if m == nil || m.disk != disk {
		b.mu.Unlock()
		return false, nil
	}
	b.waits[disk] = wait{until: time.Now().Add(yieldTime)}
	b.mu.Unlock()
	m.cancel()
	select {
	case <-m.done:
		return true, nil
	case <-ctx.Done():
		return false, fault.New(fault.InProgress, "Try again.", "links of disk %s are being merged, which has not stopped yet: %w", disk, context.Cause(ctx))
	}
}

// tell adds to a disk what is known about its consolidation here.
func (b *background) tell(d *host.Disk) {
	b.mu.Lock()
	defer b.mu.Unlock()
	m := b.running
	running := m != nil && m.disk == d.ID
	if d.Consolidation == nil && running {
		d.Consolidation = &host.Consolidation{} // its last links have become one
	}
	c := d.Consolidation
	if c == nil {
		return
	}
	c.Freed = b.freed[d.ID]
	switch w, waits := b.waits[d.ID]; {
	case running:
		c.Running, c.Done, c.Total, c.Reason = true, m.copied, m.all, ""
	case waits && w.why != nil:
		c.Reason = w.why.Error()
	}
}

// Consolidate merges links that nobody needs until ctx ends: of disks that are attached here for writing, and of detached ones
// that are this host's. It is called once, when the disks of a predecessor have been taken over.
func (h *Host) Consolidate(ctx context.Context) {
	turns := make(chan struct{}, consolidateMost)
	var wg sync.WaitGroup
	for _, s := range h.stores {
		wg.Go(func() { h.consolidate(ctx, s, turns) })
	}
	ended := make(chan struct{})
	go func() { wg.Wait(); close(ended) }()
	<-ctx.Done()
	select {
	case <-ended:
	case <-time.After(leaveTime):
		h.log.Warn("a merge did not end in time: its datastore does not answer")
	}
}

func (h *Host) consolidate(ctx context.Context, s *store, turns chan struct{}) {
	b := s.background
	var looked time.Time // at all
	gap := time.Duration(0)
	next := time.Duration(0)
	for {
		t := time.NewTimer(next)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-b.wake:
		case <-t.C:
		}
		t.Stop()
		all := b.wantsAll(looked, gap)
		start := time.Now()
		soon := h.look(ctx, s, all, turns)
		if all {
			looked = time.Now()
			gap = max(lookGap, lookShare*looked.Sub(start))
		}
		next = b.every
		if soon > 0 {
			next = min(next, soon)
		}
		if b.asksAll() {
			next = min(next, gap)
		}
	}
}

// wantsAll says whether all disks are to be looked at; looked is when they were last, gap how long that is to be ago.
func (b *background) wantsAll(looked time.Time, gap time.Duration) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	since := time.Since(looked)
	all := since >= b.every || b.all && since >= gap
	if all {
		b.all = false
	}
	return all
}

func (b *background) asksAll() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all
}

// look merges what can be merged, and returns when to look again at the latest, 0 for no reason of its own.
func (h *Host) look(ctx context.Context, s *store, all bool, turns chan struct{}) time.Duration {
	b := s.background
	v, ids, err := h.candidates(s, all)
	if err != nil {
		return 0
	}
	soon := time.Duration(0)
	for _, id := range ids {
		for ctx.Err() == nil && h.working() == nil && b.free(id) && h.mergeOne(ctx, s, v, id, turns) {
		}
		if w, waits := b.left(id); waits && (soon == 0 || w < soon) {
			soon = max(w, time.Millisecond) // its time may have come while the merge stopped
		}
	}
	return soon
}

// left is how long a disk that waits is to be left alone.
func (b *background) left(id string) (d time.Duration, waits bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	w, ok := b.waits[id]
	return max(0, time.Until(w.until)), ok
}

// free says that a disk need not be left alone.
func (b *background) free(id string) bool {
	d, waits := b.left(id)
	return !waits || d == 0
}

// candidates are the disks to look at: those that were asked for, and all if all.
func (h *Host) candidates(s *store, all bool) (*volume.Volumes, []string, error) {
	b := s.background
	b.mu.Lock()
	ids := map[string]bool{}
	for id := range b.asked {
		ids[id] = true
	}
	for id := range b.waits {
		ids[id] = true
	}
	b.mu.Unlock()
	var v *volume.Volumes
	got := s.ask(func(vols *volume.Volumes) (bool, error) {
		v = vols
		if !all {
			return true, nil
		}
		list, err := vols.IDs()
		for _, id := range list {
			ids[id] = true
		}
		return true, err
	})
	if err := errors.Join(got.missing, got.err); err != nil {
		return nil, nil, err
	}
	b.mu.Lock()
	clear(b.asked)
	b.mu.Unlock()
	return v, slices.Sorted(maps.Keys(ids)), nil
}

// mergeOne merges two links of the disk, if that is this host's to do, and says whether there may be more.
func (h *Host) mergeOne(ctx context.Context, s *store, v *volume.Volumes, id string, turns chan struct{}) (more bool) {
	b := s.background
	if c, err := v.Unneeded(id); err != nil || c == nil || c.Reason != "" {
		b.forget(id, c == nil)
		return false
	}
	select {
	case turns <- struct{}{}:
		defer func() { <-turns }()
	case <-ctx.Done():
		return false
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m := b.start(id, cancel)
	defer b.end(m) // after the lock is free: who waits for the end takes it
	unlock, err := h.busy.TryLock(id, "consolidate")
	if err != nil {
		b.later(id) // it is at work
		return false
	}
	defer unlock()
	server, mine := h.mine(s, v, id)
	if !mine || h.working() != nil {
		b.forget(id, false)
		return false
	}
	res, err := v.Consolidate(ctx, id, volume.ConsolidateOptions{
		Pace:     newPacer(h.c.ConsolidateRate, h.requestsOf(id)).pace,
		Progress: func(done, total int64) { b.progress(m, done, total) },
	}, server)
	if ctx.Err() != nil && !res.Merged {
		err = nil // it gave way
	}
	h.count.copied.Add(b.record(m, res, err))
	if res.Merged {
		h.count.merges.Add(1)
		h.count.freed.Add(res.Freed)
		h.log.Info("links were merged", "disk", id, "datastore", s.cfg.Name, "freed", res.Freed)
	}
	if err != nil {
		h.log.Warn("links were not merged; it is tried again", "disk", id, "error", noted(s, err))
	}
	return res.Merged && err == nil
}

// mine says whether the links of a disk are this host's to merge, and who serves it. A detached disk of a shared datastore is
// that host's which owned it last. Where no locks are taken nobody knows of readers on other hosts: a disk that has an owner
// no more waits until it is attached, unless it is one that nobody attaches.
func (h *Host) mine(s *store, v *volume.Volumes, id string) (volume.Server, bool) {
	if a := h.get(id); a != nil {
		if a.att.ReadOnly || a.worker == nil {
			return nil, false
		}
		return a.worker, true
	}
	held, err := v.Held(id)
	if err != nil || held.Epoch != 0 {
		return nil, false
	}
	if s.cfg.Scope == host.ScopeShared && (!held.Last || s.cfg.NoLocks && !held.Retired) {
		return nil, false
	}
	return nil, true
}

func (b *background) start(id string, cancel context.CancelFunc) *merge {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.running = &merge{disk: id, cancel: cancel, done: make(chan struct{}), delay: b.waits[id].delay}
	delete(b.waits, id)
	return b.running
}

func (b *background) end(m *merge) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.running = nil
	close(m.done)
}

func (b *background) progress(m *merge, done, total int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	m.copied, m.all = done, total
}

// record keeps how a merge went, and returns how much it copied.
func (b *background) record(m *merge, res volume.ConsolidateResult, err error) (copied int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.freed[m.disk] += res.Freed
	if err != nil {
		first := retryFirst
		switch fault.KindOf(err) {
		case fault.Unavailable, fault.InProgress, fault.Timeout: // a worker died, another process looks at the disk
			first = retrySoon
		}
		delay := min(retryMost, max(first, 2*m.delay))
		b.waits[m.disk] = wait{until: time.Now().Add(delay), delay: delay, why: err}
	}
	return m.copied
}

// later has a disk looked at again soon.
func (b *background) later(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.waits[id]; !ok {
		b.waits[id] = wait{until: time.Now().Add(yieldTime)}
	}
}

// forget drops what is known of a disk at which there is nothing to do here; done: nothing is left to merge at all.
func (b *background) forget(id string, done bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.waits, id)
	if done {
		delete(b.freed, id)
	}
}

// stop ends the merge that runs.
func (b *background) stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.running != nil {
		b.running.cancel()
	}
}

// giveWay ends a merge of the disk's links, and says whether there was one.
func (h *Host) giveWay(ctx context.Context, id string) (gave bool, err error) {
	for _, s := range h.stores {
		gave, err := s.background.giveWay(ctx, id)
		if gave || err != nil {
			return gave, err
		}
	}
	return false, nil
}

// counters are what this process has done.
type counters struct {
	snapshots, snapshotsDeleted, merges, copied, freed atomic.Int64
}

// Counters are what a Host has done since it was made.
type Counters struct {
	Snapshots        int64 // made
	SnapshotsDeleted int64
	Merges           int64 // pairs of links that became one
	Copied           int64 // bytes that merges copied
	Freed            int64 // bytes that merges gave back
}

// Counters reads the counters.
func (h *Host) Counters() Counters {
	c := &h.count
	return Counters{c.snapshots.Load(), c.snapshotsDeleted.Load(), c.merges.Load(), c.copied.Load(), c.freed.Load()}
}
