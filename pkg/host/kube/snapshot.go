package kube

import (
	"context"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vmdk-csi/vmdk-csi/pkg/api/v1alpha1"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// CreateSnapshot makes the snapshot as Create makes a disk:
//
//  1. Create the object with the finalizer, addressed to the host that has the disk attached, or else works on it. Whoever
//     creates it first wins. Crash behind this: the host makes the snapshot, a repeated request finds it.
//  2. Wait for the host's answer. Time over: InProgress, a repeated request waits on.
//  3. A failure for good: remove the object again. Crash before this: a repeated request finds the failed object and does it.
func (c *Client) CreateSnapshot(ctx context.Context, spec host.SnapshotSpec) (host.Snapshot, error) {
	spec, err := spec.Normalize()
	if err != nil {
		return host.Snapshot{}, err
	}
	ctx, cancel := bound(ctx)
	defer cancel()
	id := host.SnapshotID(spec.Name)
	for {
		ds, err := snapshots.read(ctx, c.api, id)
		if err != nil {
			return host.Snapshot{}, err
		}
		if ds == nil {
			ds, err = c.askSnapshot(ctx, id, spec)
			if fault.KindOf(err) == fault.Exists {
				continue // another request was faster
			}
			if err != nil {
				return host.Snapshot{}, err
			}
			return c.snapped(ctx, ds)
		}
		have := host.SnapshotSpec{Name: nameFromText(ds.Spec.Name), Disk: ds.Spec.Disk}
		switch {
		case ds.DeletionTimestamp != nil:
			return host.Snapshot{}, fault.New(fault.InProgress, "The request is repeated.", "snapshot %s (%q) is being deleted", id, bounded(spec.Name, 64))
		case have.Matches(spec) != nil:
			return host.Snapshot{}, have.Matches(spec)
		case neverSnapped(ds):
			if err := c.removeSnapshot(ctx, ds); err != nil {
				return host.Snapshot{}, err
			}
			continue
		case !ds.Status.Ready:
			if ds, err = c.placeSnapshot(ctx, ds); fault.KindOf(err) == fault.InProgress && ctx.Err() == nil {
				continue // changed by somebody else meanwhile
			} else if err != nil {
				return host.Snapshot{}, err
			}
		}
		return c.snapped(ctx, ds)
	}
}

// askSnapshot creates the object.
func (c *Client) askSnapshot(ctx context.Context, id string, spec host.SnapshotSpec) (*v1alpha1.DiskSnapshot, error) {
	vd, err := c.mustLive(ctx, spec.Disk)
	if err == nil {
		vd, err = c.place(ctx, vd, "")
	}
	if err != nil {
		return nil, err
	}
	ds := &v1alpha1.DiskSnapshot{
		ObjectMeta: metav1.ObjectMeta{Name: id, Finalizers: []string{v1alpha1.Finalizer}},
		Spec: v1alpha1.DiskSnapshotSpec{
			Name: nameToText(spec.Name), Disk: vd.Name, Datastore: vd.Spec.Datastore, Host: vd.Spec.Host, UUID: vd.Status.UUID,
			Freeze: string(spec.Freeze), FreezeDeadlineSeconds: int64((spec.FreezeDeadline + time.Second - 1) / time.Second),
		},
	}
	if len(ds.Spec.Datastore) <= 63 {
		ds.Labels = map[string]string{v1alpha1.LabelDatastore: ds.Spec.Datastore}
	}
	if err := c.api.Create(ctx, ds); err != nil {
		return nil, apiFault(err, "create the object of snapshot %s", id)
	}
	return ds, nil
}

// neverSnapped says that a host answered: this snapshot cannot be made. One with a CID was made.
func neverSnapped(ds *v1alpha1.DiskSnapshot) bool {
	return ds.Status.CID == "" && ds.Status.ObservedGeneration >= ds.Generation && broken(ds) != nil
}

// broken is why a snapshot cannot be used, unless that may pass by itself.
func broken(ds *v1alpha1.DiskSnapshot) error {
	cond := meta.FindStatusCondition(ds.Status.Conditions, v1alpha1.ConditionReady)
	if cond == nil || cond.Status != metav1.ConditionFalse || passing(fault.Kind(cond.Reason)) {
		return nil
	}
	return faultOf(cond)
}

// snapped waits until the snapshot is made, or cannot be.
func (c *Client) snapped(ctx context.Context, ds *v1alpha1.DiskSnapshot) (host.Snapshot, error) {
	ds, err := snapshots.await(ctx, c.api, ds.Name, "creation", func(now *v1alpha1.DiskSnapshot) (bool, error) {
		if now == nil || now.UID != ds.UID || now.DeletionTimestamp != nil {
			return false, fault.New(fault.InProgress, "The request is repeated.", "snapshot %s was deleted while it was made", ds.Name)
		}
		return now.Status.Ready || now.Status.CID != "" && broken(now) != nil || neverSnapped(now), nil
	})
	if err != nil {
		return host.Snapshot{}, err
	}
	if err := broken(ds); err != nil {
		if neverSnapped(ds) {
			if rerr := c.removeSnapshot(ctx, ds); rerr != nil {
				c.log.Warn("the object of a snapshot that cannot be made stays for now", "snapshot", ds.Name, "error", rerr)
			}
		}
		return host.Snapshot{}, err
	}
	return c.snapshot(ctx, ds)
}

// snapshot adds to the object what its datastore knows.
func (c *Client) snapshot(ctx context.Context, ds *v1alpha1.DiskSnapshot) (host.Snapshot, error) {
	store, err := c.datastore(ctx, ds.Spec.Datastore)
	if err != nil && fault.KindOf(err) != fault.NotFound {
		return host.Snapshot{}, err
	}
	return snapshotOf(ds, store != nil && store.Spec.Scope == v1alpha1.ScopeShared), nil
}

// placeSnapshot makes sure that the host that works on the snapshot is the one that may touch its disk.
func (c *Client) placeSnapshot(ctx context.Context, ds *v1alpha1.DiskSnapshot) (*v1alpha1.DiskSnapshot, error) {
	vd, err := c.read(ctx, ds.Spec.Disk)
	if err != nil {
		return ds, err
	}
	at := ds.Spec.Host
	if vd != nil {
		if vd, err = c.place(ctx, vd, ""); err != nil {
			return ds, err
		}
		at = vd.Spec.Host
	} else if err := c.reachable(ctx, ds); err != nil {
		return ds, err
	}
	if at == ds.Spec.Host {
		return ds, nil
	}
	c.log.Info("another host works on the snapshot", "snapshot", ds.Name, "from", ds.Spec.Host, "to", at)
	return c.patchSnapshot(ctx, ds, func(s *v1alpha1.DiskSnapshotSpec) { s.Host = at })
}

// reachable says why the snapshot's host cannot work on it.
func (c *Client) reachable(ctx context.Context, ds *v1alpha1.DiskSnapshot) error {
	store, err := c.datastore(ctx, ds.Spec.Datastore)
	if err != nil {
		return err
	}
	return newNodes(c.api).works(ctx, store, ds.Spec.Host)
}

func (c *Client) patchSnapshot(ctx context.Context, ds *v1alpha1.DiskSnapshot, change func(*v1alpha1.DiskSnapshotSpec)) (*v1alpha1.DiskSnapshot, error) {
	next := ds.DeepCopy()
	change(&next.Spec)
	if err := c.api.Patch(ctx, next, client.MergeFromWithOptions(ds, client.MergeFromWithOptimisticLock{})); err != nil {
		return ds, apiFault(err, "change snapshot %s", ds.Name)
	}
	return next, nil
}

// GetSnapshot describes one snapshot; one that is being deleted is no more.
func (c *Client) GetSnapshot(ctx context.Context, id string) (host.Snapshot, error) {
	ds, err := c.mustSnapshot(ctx, id)
	if err != nil {
		return host.Snapshot{}, err
	}
	if ds.Status.CID != "" {
		if err := broken(ds); err != nil {
			f := fault.From(err)
			return host.Snapshot{}, fault.New(fault.Damaged, f.Remedy, "%s", f.Message)
		}
	}
	return c.snapshot(ctx, ds)
}

// mustSnapshot reads a snapshot that has to exist.
func (c *Client) mustSnapshot(ctx context.Context, id string) (*v1alpha1.DiskSnapshot, error) {
	var ds *v1alpha1.DiskSnapshot
	var err error
	if host.ValidSnapshotID(id) {
		if ds, err = snapshots.read(ctx, c.api, id); err != nil {
			return nil, err
		}
	}
	if ds == nil {
		return nil, fault.New(fault.NotFound, "See kubectl get disksnapshots.", "snapshot %q does not exist", bounded(id, 64))
	}
	if ds.DeletionTimestamp != nil {
		return nil, fault.New(fault.NotFound, "", "snapshot %s is being deleted", id)
	}
	return ds, nil
}

// ListSnapshots returns snapshots in order of id; a token is the id that the last page ended with.
func (c *Client) ListSnapshots(ctx context.Context, disk string, limit int, token string) ([]host.Snapshot, string, error) {
	if err := host.CheckSnapshotList(limit, token); err != nil {
		return nil, "", err
	}
	if disk != "" && !host.ValidDiskID(disk) {
		return nil, "", nil // no disk has such an id, so no snapshot is of it
	}
	var stores v1alpha1.DatastoreList
	if err := c.api.List(ctx, &stores); err != nil {
		return nil, "", apiFault(err, "list datastores")
	}
	all, err := c.snapshotObjects(ctx, disk)
	if err != nil {
		return nil, "", err
	}
	var out []host.Snapshot
	for i := range all {
		ds := &all[i]
		if ds.Name <= token {
			continue
		}
		if limit > 0 && len(out) == limit {
			return out, out[limit-1].ID, nil
		}
		shared := slices.ContainsFunc(stores.Items, func(s v1alpha1.Datastore) bool {
			return s.Name == ds.Spec.Datastore && s.Spec.Scope == v1alpha1.ScopeShared
		})
		out = append(out, snapshotOf(ds, shared))
	}
	return out, "", nil
}

// snapshotObjects lists in order of name the snapshots that are, or are being made, of one disk or of all.
func (c *Client) snapshotObjects(ctx context.Context, disk string) ([]v1alpha1.DiskSnapshot, error) {
	var all []v1alpha1.DiskSnapshot
	for next := ""; ; {
		options := []client.ListOption{client.Limit(500), client.Continue(next)}
		if disk != "" {
			options = append(options, client.MatchingFields{"spec.disk": disk})
		}
		var page v1alpha1.DiskSnapshotList
		if err := c.api.List(ctx, &page, options...); err != nil {
			return nil, apiFault(err, "list snapshots")
		}
		all = append(all, page.Items...)
		if next = page.Continue; next == "" {
			break
		}
	}
	all = slices.DeleteFunc(all, func(ds v1alpha1.DiskSnapshot) bool { return ds.DeletionTimestamp != nil || neverSnapped(&ds) })
	slices.SortFunc(all, func(a, b v1alpha1.DiskSnapshot) int { return compare(a.Name, b.Name) })
	return all, nil
}

// DeleteSnapshot removes the snapshot as Delete removes a disk: the object first, which its finalizer keeps until a host has
// let the links go.
func (c *Client) DeleteSnapshot(ctx context.Context, id string) error {
	if !host.ValidSnapshotID(id) {
		return nil // no snapshot has such an id
	}
	ctx, cancel := bound(ctx)
	defer cancel()
	for {
		ds, err := snapshots.read(ctx, c.api, id)
		if ds == nil || err != nil {
			return err
		}
		if ds.DeletionTimestamp == nil {
			if err := c.removeSnapshotObject(ctx, ds); err != nil {
				return err
			}
			continue // with the generation that the deletion made
		}
		placed, err := c.placeSnapshot(ctx, ds)
		if fault.KindOf(err) == fault.InProgress && ctx.Err() == nil {
			continue
		}
		if err != nil {
			if err := c.orphanSnapshot(ctx, ds); err != nil {
				return err
			}
		}
		return c.snapshotGone(ctx, placed)
	}
}

func (c *Client) removeSnapshotObject(ctx context.Context, ds *v1alpha1.DiskSnapshot) error {
	err := c.api.Delete(ctx, ds, client.Preconditions{UID: &ds.UID, ResourceVersion: &ds.ResourceVersion})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return apiFault(err, "delete snapshot %s", ds.Name)
	}
	return nil
}

