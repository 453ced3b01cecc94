package kube

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/api/v1alpha1"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// releaser has hostd release what an earlier life of this node held: the machine was started again, perhaps made anew
// under its name, and nobody remembers an attachment that he could end. Until its manifest says so, no other node
// attaches such a disk (ARCHITECTURE.md, rule 9).
//
// Two kinds of disks are asked about: those whose object says that they are attached here while hostd does not list them,
// for as long as it says so; and once, at the start, those of shared datastores that nobody says anything about.
//
// hostd checks a disk before it releases it, which may take its time: it is asked in a goroutine of its own, one at a
// time, that recorder.run waits for.
type releaser struct {
	running bool              // guarded by recorder.mu, like the rest
	once    map[string]bool   // disks still to be asked about once; nil before the first comparison
	kept    map[string]string // disks that hostd did not release, and why, as logged
}

// releaseTime bounds one question: a datastore that answers no more must not keep the disks of the others.
const releaseTime = 5 * time.Minute

// gap is a disk that hostd does not list and that an earlier life of the node may hold.
type gap struct {
	id        string
	datastore string
	shown     bool // its object says that it is attached here
}

// remember notes, at the first comparison, the disks that are asked about once.
func (r *recorder) remember(ctx context.Context, all []v1alpha1.VirtualDisk) error {
	r.mu.Lock()
	first := r.release.once == nil
	r.mu.Unlock()
	if !first {
		return nil
	}
	var stores v1alpha1.DatastoreList
	if err := r.api.List(ctx, &stores, anyVersion()); err != nil {
		return apiFault(err, "list datastores")
	}
	once := map[string]bool{}
	for i := range all {
		vd := &all[i]
		shared := slices.ContainsFunc(stores.Items, func(ds v1alpha1.Datastore) bool {
			return ds.Name == vd.Spec.Datastore && ds.Spec.Scope == v1alpha1.ScopeShared
		})
		if shared && vd.Status.UUID != "" {
			once[vd.Name] = true
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.release.once = once
	return nil
}

// gap says whether a disk that hostd does not list is one.
func (r *recorder) gap(vd *v1alpha1.VirtualDisk) (gap, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	g := gap{id: vd.Name, datastore: vd.Spec.Datastore, shown: attachmentHere(vd, r.node) != nil}
	return g, g.shown || r.release.once[vd.Name]
}

// letGo asks hostd about the gaps. While earlier questions are not answered it does nothing: the next comparison finds the
// disks again. What was noticed after the notice asked is newer than the answers.
func (r *recorder) letGo(ctx context.Context, gaps []gap, asked int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.release.running {
		return
	}
	maps.DeleteFunc(r.release.kept, func(id, _ string) bool {
		return !slices.ContainsFunc(gaps, func(g gap) bool { return g.id == id })
	})
	if len(gaps) == 0 {
		return
	}
	r.release.running = true
	r.owned.Go(func() {
		for _, g := range gaps {
			r.letGoOne(ctx, g, asked)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.release.running = false
	})
}

func (r *recorder) letGoOne(ctx context.Context, g gap, asked int64) {
	id := g.id
	if ctx.Err() != nil || r.newer(id, asked) {
		return
	}
	ask, cancel := context.WithTimeout(ctx, releaseTime)
	defer cancel()
	err := r.hostd.Unclaim(host.WithDatastore(ask, g.datastore), id, r.node)
	if ctx.Err() != nil {
		return
	}
	if err == nil && g.shown && !r.newer(id, asked) {
		r.note(id, nil)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !passing(fault.KindOf(err)) {
		delete(r.release.once, id)
	}
	if err == nil {
		delete(r.release.kept, id)
		return
	}
	if r.release.kept[id] != err.Error() {
		r.log.Warn("hostd does not have the disk attached, and does not say that it is released", "disk", id, "error", err)
		r.release.kept[id] = err.Error()
	}
}

// newer says whether something was noticed about the disk after the notice asked.
func (r *recorder) newer(id string, asked int64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	n, noticed := r.want[id]
	return noticed && n.seq > asked
}
