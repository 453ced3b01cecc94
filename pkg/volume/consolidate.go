package volume

import (
	"context"
	"errors"
	"slices"

	"github.com/vmdk-csi/vmdk-csi/pkg/datastore"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/lease"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// ConsolidateOptions of Consolidate.
type ConsolidateOptions struct {
	// Pace, if set, is called before each piece of n bytes is copied, and may wait: the rate limit.
	Pace func(ctx context.Context, n int64) error
	// Progress, if set, is told how many of the bytes to be copied are copied.
	Progress func(done, total int64)
	// Direction, if set, is the only one that is considered; else the one that copies less.
	Direction chain.Direction
}

// ConsolidateResult is what Consolidate did.
type ConsolidateResult struct {
	// Merged says that two links became one; there may be more to do.
	Merged bool
	// Freed is how many bytes the merge gave back to the datastore.
	Freed int64
	// Waits is why there is something to merge and it is not merged now, "" if nothing is left.
	Waits string
}

// Unneeded is what is left to merge of a disk, nil if nothing is. Kinds: NotFound, Damaged.
func (v *Volumes) Unneeded(id string) (*host.Consolidation, error) {
	vol, err := v.store.OpenVolume(id)
	if err != nil {
		return nil, notThere(id, err)
	}
	defer vol.Close()
	m, err := current(vol)
	if err != nil {
		return nil, err
	}
	return consolidation(vol.Dir(), m), nil
}

// Consolidate makes one link of two neighbours at a boundary that no snapshot needs, if there is one that can be merged now.
// server is the worker that serves the disk on this host, nil when it is not attached here. Steps:
//
//  1. detached: hold the disk
//  2. commit the intent                  crash: the lower link may be unclean and larger; the next attach, or hold, mends it
//  3. merge: copy, and at its end
//  4. commit the links as they are then, with their descriptors behind   crash: the next attach, or hold, rebinds them
//  5. (the engine) rebind the descriptors; commit that they are          detached: and release
//  6. remove the files of the link that is gone                          crash: unreferenced files
//
// When ctx ends before 4, the engine leaves both links clean, the intent is dropped by a commit, and the disk is released if it
// is detached; what was copied stays, and a later merge does what is left. An attached disk whose worker died keeps the intent:
// the next Consolidate goes on with it.
//
// Kinds: NotFound, InUse (attached on another host), InProgress, NoSpace, Damaged, Timeout (ctx), Poisoned, Unavailable.
func (v *Volumes) Consolidate(ctx context.Context, id string, o ConsolidateOptions, server Server) (ConsolidateResult, error) {
	s, err := v.begin(ctx, id, "consolidate")
	if err != nil {
		return ConsolidateResult{}, err
	}
	defer s.end()
	rec, m, err := s.read()
	if err != nil {
		return ConsolidateResult{}, err
	}
	if server != nil {
		if err := v.serving(id, m); err != nil {
			return ConsolidateResult{}, err
		}
	}
	c, waits, err := choose(s.Dir(), m, o.Direction)
	if err != nil || c == nil && (server != nil || free(m)) {
		return ConsolidateResult{Waits: waits}, err
	}
	j := &mergeJob{v: v, s: s, o: o, server: server}
	if server == nil {
		if m, _, err = v.hold(ctx, s, rec, m); err != nil {
			return ConsolidateResult{}, err
		}
		if c, waits, err = choose(s.Dir(), m, o.Direction); err != nil || c == nil {
			return ConsolidateResult{Waits: waits}, errors.Join(err, v.let(s, m))
		}
	}
	res, err := j.run(ctx, m, c)
	if err == nil {
		v.log.Info("links merged", "disk", id, "lower", m.Links[c.lower].Descriptor, "direction", c.direction, "freed", res.Freed)
	}
	return res, fault.Wrap(err, "consolidate disk %s", id)
}

// mergeJob is one merge.
type mergeJob struct {
	v         *Volumes
	s         *session
	o         ConsolidateOptions
	server    Server
	m         datastore.Manifest // as last committed
	committed bool               // step 4
}

// run is steps 2 to 6.
func (j *mergeJob) run(ctx context.Context, m datastore.Manifest, c *choice) (ConsolidateResult, error) {
	j.m = m
	err := j.v.decide(ctx, j.s.Dir(), m, c, j.server)
	if err == nil {
		err = j.intend(c)
	}
	if err != nil {
		return ConsolidateResult{}, errors.Join(err, j.giveUp())
	}
	old := j.m
	before := reclaimable(j.s.Volume, old.Links[c.lower:c.lower+2])
	err = j.merge(ctx, c)
	if !j.committed {
		if err == nil {
			err = fault.New(fault.Internal, "", "the links of disk %s were merged without a commit", m.Disk)
		}
		return ConsolidateResult{}, errors.Join(err, j.drop(context.WithoutCancel(ctx), c, err))
	}
	err = j.finish(context.WithoutCancel(ctx), err)
	res := ConsolidateResult{Merged: true}
	if err == nil {
		j.v.dropGone(j.s.Volume, old, j.m)
		res.Freed = max(0, before-reclaimable(j.s.Volume, j.m.Links[c.lower:c.lower+1]))
	}
	return res, err
}

// intend is step 2.
func (j *mergeJob) intend(c *choice) error {
	next := j.m
	next.Merge = &datastore.Merge{Lower: next.Links[c.lower].Descriptor, Direction: string(c.direction)}
	next.State = lease.Next(next.State)
	if err := j.s.Commit(next); err != nil {
		return lost(j.s.ID(), err)
	}
	j.m = next
	return nil
}

// giveUp releases a detached disk at which nothing was begun.
func (j *mergeJob) giveUp() error {
	if j.server != nil {
		return nil
	}
	return j.v.let(j.s, j.m)
}

// merge is steps 3 and 4.
func (j *mergeJob) merge(ctx context.Context, c *choice) error {
	p := chain.MergeParams{
		Lower: c.lower, Direction: c.direction, Pace: j.o.Pace, Progress: j.o.Progress,
		Commit: func(merged chain.Identity) error { return j.commit(c, merged) },
	}
	if j.server != nil {
		return j.server.Merge(ctx, p)
	}
	return j.v.engine.Merge(ctx, j.s.Dir(), j.m.Links, p)
}

// commit is step 4.
func (j *mergeJob) commit(c *choice, merged chain.Identity) error {
	next := withMerged(j.m, c.lower, merged)
	next.State = lease.Next(j.m.State)
	err := lost(j.s.ID(), j.s.Commit(next))
	if err == nil {
		j.m, j.committed = next, true
	}
	return err
}

// withMerged is m with the link merged in the place of links[lower] and the one above it. What ended at the upper one ends
// there.
func withMerged(m datastore.Manifest, lower int, merged chain.Identity) datastore.Manifest {
	upper := m.Links[lower+1]
	link := datastore.Link{
		Descriptor: merged.Name, Extents: merged.Extents, Type: string(merged.Type), CID: merged.CID.String(), LongID: merged.LongID,
		ParentCID: merged.ParentCID.String(), Size: merged.Size,
	}
	links := slices.Clone(m.Links[:lower])
	links = append(append(links, link), m.Links[lower+2:]...)
	m.Snapshots = slices.Clone(m.Snapshots)
	ends := false
	for i, p := range m.Snapshots {
		if p.Link == upper.Descriptor {
			m.Snapshots[i].Link, ends = merged.Name, true
		}
	}
	next := withLinks(m, links)
	// A frozen head at which no snapshot ends was shared; the link that stays is not.
	next.Links[lower].Frozen = upper.Frozen && ends
	next.Merge, next.Behind = nil, merged.Name
	return next
}

// finish is step 5 after a merge that was committed and returned err.
func (j *mergeJob) finish(ctx context.Context, err error) error {
	next := j.m
	if err != nil {
		if j.server != nil && !errors.Is(err, fault.Unavailable) {
			return err // the worker has the chain open: the next attach rebinds
		}
		// Nobody has the chain open any more.
		if rerr := j.v.repair(ctx, j.s.Volume, next, tidying{}); rerr != nil {
			return errors.Join(err, rerr)
		}
		j.v.log.Warn("links were merged, and their descriptors were written afterwards", "disk", j.s.ID(), "error", err)
	}
	next.Behind = ""
	if j.server == nil {
		links, ierr := j.v.engine.Inspect(ctx, j.s.Dir(), next.Links)
		if ierr != nil {
			return ierr
		}
		next = withLinks(next, links)
		next.Released = true
	}
	next.State = lease.Next(next.State)
	if err := j.s.Commit(next); err != nil {
		return lost(j.s.ID(), err)
	}
	j.m = next
	return nil
}

// drop takes the intent back after a merge that failed with cause, if both links are clean: then the lower one, which may have
// grown, is recorded as it is. A detached disk is released.
func (j *mergeJob) drop(ctx context.Context, c *choice, cause error) error {
	if errors.Is(cause, fault.Poisoned) || j.server != nil && errors.Is(cause, fault.Unavailable) {
		return nil // whoever opens the disk next mends it
	}
	next := j.m
	from, to := 0, len(next.Links)
	if j.server != nil {
		from, to = c.lower, c.lower+1
	}
	links, err := j.v.engine.Inspect(ctx, j.s.Dir(), next.Links[from:to])
	if err != nil {
		return err
	}
	next = withLinks(next, slices.Concat(next.Links[:from], links, next.Links[to:]))
	next.Merge = nil
	next.State = lease.Next(next.State)
	next.Released = j.server == nil
	return lost(j.s.ID(), j.s.Commit(next))
}

// reclaimable is how many bytes the files of links use that no other disk shares.
func reclaimable(vol *datastore.Volume, links []datastore.Link) (n int64) {
	for _, l := range links {
		for _, e := range l.Extents {
			if info, err := vol.Dir().Stat(e); err == nil && info.Links == 1 {
				n += info.Allocated
			}
		}
	}
	return n
}
