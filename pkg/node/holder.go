package node

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// Holder keeps the descriptors of every disk that is attached on this node, beside hostd, so that neither's death alone
// loses a disk: a FUSE session dies with the last descriptor of its device.
//
// It asks hostd every interval what it has attached. When that is not what the Holder has, or hostd did not answer
// before, it gives hostd everything it holds (hostd takes over what it does not serve) and gets everything that hostd
// holds. A restarted worker has a new pidfd, which is such a difference.
//
// A disk that hostd does not list and that has no kernel device any more was detached by somebody: it is forgotten, not
// offered. A nil Holder holds nothing.
type Holder struct {
	hostd     Hostd
	hasDevice func(id string) (bool, error)
	recorder  Recorder
	log       *slog.Logger

	sync sync.Mutex // one Sync at a time; held across a call to hostd

	mu        sync.Mutex // guards what follows
	held      map[string]host.Held
	busy      map[string]string    // id -> attaching or detaching
	reached   time.Time            // when hostd answered last
	lost      bool                 // hostd did not answer
	told      map[string]time.Time // id -> of the trouble that was told last
	ways      map[string]string    // id -> what served it when that was told last (way)
	fallbacks int64
	unsettled map[string]time.Time // id -> since when it is reached otherwise, which is not told yet
	settle    time.Duration        // settleTime; tests do not wait
}

// How often hostd is asked, and how long it may take. An attached disk survives hostd's death for as long as the kernel's
// user waits, so that the interval is felt as a pause.
const (
	holdEvery    = 200 * time.Millisecond
	askTime      = 5 * time.Second
	takeOverTime = time.Minute
)

// NewHolder makes a Holder that holds nothing yet. hasDevice says whether disk id has a block device on this node.
func NewHolder(hostd Hostd, hasDevice func(id string) (bool, error), recorder Recorder, log *slog.Logger) *Holder {
	if recorder == nil {
		recorder = silent{}
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Holder{hostd: hostd, hasDevice: hasDevice, recorder: recorder, log: log, held: map[string]host.Held{},
		busy: map[string]string{}, told: map[string]time.Time{}, ways: map[string]string{},
		unsettled: map[string]time.Time{}, settle: settleTime, lost: true}
}

// Run keeps the Holder and hostd the same until ctx ends.
func (h *Holder) Run(ctx context.Context) {
	t := time.NewTicker(holdEvery)
	defer t.Stop()
	for {
		h.look(ctx)
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

func (h *Holder) look(ctx context.Context) {
	ask, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	all, err := h.hostd.Attachments(ask)
	if err != nil {
		h.mu.Lock()
		first := !h.lost
		h.lost = true
		h.mu.Unlock()
		if first {
			h.log.Warn("Hostd does not answer; its disks are held here", "err", err)
		}
		return
	}
	h.tell(ctx, all)
	h.tellWays(ctx, all)
	h.mu.Lock()
	again := h.lost || h.differs(all)
	h.reached = time.Now()
	h.mu.Unlock()
	if !again {
		return
	}
	if err := h.Sync(ctx); err != nil {
		h.log.Warn("Hostd does not take the disks over yet", "err", err)
		return
	}
	h.mu.Lock()
	h.lost = false
	h.mu.Unlock()
}

// tell shows what a disk's user saw as an error on the objects that a person looks at.
func (h *Holder) tell(ctx context.Context, all []host.Attachment) {
	h.mu.Lock()
	told := h.told
	h.told = map[string]time.Time{}
	for _, a := range all {
		if a.Trouble != nil {
			h.told[a.ID] = a.Trouble.At
		}
	}
	h.mu.Unlock()
	for _, a := range all {
		if a.Trouble == nil || a.Trouble.Fault == nil || a.Trouble.At.Equal(told[a.ID]) {
			continue
		}
		reason, ok := troubles[a.Trouble.Fault.Kind]
		if !ok {
			reason = "IOFailed"
		}
		h.recorder.Event(ctx, a.ID, true, reason, "a request of the disk's user failed: "+a.Trouble.Fault.Error())
	}
}

// troubles are the reasons of the events; a user filters by them.
var troubles = map[fault.Kind]string{
	fault.NoSpace: "DatastoreFull", fault.ReadOnly: "DatastoreReadOnly", fault.Poisoned: "WritesMayBeLost", fault.Damaged: "Damaged",
}

// differs: a disk that is being attached or detached differs for the time being.
func (h *Holder) differs(all []host.Attachment) bool {
	listed := map[string]bool{}
	for _, a := range all {
		listed[a.ID] = true
		mine, ok := h.held[a.ID]
		if h.busy[a.ID] == "" && (!ok || mine.Worker == nil || mine.Attachment.WorkerPID != a.WorkerPID ||
			mine.Attachment.Restarts != a.Restarts) {
			return true
		}
	}
	for id := range h.held {
		if !listed[id] && h.busy[id] == "" {
			return true
		}
	}
	return false
}

// Sync gives hostd what is held and holds what hostd holds afterwards.
func (h *Holder) Sync(ctx context.Context) error {
	if h == nil {
		return nil
	}
	h.sync.Lock()
	defer h.sync.Unlock()
	offer, err := h.offer(ctx)
	if err != nil {
		return err
	}
	defer closeAll(offer)
	ctx, cancel := context.WithTimeout(ctx, takeOverTime)
	defer cancel()
	got, err := h.hostd.Sync(ctx, offer)
	if err != nil {
		return fault.Wrap(err, "hand the attached disks to hostd")
	}
	h.keep(ctx, got)
	return nil
}

// Offer is a duplicate of what is held, without what is being detached or has no device any more.
func (h *Holder) offer(ctx context.Context) ([]host.Held, error) {
	asked, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	all, err := h.hostd.Attachments(asked)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []host.Held
	for _, id := range slices.Sorted(maps.Keys(h.held)) {
		listed := slices.ContainsFunc(all, func(a host.Attachment) bool { return a.ID == id })
		if h.busy[id] == detaching {
			continue
		}
		if !listed && h.busy[id] == "" && h.hasDevice != nil {
			if there, err := h.hasDevice(id); err == nil && !there {
				h.log.Info("A disk was detached by somebody else", "volume", id)
				h.forget(id)
				continue
			}
		}
		dup, err := h.held[id].Dup()
		if err != nil {
			closeAll(out)
			return nil, fault.Wrap(err, "duplicate the descriptors of %s", id)
		}
		out = append(out, dup)
	}
	return out, nil
}

func (h *Holder) keep(ctx context.Context, got []host.Held) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, g := range got {
		id := g.Attachment.ID
		if h.busy[id] == detaching {
			g.Close()
			continue
		}
		if old, ok := h.held[id]; ok {
			if old.Attachment.Restarts < g.Attachment.Restarts {
				h.recorder.Event(ctx, id, true, "WorkerRestarted",
					"the disk's worker died; another one took the disk over and nothing acknowledged was lost")
				h.recorder.Attached(ctx, g.Attachment) // with its new worker and count
			}
			h.forget(id)
		}
		h.held[id] = g
	}
}

// forget closes what is held of id; the caller holds mu.
func (h *Holder) forget(id string) {
	if old, ok := h.held[id]; ok {
		old.Close()
		delete(h.held, id)
	}
}

// Add holds a disk that was just attached, with duplicates of its descriptors, and gets the rest from hostd.
func (h *Holder) Add(ctx context.Context, held host.Held) error {
	if h == nil {
		return nil
	}
	dup, err := held.Dup()
	if err != nil {
		return fault.Wrap(err, "duplicate the descriptors of %s", held.Attachment.ID)
	}
	h.mu.Lock()
	h.forget(held.Attachment.ID)
	h.held[held.Attachment.ID] = dup
	h.noteWay(held.Attachment) // who attached tells it
	h.mu.Unlock()
	return h.Sync(ctx)
}

// Drop lets a disk go that was detached.
func (h *Holder) Drop(id string) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.forget(id)
}

const (
	attaching = "attaching"
	detaching = "detaching"
)

// attaching and detaching mark a disk that has no stable state now; the returned function ends that.
func (h *Holder) attaching(id string) func() { return h.mark(id, attaching) }
func (h *Holder) detaching(id string) func() { return h.mark(id, detaching) }

func (h *Holder) mark(id, what string) func() {
	if h == nil {
		return func() {}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.busy[id] = what
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.busy, id)
	}
}

