package kube

import (
	"context"
	"fmt"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vmdk-csi/vmdk-csi/pkg/api/v1alpha1"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// Delete removes the disk:
//
//  1. Delete the object, if it is still the unclaimed one that was read; the finalizer keeps it. Crash behind this: the
//     host goes on alone, and a repeated request waits.
//  2. The host deletes the files, then takes the finalizer away. Crash between: deleting again finds no files.
//  3. A disk that has snapshots is retired by its host instead: the claims' volume is gone, the object stays until the last
//     snapshot goes.
func (c *Client) Delete(ctx context.Context, id string) error {
	if !host.ValidDiskID(id) {
		return nil // no disk has such an id
	}
	ctx, cancel := bound(ctx)
	defer cancel()
	for {
		vd, err := c.read(ctx, id)
		if vd == nil || err != nil || retired(vd) {
			return err
		}
		if err := unused(vd); err != nil {
			return err
		}
		if vd.DeletionTimestamp != nil {
			return c.finishDelete(ctx, vd)
		}
		err = c.api.Delete(ctx, vd, client.Preconditions{UID: &vd.UID, ResourceVersion: &vd.ResourceVersion})
		if err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
			return apiFault(err, "delete disk %s", id)
		}
		// Conflict: somebody changed it between, perhaps by a claim. Look again.
	}
}

// unused refuses while a node may use the disk.
func unused(vd *v1alpha1.VirtualDisk) error {
	var who []string
	for _, cl := range vd.Spec.Claims {
		who = append(who, "claimed by node "+cl.Node)
	}
	for _, a := range vd.Status.Attachments {
		who = append(who, "attached on node "+a.Host)
	}
	if len(who) == 0 {
		return nil
	}
	return fault.New(fault.InUse, "Delete the pods that use it first.", "disk %s is in use: %s", vd.Name, strings.Join(who, ", "))
}

// finishDelete gets an answer for a disk that is being deleted.
func (c *Client) finishDelete(ctx context.Context, vd *v1alpha1.VirtualDisk) error {
	placed, err := c.place(ctx, vd, "")
	if err != nil {
		if err := c.orphan(ctx, vd); err != nil {
			return err
		}
		// The host may be back before the Node object says so; the deletion goes on when it is.
		return c.gone(ctx, vd)
	}
	return c.gone(ctx, placed)
}

// gone waits until vd is no more, or retired, or its host says why not.
func (c *Client) gone(ctx context.Context, vd *v1alpha1.VirtualDisk) error {
	// An earlier attempt's failure is not the answer to this one.
	if stuck(vd) != nil {
		next, err := c.patch(ctx, vd, func(s *v1alpha1.VirtualDiskSpec) { s.Attempt++ })
		if err != nil && fault.KindOf(err) != fault.NotFound {
			return err
		}
		if err == nil {
			vd = next
		}
	}
	_, err := c.await(ctx, vd.Name, "deletion", func(now *v1alpha1.VirtualDisk) (bool, error) {
		if now == nil || now.UID != vd.UID || retired(now) {
			return true, nil
		}
		if now.Generation < vd.Generation {
			return false, nil
		}
		return false, stuck(now)
	})
	return err
}

// stuck is the host's answer that the deletion fails, unless it may pass by itself.
func stuck(vd *v1alpha1.VirtualDisk) error {
	cond := condition(vd, v1alpha1.ConditionDeleted)
	if cond == nil || cond.Status != metav1.ConditionFalse || cond.ObservedGeneration < vd.Generation || passing(fault.Kind(cond.Reason)) {
		return nil
	}
	return faultOf(cond)
}

// orphan says on the object what to do about a disk whose node is gone for good: nobody can delete its files.
func (c *Client) orphan(ctx context.Context, vd *v1alpha1.VirtualDisk) error {
	s, err := newNodes(c.api).state(ctx, vd.Spec.Host)
	if err != nil || s.exists {
		return err
	}
	why := lost("disk", "virtualdisk", vd.Name, vd.Spec.Datastore, vd.Spec.Host)
	cond := failed(v1alpha1.ConditionDeleted, vd.Generation, why)
	if err := applyStatus(ctx, c.api, vd, controllerManager, diskStatus{Conditions: transition(vd.Status.Conditions, cond)}); err != nil {
		return apiFault(err, "say what disk %s needs", vd.Name)
	}
	return why
}

// lost is what to do about an object whose files are on a node that is no more.
func lost(noun, resource, name, datastore, node string) error {
	return fault.New(fault.Unavailable, fmt.Sprintf("Bring the node back, or, if its disks are lost, forget this one: kubectl patch %s %s "+
		"--type=merge -p '{\"metadata\":{\"finalizers\":null}}'.", resource, name),
		"the files of %s %s are in datastore %s of node %s, which does not exist any more", noun, name, datastore, node)
}
