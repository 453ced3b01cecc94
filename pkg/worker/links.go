package worker

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// Snapshot is chain.Chain.Snapshot of the served disk: child is the descriptor's name of the new head, commit makes the
// change permanent while requests are kept out. It runs in this goroutine; after it a successor of the worker opens the new
// links. When the worker dies behind the commit the snapshot is done. Kinds beside those of the chain: Unavailable,
// Timeout: the worker died, or did not answer in time.
func (h *Handle) Snapshot(ctx context.Context, child string, extentSize int64, commit func(parent, child *vmdk.Info) error) error {
	committed := false
	var done doneBody
	err := h.change(ctx, opSnapshot, snapshotBody{Child: child, ExtentSize: extentSize}, &done, answers{
		commit: func(b commitBody) error {
			if b.Parent == nil || b.Child == nil {
				return fault.New(fault.Internal, "", "a worker asks to commit no snapshot")
			}
			if err := commit(b.Parent, b.Child); err != nil {
				return err
			}
			committed = true
			h.putLinks(func(links []chain.Ref) []chain.Ref {
				parent := refOf(b.Parent)
				parent.Mend = true // it is marked clean after the commit
				return append(links[:len(links)-1], parent, refOf(b.Child))
			})
			return nil
		},
	})
	if committed && fault.KindOf(err) == fault.Unavailable {
		return nil
	}
	if err == nil && h.s.o.Paused != nil {
		h.s.o.Paused(done.Pause)
	}
	return err
}

func refOf(i *vmdk.Info) chain.Ref {
	r := chain.Ref{Name: i.Name, Type: i.Type, Size: i.Capacity}
	for _, e := range i.Extents {
		r.ExtentNames = append(r.ExtentNames, e.Name)
	}
	return r
}

// Merge is chain.Chain.Merge of the served disk. The callbacks run in this goroutine. When ctx ends the worker stops and
// leaves both links clean, and the error is a Timeout. When the worker dies behind the commit, Merge returns nil once its
// successor serves, which has written the descriptors; before the commit it is Unavailable, and a repetition does what is
// left.
func (h *Handle) Merge(ctx context.Context, p chain.MergeParams) error {
	h.putLinks(func(links []chain.Ref) []chain.Ref {
		target := p.Lower
		if p.Direction == chain.Up {
			target++
		}
		if target >= 0 && target < len(links) {
			links[target].Mend = true // a worker that dies at it leaves it unclean
		}
		return links
	})
	committed := false
	err := h.change(ctx, opMerge, mergeBody{Lower: p.Lower, Direction: p.Direction, Paced: p.Pace != nil}, nil, answers{
		pace: p.Pace, progress: p.Progress,
		commit: func(b commitBody) error {
			if b.Merged == nil {
				return fault.New(fault.Internal, "", "a worker asks to commit no merge")
			}
			if err := p.Commit(*b.Merged); err != nil {
				return err
			}
			committed = true
			h.merged(p.Lower, *b.Merged)
			return nil
		},
	})
	switch {
	case err == nil:
		h.setRebind(nil)
	case committed && fault.KindOf(err) == fault.Unavailable:
		return h.await()
	}
	return err
}

// merged makes the link of a committed merge what the next worker opens, after it has made the descriptors say so: those of
// the link itself and of the one above it.
func (h *Handle) merged(lower int, m chain.Identity) {
	h.putLinks(func(links []chain.Ref) []chain.Ref {
		ref := chain.Ref{Name: m.Name, Type: m.Type, ExtentNames: m.Extents, Size: m.Size, Mend: true}
		return slices.Replace(links, lower, min(lower+2, len(links)), ref)
	})
	h.mu.Lock()
	defer h.mu.Unlock()
	h.rebind = []chain.Identity{m}
	if lower+1 < len(h.spec.Links) {
		h.rebind = append(h.rebind, chain.Identity{Name: h.spec.Links[lower+1].Name, ParentCID: m.CID, Parent: m.Name})
	}
}

func (h *Handle) putLinks(f func([]chain.Ref) []chain.Ref) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.spec.Links = f(slices.Clone(h.spec.Links))
}

func (h *Handle) setRebind(want []chain.Identity) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.rebind = want
}

// MergeCost is chain.Chain.MergeCost of the served disk.
func (h *Handle) MergeCost(ctx context.Context, lower int) (down, up int64, err error) {
	var b costBody
	err = h.call(ctx, opMergeCost, costBody{Lower: lower}, &b)
	return b.Down, b.Up, err
}