// Drain returns when hostd holds everything that is held here, so that this process may end.
func (h *Holder) Drain(ctx context.Context) error {
	if h == nil {
		return nil
	}
	t := time.NewTicker(holdEvery)
	defer t.Stop()
	for {
		missing, err := h.missing(ctx)
		if err == nil && len(missing) == 0 {
			return nil
		}
		h.look(ctx)
		select {
		case <-t.C:
		case <-ctx.Done():
			return fault.New(fault.Timeout, "start hostd before this process ends, or the disks lose their server for good",
				"hostd does not hold %v (%w): %w", missing, context.Cause(ctx), err)
		}
	}
}

func (h *Holder) missing(ctx context.Context) ([]string, error) {
	ask, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	all, err := h.hostd.Attachments(ask)
	h.mu.Lock()
	defer h.mu.Unlock()
	ids := slices.Sorted(maps.Keys(h.held))
	return slices.DeleteFunc(ids, func(id string) bool {
		return slices.ContainsFunc(all, func(a host.Attachment) bool { return a.ID == id })
	}), err
}

// Reachable is nil while hostd answers.
func (h *Holder) Reachable() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.lost {
		return fault.New(fault.Unavailable, "see whether the node's hostd runs", "hostd does not answer since %s", since(h.reached))
	}
	return nil
}

func since(t time.Time) string {
	if t.IsZero() {
		return "the start"
	}
	return t.Format(time.RFC3339)
}

// Close closes everything that is held.
func (h *Holder) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, id := range slices.Collect(maps.Keys(h.held)) {
		h.forget(id)
	}
}

func closeAll(held []host.Held) {
	for _, x := range held {
		x.Close()
	}
}
