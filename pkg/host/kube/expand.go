package kube

import (
	"context"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vmdk-csi/vmdk-csi/pkg/api/v1alpha1"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// Expand raises the wanted size and waits for the host that has the disk attached, or works on it.
func (c *Client) Expand(ctx context.Context, id string, size int64) (host.Disk, error) {
	if err := host.CheckSize(size); err != nil {
		return host.Disk{}, err
	}
	ctx, cancel := bound(ctx)
	defer cancel()
	for {
		vd, err := c.must(ctx, id)
		if err != nil {
			return host.Disk{}, err
		}
		switch {
		case retired(vd):
			return host.Disk{}, isRetired(id)
		case vd.DeletionTimestamp != nil:
			return host.Disk{}, fault.New(fault.Precondition, "", "disk %s is being deleted", id)
		case vd.Status.UUID == "":
			return host.Disk{}, fault.New(fault.InProgress, "The request is repeated.", "disk %s is not made yet", id)
		case damage(vd) != nil:
			return host.Disk{}, damage(vd)
		case vd.Status.SizeBytes >= size:
			return c.disk(ctx, vd)
		}
		if vd, err = c.place(ctx, vd, ""); err == nil && (vd.Spec.SizeBytes < size || tooSmall(vd) != nil) {
			vd, err = c.patch(ctx, vd, func(s *v1alpha1.VirtualDiskSpec) {
				if s.SizeBytes < size {
					s.SizeBytes = size
				} else {
					s.Attempt++ // asked before, and failed: try now
				}
			})
		}
		if fault.KindOf(err) == fault.InProgress {
			continue // changed by somebody else meanwhile
		}
		if err != nil {
			return host.Disk{}, err
		}
		return c.expanded(ctx, vd, size)
	}
}

func (c *Client) expanded(ctx context.Context, vd *v1alpha1.VirtualDisk, size int64) (host.Disk, error) {
	vd, err := c.await(ctx, vd.Name, "expansion", func(now *v1alpha1.VirtualDisk) (bool, error) {
		switch {
		case now == nil || now.UID != vd.UID:
			return false, notFound(vd.Name)
		case now.Status.SizeBytes >= size:
			return true, nil
		case now.Generation < vd.Generation:
			return false, nil
		}
		return false, tooSmall(now)
	})
	if err != nil {
		return host.Disk{}, err
	}
	return c.disk(ctx, vd)
}

// tooSmall is the host's answer that the expansion fails, unless it may pass by itself.
func tooSmall(vd *v1alpha1.VirtualDisk) error {
	cond := condition(vd, v1alpha1.ConditionExpanded)
	if cond == nil || cond.Status != metav1.ConditionFalse || cond.ObservedGeneration < vd.Generation || passing(fault.Kind(cond.Reason)) {
		return nil
	}
	return faultOf(cond)
}
