package worker

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// Links is a Disk whose links can change while it is served; chain.Chain is one.
type Links interface {
	Snapshot(ctx context.Context, p chain.SnapshotParams) error
	Merge(ctx context.Context, p chain.MergeParams) error
	MergeCost(lower int) (down, up int64, err error)
}

var _ Links = (*chain.Chain)(nil)

// What the frames of a change carry.
type (
	snapshotBody struct {
		Child      string `json:"child"`
		ExtentSize int64  `json:"extentSize,omitempty"`
	}
	mergeBody struct {
		Lower     int             `json:"lower"`
		Direction chain.Direction `json:"direction"`
		Paced     bool            `json:"paced,omitempty"` // ask before every piece
	}
	costBody struct {
		Lower int   `json:"lower"`
		Down  int64 `json:"down"`
		Up    int64 `json:"up"`
	}
	// commitBody is what the links are to be: that of a snapshot or of a merge.
	commitBody struct {
		Parent *vmdk.Info      `json:"parent,omitempty"`
		Child  *vmdk.Info      `json:"child,omitempty"`
		Merged *chain.Identity `json:"merged,omitempty"`
	}
	progressBody struct {
		Done  int64 `json:"done"`
		Total int64 `json:"total"`
	}
	paceBody struct {
		Bytes    int64  `json:"bytes"`
		Requests uint64 `json:"requests"` // of the disk's user, so far
	}
	doneBody struct {
		Pause time.Duration `json:"pause,omitempty"` // how long the commit of a snapshot kept requests out, at the least
	}
)

// change is a snapshot or merge under way in a worker.
type change struct {
	w         *process
	id        uint64 // of the supervisor's request
	ctx       context.Context
	cancel    context.CancelCauseFunc
	committed chan frame
	paced     chan frame

	mu     sync.Mutex // one question about pace at a time
	credit int64      // bytes that may be copied without asking
	told   time.Time
}

// changes are those under way, by the id of their request.
type changes struct {
	mu  sync.Mutex
	all map[uint64]*change
}

// begin keeps a change, before anything that follows its request on the socket is read.
func (w *process) begin(ctx context.Context, id uint64) *change {
	c := &change{w: w, id: id, committed: make(chan frame, 1), paced: make(chan frame, 1)}
	c.ctx, c.cancel = context.WithCancelCause(ctx)
	w.changes.mu.Lock()
	defer w.changes.mu.Unlock()
	if w.changes.all == nil {
		w.changes.all = map[uint64]*change{}
	}
	w.changes.all[id] = c
	return c
}

func (c *change) end() {
	c.cancel(nil)
	c.w.changes.mu.Lock()
	defer c.w.changes.mu.Unlock()
	delete(c.w.changes.all, c.id)
}

// route gives a frame to the change that it belongs to, and says whether it is one of a change. One of a change that is
// over is dropped.
func (w *process) route(fr frame) bool {
	w.changes.mu.Lock()
	c := w.changes.all[fr.ID]
	w.changes.mu.Unlock()
	var to chan frame
	switch fr.Op {
	case opCancel:
		if c != nil {
			c.cancel(fault.New(fault.Timeout, "Ask again.", "the change of the links of disk %s was cancelled", w.cfg.ID))
		}
		return true
	case opCommitted:
		if c != nil {
			to = c.committed
		}
	case opPaced:
		if c != nil {
			to = c.paced
		}
	default:
		return false
	}
	select {
	case to <- fr: // one question of a kind at a time: there is room, unless nobody asked
	default:
	}
	return true
}

// links is the disk as one whose links can change.
func (w *process) links() (Links, error) {
	if w.disk.poisoned.Load() {
		return nil, errPoisoned()
	}
	if l, ok := w.disk.Disk.(Links); ok {
		return l, nil
	}
	return nil, fault.New(fault.Unsupported, "", "the links of disk %s cannot change while it is served", w.cfg.ID)
}