// removeSnapshot deletes exactly the object that ds is a version of, and waits until it is gone.
func (c *Client) removeSnapshot(ctx context.Context, ds *v1alpha1.DiskSnapshot) error {
	if err := c.removeSnapshotObject(ctx, ds); err != nil {
		return err
	}
	return c.snapshotGone(ctx, ds)
}

// snapshotGone waits until ds is no more, or its host says why not.
func (c *Client) snapshotGone(ctx context.Context, ds *v1alpha1.DiskSnapshot) error {
	if stuckSnapshot(ds) != nil { // an earlier attempt's failure is not the answer to this one
		next, err := c.patchSnapshot(ctx, ds, func(s *v1alpha1.DiskSnapshotSpec) { s.Attempt++ })
		if err != nil && fault.KindOf(err) != fault.NotFound {
			return err
		}
		ds = next
	}
	_, err := snapshots.await(ctx, c.api, ds.Name, "deletion", func(now *v1alpha1.DiskSnapshot) (bool, error) {
		if now == nil || now.UID != ds.UID {
			return true, nil
		}
		if now.Generation < ds.Generation {
			return false, nil
		}
		return false, stuckSnapshot(now)
	})
	return err
}

// stuckSnapshot is the host's answer that the deletion fails, unless it may pass by itself.
func stuckSnapshot(ds *v1alpha1.DiskSnapshot) error {
	cond := meta.FindStatusCondition(ds.Status.Conditions, v1alpha1.ConditionDeleted)
	if cond == nil || cond.Status != metav1.ConditionFalse || cond.ObservedGeneration < ds.Generation || passing(fault.Kind(cond.Reason)) {
		return nil
	}
	return faultOf(cond)
}

// orphanSnapshot says on the object what to do about a snapshot whose node is gone for good.
func (c *Client) orphanSnapshot(ctx context.Context, ds *v1alpha1.DiskSnapshot) error {
	s, err := newNodes(c.api).state(ctx, ds.Spec.Host)
	if err != nil || s.exists {
		return err
	}
	why := lost("snapshot", "disksnapshot", ds.Name, ds.Spec.Datastore, ds.Spec.Host)
	cond := failed(v1alpha1.ConditionDeleted, ds.Generation, why)
	status := v1alpha1.DiskSnapshotStatus{Conditions: transition(ds.Status.Conditions, cond)}
	if err := applyStatus(ctx, c.api, ds, controllerManager, status); err != nil {
		return apiFault(err, "say what snapshot %s needs", ds.Name)
	}
	return why
}
