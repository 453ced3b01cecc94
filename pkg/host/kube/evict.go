package kube

import (
	"context"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vmdk-csi/vmdk-csi/pkg/api/v1alpha1"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// A disk on a LUN is taken from a node that is down, in steps of which each may be repeated:
//
//  1. The controller writes the node into spec.evict, and has a host that lives do the work (Client.evict). Crash behind this: the
//     host goes on.
//  2. That host's hostd takes the disk away (host.Evictor). Crash behind this: it finds that nothing is left to take.
//  3. The host takes the node's entry out of status.attachments: others may claim the disk.
//  4. The host takes the node out of spec.evict: it may claim the disk again.
//
// A node's own word counts for nothing here: what says that it is down is the Node, tainted by the administrator, or gone.

// evict asks for the disk to be taken from those nodes, of which the request names, that are down. Kinds: InProgress (the object
// changed meanwhile), Unavailable (no host can do it).
func (c *Client) evict(ctx context.Context, vd *v1alpha1.VirtualDisk, node string) (*v1alpha1.VirtualDisk, error) {
	n := newNodes(c.api)
	next := slices.Clone(vd.Spec.Evict)
	for _, a := range vd.Status.Attachments {
		if node != "" && a.Host != node || slices.Contains(next, a.Host) {
			continue
		}
		s, err := n.state(ctx, a.Host)
		if err != nil {
			return nil, err
		}
		if s.down() {
			next = append(next, a.Host)
		}
	}
	if len(next) == 0 {
		return vd, nil
	}
	ds, err := c.datastore(ctx, vd.Spec.Datastore)
	if fault.KindOf(err) == fault.NotFound || err == nil && ds.Spec.Kind != v1alpha1.KindLUN {
		return vd, nil
	}
	if err != nil {
		return nil, err
	}
	at := vd.Spec.Host
	if n.works(ctx, ds, at) != nil || slices.Contains(next, at) {
		if at, err = c.pick(ctx, ds, vd.Name, ""); err != nil {
			return nil, err
		}
	}
	if at == vd.Spec.Host && len(next) == len(vd.Spec.Evict) {
		return vd, nil
	}
	c.log.Warn("a disk is to be taken from a node that is down", "disk", vd.Name, "nodes", next, "by", at)
	return c.patch(ctx, vd, func(s *v1alpha1.VirtualDiskSpec) { s.Evict, s.Host = next, at })
}

// evictUnclaimed asks for it where no request about the node will come any more: its claim was taken back, and then its Node went.
func (c *Client) evictUnclaimed(ctx context.Context, vd *v1alpha1.VirtualDisk) (*v1alpha1.VirtualDisk, error) {
	for _, a := range vd.Status.Attachments {
		if slices.ContainsFunc(vd.Spec.Claims, func(cl v1alpha1.DiskClaim) bool { return cl.Node == a.Host }) {
			continue
		}
		var err error
		if vd, err = c.evict(ctx, vd, a.Host); err != nil {
			return nil, err
		}
	}
	return vd, nil
}

// evict carries out what Client.evict asked for.
func (a *Agent) evict(ctx context.Context, vd *v1alpha1.VirtualDisk) error {
	hostd, ok := a.p.Hostd.(host.Evictor)
	if !ok {
		return fault.New(fault.Unsupported, "", "host %s takes no disks from other nodes", a.p.Node)
	}
	for _, node := range vd.Spec.Evict {
		if err := hostd.Evict(ctx, vd.Name, node); err != nil && fault.KindOf(err) != fault.NotFound {
			err = fault.Wrap(err, "host %s cannot take the disk from node %s", a.p.Node, node)
			if ctx.Err() == nil && !passing(fault.KindOf(err)) {
				a.say(vd, true, "EvictFailed", eventText(err))
			}
			return err
		}
		err := applyStatus(ctx, a.api, vd, hostManager("attach", node), attachStatus{})
		if err != nil && !apierrors.IsNotFound(err) {
			return apiFault(err, "write that disk %s was taken from node %s", vd.Name, node)
		}
		a.say(vd, true, "DiskEvicted", fmt.Sprintf("Host %s took the disk from node %s, which is down. What was not flushed there is lost.",
			a.p.Node, node))
	}
	if err := a.sumUp(ctx, vd.Name); err != nil {
		return err
	}
	// The status that was written made it another version; what was asked for meanwhile is not dropped.
	now := &v1alpha1.VirtualDisk{}
	if err := a.api.Get(ctx, client.ObjectKeyFromObject(vd), now); err != nil {
		return apiFault(err, "read disk %s", vd.Name)
	}
	next := now.DeepCopy()
	next.Spec.Evict = slices.DeleteFunc(next.Spec.Evict, func(n string) bool { return slices.Contains(vd.Spec.Evict, n) })
	err := a.api.Patch(ctx, next, client.MergeFromWithOptions(now, client.MergeFromWithOptimisticLock{}))
	return apiFault(err, "say that disk %s was taken", vd.Name)
}