// run makes the change that a request asks for.
func (c *change) run(fr frame) (any, error) {
	defer c.end()
	l, err := c.w.links()
	if err != nil {
		return nil, err
	}
	switch fr.Op {
	case opSnapshot:
		return c.snapshot(l, fr)
	default:
		return nil, c.merge(l, fr)
	}
}

func (c *change) snapshot(l Links, fr frame) (any, error) {
	var b snapshotBody
	if err := json.Unmarshal(fr.Body, &b); err != nil {
		return nil, err
	}
	var done doneBody
	var closed time.Time
	err := l.Snapshot(c.ctx, chain.SnapshotParams{Child: b.Child, ExtentSize: b.ExtentSize,
		Before: func() error { closed = time.Now(); return nil },
		Commit: func(parent, child *vmdk.Info) error {
			defer func() { done.Pause = time.Since(closed) }()
			return c.commit(commitBody{Parent: parent, Child: child})
		}})
	return done, c.w.disk.changed(err)
}

func (c *change) merge(l Links, fr frame) error {
	var b mergeBody
	if err := json.Unmarshal(fr.Body, &b); err != nil {
		return err
	}
	p := chain.MergeParams{Lower: b.Lower, Direction: b.Direction, Progress: c.progress,
		Commit: func(merged chain.Identity) error { return c.commit(commitBody{Merged: &merged}) }}
	if b.Paced {
		p.Pace = c.pace
	}
	return c.w.disk.changed(l.Merge(c.ctx, p))
}

// commit asks the supervisor to make the change permanent, with the gate closed, and waits for the answer however long it
// takes: without it nobody here knows what the disk is. A supervisor that dies takes this process with it.
func (c *change) commit(b commitBody) error {
	if err := c.w.ctl.send(evCommit, c.id, b, nil); err != nil {
		return fault.Wrap(err, "ask for the commit") // nobody has heard of it
	}
	select {
	case fr := <-c.committed:
		if fr.Err != nil {
			return fr.Err
		}
		return nil
	case <-c.w.ended:
		return fault.New(fault.Poisoned, "Detach the disk and attach it again.", "disk %s was stopped in the middle of a change of its links", c.w.cfg.ID)
	}
}

// paceUnit is how much is asked for at once: a question takes some tens of microseconds.
const paceUnit = 1 << 20

// pace waits until n bytes may be copied.
func (c *change) pace(ctx context.Context, n int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.credit < n {
		ask := max(n-c.credit, paceUnit)
		if err := c.w.ctl.send(evPace, c.id, paceBody{Bytes: ask, Requests: c.w.requests()}, nil); err != nil {
			return err
		}
		select {
		case fr := <-c.paced:
			if fr.Err != nil {
				return fr.Err
			}
			c.credit += ask
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	c.credit -= n
	return nil
}

// progressEvery is how often progress is told.
const progressEvery = 200 * time.Millisecond

func (c *change) progress(done, total int64) {
	c.mu.Lock()
	tell := done == total || time.Since(c.told) >= progressEvery
	if tell {
		c.told = time.Now()
	}
	c.mu.Unlock()
	if tell {
		_ = c.w.ctl.send(evProgress, c.id, progressBody{done, total}, nil) // who is gone needs none
	}
}

// changed keeps in the table that a change has poisoned the disk. Other failures are the supervisor's to tell: the user of
// the disk sees none of them.
func (g *guard) changed(err error) error {
	if fault.KindOf(err) == fault.Poisoned && g.poisoned.CompareAndSwap(false, true) {
		g.poison()
	}
	return err
}

func (w *process) mergeCost(fr frame) (any, error) {
	var b costBody
	err := json.Unmarshal(fr.Body, &b)
	if err != nil {
		return nil, err
	}
	l, err := w.links()
	if err != nil {
		return nil, err
	}
	b.Down, b.Up, err = l.MergeCost(b.Lower)
	return b, err
}