// await returns when a worker serves. Kinds: Timeout.
func (h *Handle) await() error {
	h.mu.Lock()
	serves := h.serves
	h.mu.Unlock()
	t := time.NewTimer(changeTime)
	defer t.Stop()
	select {
	case <-serves:
		return nil
	case <-h.done:
	case <-t.C:
	}
	return fault.New(fault.Timeout, "see hostd's log", "disk %s has no worker after the death of the one that merged its links", h.spec.ID)
}

// answers is what a change asks its caller meanwhile.
type answers struct {
	commit   func(commitBody) error
	pace     func(ctx context.Context, n int64) error
	progress func(done, total int64)
}

const (
	// changeTime is how long a change may take to stop once its context has ended: the engine needs one piece of copying,
	// and a sync of what it copied.
	changeTime = 30 * time.Second
	// changeQueue bounds the frames of a change that its caller has not read; progress is dropped above half of it.
	changeQueue = 64
)

// change makes a request that asks back, and answers what it asks, in this goroutine.
func (h *Handle) change(ctx context.Context, op string, body, into any, a answers) error {
	ch := make(chan frame, changeQueue)
	c, id, err := h.register(ch)
	if err != nil {
		return err
	}
	defer h.unregister(c, id, ch)
	_ = c.ctl.send(op, id, body, nil) // a worker that ends closes ch
	ended := ctx.Done()
	var late <-chan time.Time
	for {
		select {
		case fr, ok := <-ch:
			switch {
			case !ok:
				return h.unavailable()
			case fr.Op != opAnswer:
				h.answer(ctx, c, fr, a)
				continue
			case fr.Err != nil:
				return fr.Err
			case into != nil:
				return json.Unmarshal(fr.Body, into)
			}
			return nil
		case <-ended:
			ended = nil
			_ = c.ctl.send(opCancel, id, nil, nil)
			t := time.NewTimer(changeTime)
			defer t.Stop()
			late = t.C
		case <-late:
			return fault.New(fault.Timeout, "see hostd's log", "the worker of disk %s did not stop its %s: %w", h.spec.ID, op,
				context.Cause(ctx))
		}
	}
}

// answer answers one question of a worker.
func (h *Handle) answer(ctx context.Context, c *child, fr frame, a answers) {
	reply := func(op string, err error) { _ = c.ctl.send(op, fr.ID, nil, err) } // a worker that ends needs none
	switch fr.Op {
	case evCommit:
		var b commitBody
		err := json.Unmarshal(fr.Body, &b)
		if err == nil {
			err = a.commit(b)
		}
		reply(opCommitted, err)
	case evPace:
		var b paceBody
		err := json.Unmarshal(fr.Body, &b)
		if err == nil {
			h.set(func(st *State) { st.Requests = b.Requests })
			err = a.pace(ctx, b.Bytes)
		}
		reply(opPaced, err)
	case evProgress:
		var b progressBody
		if json.Unmarshal(fr.Body, &b) == nil && a.progress != nil {
			a.progress(b.Done, b.Total)
		}
	}
}

// register makes ch get what the current worker sends about a new request.
func (h *Handle) register(ch chan frame) (*child, uint64, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.current
	if c == nil {
		return nil, 0, h.unavailable()
	}
	h.lastID++
	h.calls[h.lastID] = ch
	return c, h.lastID, nil
}

// unregister ends that. A commit that is asked for and that nobody has made is refused: its worker keeps requests out
// until it hears.
func (h *Handle) unregister(c *child, id uint64, ch chan frame) {
	h.mu.Lock()
	delete(h.calls, id)
	h.mu.Unlock()
	for {
		select {
		case fr, ok := <-ch:
			if !ok {
				return
			}
			h.refuse(c, fr)
		default:
			return
		}
	}
}

// refuse answers a worker whose request nobody waits for any more.
func (h *Handle) refuse(c *child, fr frame) {
	gone := fault.New(fault.Timeout, "Ask again.", "nobody waits for this change of disk %s any more", h.spec.ID)
	switch fr.Op {
	case evCommit:
		_ = c.ctl.send(opCommitted, fr.ID, nil, gone)
	case evPace:
		_ = c.ctl.send(opPaced, fr.ID, nil, gone)
	}
}

// deliver gives a frame to the call that it belongs to. It never waits.
func (h *Handle) deliver(c *child, fr frame) {
	h.mu.Lock()
	ch, ok := h.calls[fr.ID]
	if ok {
		if fr.Op != evProgress || len(ch) < cap(ch)/2 {
			ch <- fr // a worker asks one question of a kind at a time: there is room
		}
		if fr.Op == opAnswer || fr.Op == opStopped {
			delete(h.calls, fr.ID)
		}
	}
	h.mu.Unlock()
	if !ok {
		h.refuse(c, fr)
	}
}
