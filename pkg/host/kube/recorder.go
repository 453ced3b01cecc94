package kube

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vmdk-csi/vmdk-csi/pkg/api/v1alpha1"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// maxEvents bounds what is kept for an API server that does not answer; the oldest events go first.
const maxEvents = 1000

// recorder brings to the objects what the node service notices. A notice about an attachment replaces an older one about
// the same disk, because only the newest is true; events keep their order. Both wait for the API server as long as it
// takes. Every resync it compares with hostd, so that a notice lost with a process is made good.
type recorder struct {
	api    client.WithWatch
	node   string
	hostd  Hostd
	log    *slog.Logger
	resync time.Duration
	wake   chan struct{} // capacity 1

	mu     sync.Mutex
	seq    int64             // of the last notice
	want   map[string]notice // by disk; kept while the disk is attached here
	dirty  []string          // disks whose notice is not written, oldest first
	events []note

	fell map[string]string // by disk: what it fell back to, seen at one comparison; run's

	release releaser
	owned   sync.WaitGroup // of run
}

// notice is what is true of a disk on this node; att is nil when it is not attached.
type notice struct {
	seq     int64
	att     *host.Attachment
	written int64 // seq that the object has
}

func newRecorder(p AgentParams) *recorder {
	return &recorder{
		api: p.API, node: p.Node, hostd: p.Hostd, log: p.Log, resync: p.Resync,
		wake: make(chan struct{}, 1), want: map[string]notice{}, fell: map[string]string{}, release: releaser{kept: map[string]string{}},
	}
}

// Attached notes that the disk is open on this node.
func (r *recorder) Attached(_ context.Context, a host.Attachment) { r.note(a.ID, &a) }

// Detached notes that the disk is no longer open on this node.
func (r *recorder) Detached(_ context.Context, id string) { r.note(id, nil) }

func (r *recorder) note(id string, a *host.Attachment) {
	r.mu.Lock()
	r.seq++
	n := r.want[id]
	n.seq, n.att = r.seq, a
	r.want[id] = n
	r.dirty = append(r.dirty, id)
	r.mu.Unlock()
	r.poke()
}

func (r *recorder) poke() {
	select {
	case r.wake <- struct{}{}:
	default: // awake already
	}
}

// run writes until ctx ends. When it compares next is a point in time, which notices do not move: on a busy node there
// is always one.
func (r *recorder) run(ctx context.Context) {
	defer r.owned.Wait()
	const firstPause, longestPause = 200 * time.Millisecond, 15 * time.Second
	pause := firstPause
	compareAt := time.Now() // the first comparison is at once: it makes good what an earlier process did not write
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		case <-next.C:
		}
		err := r.flush(ctx)
		if err == nil && !time.Now().Before(compareAt) {
			if err = r.compare(ctx); err == nil {
				compareAt = time.Now().Add(r.resync + rand.N(r.resync/10+1)) // not all nodes of a cluster at once
				err = r.flush(ctx)
			}
		}
		wait := time.Until(compareAt)
		if err == nil {
			pause = firstPause
		} else if ctx.Err() == nil {
			r.log.Warn("what happened on this node is not on the objects yet; trying again", "error", err)
			wait, pause = pause, min(2*pause, longestPause)
		}
		next.Reset(wait)
	}
}

// flush writes every notice and event, or fails at the first that the API server does not take.
func (r *recorder) flush(ctx context.Context) error {
	for {
		id, n, ok := r.oldest()
		if !ok {
			break
		}
		if n.written != n.seq {
			if err := r.write(ctx, id, n.att); err != nil {
				return err
			}
		}
		r.written(id, n.seq)
	}
	for {
		r.mu.Lock()
		if len(r.events) == 0 {
			r.mu.Unlock()
			return nil
		}
		e := r.events[0]
		r.mu.Unlock()
		if err := r.emit(ctx, e); err != nil {
			return err
		}
		r.mu.Lock()
		if len(r.events) > 0 && r.events[0] == e { // not if it was dropped meanwhile
			r.events = r.events[1:]
		}
		r.mu.Unlock()
	}
}

func (r *recorder) oldest() (string, notice, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.dirty) == 0 {
		return "", notice{}, false
	}
	return r.dirty[0], r.want[r.dirty[0]], true
}

// written notes that the object has the notice seq. A newer one has its own place in dirty.
func (r *recorder) written(id string, seq int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dirty = r.dirty[1:]
	n := r.want[id]
	n.written = max(n.written, seq)
	if n.att == nil && n.written == n.seq {
		delete(r.want, id)
		return
	}
	r.want[id] = n
}

