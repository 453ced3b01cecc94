package kube

import (
	"context"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vmdk-csi/vmdk-csi/pkg/api/v1alpha1"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// Create makes the disk:
//
//  1. Create the object with the finalizer and a host that can work. Whoever creates it first wins; the others find it.
//     Crash behind this: the host makes the disk, a repeated request finds it.
//  2. Wait for the host's answer. Time over: InProgress, a repeated request waits on.
//  3. A failure for good: remove the object again, so that nothing half-made stays and the next request starts afresh
//     (an orchestrator that gave up after a final error never asks for the deletion). Crash before this: a repeated
//     request finds the failed object and does it.
func (c *Client) Create(ctx context.Context, spec host.DiskSpec) (host.Disk, error) {
	spec, err := spec.Normalize()
	if err != nil {
		return host.Disk{}, err
	}
	ctx, cancel := bound(ctx)
	defer cancel()
	id := host.DiskID(spec.Name)
	for {
		vd, err := c.read(ctx, id)
		if err != nil {
			return host.Disk{}, err
		}
		if vd == nil {
			vd, err = c.ask(ctx, id, spec)
			if fault.KindOf(err) == fault.Exists {
				continue // another request was faster
			}
			if err != nil {
				return host.Disk{}, err
			}
			return c.created(ctx, vd)
		}
		if err := sameSpec(vd, spec); err != nil {
			return host.Disk{}, err
		}
		if neverMade(vd) {
			// An earlier request's failure, whose removal did not happen: ours is a fresh attempt.
			if err := c.remove(ctx, vd); err != nil {
				return host.Disk{}, err
			}
			continue
		}
		if vd.Status.UUID == "" {
			if vd, err = c.place(ctx, vd, spec.Host); err != nil {
				return host.Disk{}, err
			}
		}
		return c.created(ctx, vd)
	}
}

// ask creates the object.
func (c *Client) ask(ctx context.Context, id string, spec host.DiskSpec) (*v1alpha1.VirtualDisk, error) {
	ds, err := c.datastore(ctx, spec.Datastore)
	if err != nil {
		return nil, err
	}
	picked, err := c.pickFor(ctx, ds, id, spec)
	if err != nil {
		return nil, err
	}
	vd := &v1alpha1.VirtualDisk{
		ObjectMeta: metav1.ObjectMeta{
			Name: id, Finalizers: []string{v1alpha1.Finalizer}, Annotations: map[string]string{},
		},
		Spec: v1alpha1.VirtualDiskSpec{
			Name: nameToText(spec.Name), Datastore: spec.Datastore, Host: picked, SizeBytes: spec.Size, InitialSizeBytes: spec.Size,
			DiskFormat: string(spec.Format), DiskType: string(spec.Type), CloneMode: string(spec.CloneMode),
		},
	}
	if from := spec.Source; from != nil {
		vd.Spec.Source = &v1alpha1.DiskSource{Snapshot: from.Snapshot, Disk: from.Disk}
	}
	if len(spec.Datastore) <= 63 { // a label value's limit; an object's name may be longer
		vd.Labels = map[string]string{v1alpha1.LabelDatastore: spec.Datastore}
	}
	if owner, ok := host.OwnerFrom(ctx); ok {
		vd.Annotations[v1alpha1.AnnotationPVCNamespace] = owner.Namespace
		vd.Annotations[v1alpha1.AnnotationPVCName] = owner.Name
	}
	if err := c.api.Create(ctx, vd); err != nil {
		return nil, apiFault(err, "create the object of disk %s", id)
	}
	return vd, nil
}

// sameSpec says whether the object is the answer to spec.
func sameSpec(vd *v1alpha1.VirtualDisk, spec host.DiskSpec) error {
	if retired(vd) {
		return fault.New(fault.Exists, "Use another name, or delete its snapshots first: "+strings.Join(vd.Status.Snapshots, ", ")+".",
			"disk %s (%q) was deleted, and its snapshots still need its links", vd.Name, bounded(spec.Name, 64))
	}
	if vd.DeletionTimestamp != nil {
		return fault.New(fault.InProgress, "The request is repeated.", "disk %s (%q) is being deleted", vd.Name, bounded(spec.Name, 64))
	}
	return specOf(vd).Matches(spec)
}

// neverMade says that a host answered: this disk cannot be made. One with a uuid was made and is never removed for a failure.
func neverMade(vd *v1alpha1.VirtualDisk) bool {
	return vd.Status.UUID == "" && vd.Status.Phase == v1alpha1.PhaseFailed && vd.Status.ObservedGeneration >= vd.Generation
}

// created waits until the disk is made, or cannot be.
func (c *Client) created(ctx context.Context, vd *v1alpha1.VirtualDisk) (host.Disk, error) {
	vd, err := c.await(ctx, vd.Name, "creation", func(now *v1alpha1.VirtualDisk) (bool, error) {
		if now == nil || now.UID != vd.UID || now.DeletionTimestamp != nil {
			return false, fault.New(fault.InProgress, "The request is repeated.", "disk %s was deleted while it was made", vd.Name)
		}
		return now.Status.UUID != "" || neverMade(now), nil
	})
	if err != nil {
		return host.Disk{}, err
	}
	if neverMade(vd) {
		why := error(fault.New(fault.Internal, "", "disk %s cannot be made by host %s", vd.Name, vd.Spec.Host))
		if cond := condition(vd, v1alpha1.ConditionReady); cond != nil {
			why = faultOf(cond)
		}
		if err := c.remove(ctx, vd); err != nil {
			c.log.Warn("the object of a disk that cannot be made stays for now", "disk", vd.Name, "error", err)
		}
		return host.Disk{}, why
	}
	if err := damage(vd); err != nil {
		return host.Disk{}, err
	}
	return c.disk(ctx, vd)
}

// remove deletes exactly the object that vd is a version of, and waits until it is gone.
func (c *Client) remove(ctx context.Context, vd *v1alpha1.VirtualDisk) error {
	err := c.api.Delete(ctx, vd, client.Preconditions{UID: &vd.UID, ResourceVersion: &vd.ResourceVersion})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return apiFault(err, "remove disk %s", vd.Name)
	}
	return c.gone(ctx, vd)
}