// write applies this host's entry of one disk.
func (r *recorder) write(ctx context.Context, id string, a *host.Attachment) error {
	vd := &v1alpha1.VirtualDisk{}
	if err := r.api.Get(ctx, client.ObjectKey{Name: id}, vd); err != nil {
		if apierrors.IsNotFound(err) {
			return nil
		}
		return apiFault(err, "read disk %s", id)
	}
	if !recorded(vd, r.node, a) {
		var st attachStatus
		if a != nil {
			st.Attachments = []v1alpha1.DiskAttachment{attachmentOf(*a, r.node)}
		}
		err := applyStatus(ctx, r.api, vd, hostManager("attach", r.node), st)
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return apiFault(err, "write the attachments of disk %s", id)
		}
		r.sayTransport(vd, attachmentHere(vd, r.node), a)
	}
	return r.sumUp(ctx, id)
}

// sumUp makes the condition Attached say what the entries of all hosts say. The version guards it: two hosts that change
// their entries at once both see the second change, or a conflict.
func (r *recorder) sumUp(ctx context.Context, id string) error {
	const attempts = 5
	for i := 1; ; i++ {
		vd := &v1alpha1.VirtualDisk{}
		err := r.api.Get(ctx, client.ObjectKey{Name: id}, vd)
		if err == nil {
			if summedUp(vd) {
				return nil
			}
			var st conditionStatus
			if c, ok := attachedCondition(vd); ok {
				st.Conditions = transition(vd.Status.Conditions, c)
			}
			err = applyStatusAt(ctx, r.api, vd, vd.ResourceVersion, attachedManager, st)
		}
		switch {
		case err == nil, apierrors.IsNotFound(err):
			return nil
		case !apierrors.IsConflict(err) || i == attempts:
			return apiFault(err, "write the condition Attached of disk %s", id)
		}
	}
}

// attachedCondition is the condition that the entries make; without one there is none.
func attachedCondition(vd *v1alpha1.VirtualDisk) (metav1.Condition, bool) {
	var nodes []string
	for _, a := range vd.Status.Attachments {
		nodes = append(nodes, a.Host)
	}
	slices.Sort(nodes)
	switch len(nodes) {
	case 0:
		return metav1.Condition{}, false
	case 1:
		return fine(v1alpha1.ConditionAttached, vd.Generation, "Attached", "Node "+nodes[0]+" has the disk open."), true
	}
	return fine(v1alpha1.ConditionAttached, vd.Generation, "Attached", "Nodes "+strings.Join(nodes, ", ")+" have the disk open."), true
}

// summedUp: the condition says what the entries say.
func summedUp(vd *v1alpha1.VirtualDisk) bool {
	want, ok := attachedCondition(vd)
	have := meta.FindStatusCondition(vd.Status.Conditions, v1alpha1.ConditionAttached)
	if have == nil || !ok {
		return have == nil && !ok
	}
	return have.Status == want.Status && have.Reason == want.Reason && have.Message == want.Message
}

// recorded: the node's entry says what is so, nil for nothing.
func recorded(vd *v1alpha1.VirtualDisk, node string, a *host.Attachment) bool {
	have := attachmentHere(vd, node)
	if have == nil || a == nil {
		return have == nil && a == nil
	}
	return same(*have, attachmentOf(*a, node))
}

func attachmentHere(vd *v1alpha1.VirtualDisk, node string) *v1alpha1.DiskAttachment {
	for i := range vd.Status.Attachments {
		if vd.Status.Attachments[i].Host == node {
			return &vd.Status.Attachments[i]
		}
	}
	return nil
}

func same(a, b v1alpha1.DiskAttachment) bool {
	since := a.Since.Equal(&b.Since)
	a.Since = b.Since
	return since && equality.Semantic.DeepEqual(a, b)
}

// compare makes notices of every difference between hostd and the objects. What was noticed after the question to hostd
// is newer than its answer and stays. That a disk is not attached here any more is hostd's word (releaser), not a gap in
// its list: behind a gap may be a lease that keeps every other node out.
func (r *recorder) compare(ctx context.Context) error {
	r.mu.Lock()
	asked := r.seq
	r.mu.Unlock()
	open, err := r.hostd.Attachments(ctx)
	if err != nil {
		return err
	}
	var all v1alpha1.VirtualDiskList
	// A difference that is none any more costs a read of the object, no write.
	if err := r.api.List(ctx, &all, anyVersion()); err != nil {
		return apiFault(err, "list disks")
	}
	if err := r.remember(ctx, all.Items); err != nil {
		return err
	}
	here := map[string]*host.Attachment{}
	for i := range open {
		here[open[i].ID] = &open[i]
	}
	var gaps []gap
	for i := range all.Items {
		vd := &all.Items[i]
		now := here[vd.Name]
		g, isGap := r.gap(vd)
		switch {
		case r.newer(vd.Name, asked), r.settling(vd, now):
		case now == nil && isGap:
			gaps = append(gaps, g)
		case !recorded(vd, r.node, now) || !summedUp(vd):
			r.note(vd.Name, now)
		}
	}
	r.letGo(ctx, gaps, asked)
	return nil
}
