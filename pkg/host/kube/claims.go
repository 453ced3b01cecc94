package kube

import (
	"context"
	"slices"

	"github.com/vmdk-csi/vmdk-csi/pkg/api/v1alpha1"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/transport"
)

// slots is what a node's emulated bus holds: four controllers of fifteen units (host.Slot).
const slots = 4 * 15

// Claim lets a node attach the disk, if nobody else may, has it open, or can object.
func (c *Client) Claim(ctx context.Context, id string, cl host.Claim) error {
	ctx, cancel := bound(ctx)
	defer cancel()
	for {
		vd, err := c.must(ctx, id)
		if err != nil {
			return err
		}
		if vd, err = c.evictUnclaimed(ctx, vd); fault.KindOf(err) == fault.InProgress && ctx.Err() == nil {
			continue // changed meanwhile
		} else if err != nil {
			return err
		}
		have, err := c.mayClaim(ctx, vd, cl)
		if have || err != nil {
			return err
		}
		_, err = c.patch(ctx, vd, func(s *v1alpha1.VirtualDiskSpec) {
			s.Claims = append(s.Claims, v1alpha1.DiskClaim{Node: cl.Node, ReadOnly: cl.ReadOnly})
			if writer(vd) == "" && !c.lends(ctx, vd, cl.Node) {
				s.Host = cl.Node // the host that has it attached does the work on it
			}
		})
		if fault.KindOf(err) == fault.InProgress && ctx.Err() == nil {
			continue // changed meanwhile, perhaps by another claim: judge again
		}
		return err
	}
}

// mayClaim judges a claim against the object: held already (true), free (false), or refused.
func (c *Client) mayClaim(ctx context.Context, vd *v1alpha1.VirtualDisk, cl host.Claim) (bool, error) {
	node, err := newNodes(c.api).state(ctx, cl.Node)
	if err != nil {
		return false, err
	}
	if !node.exists {
		return false, fault.New(fault.NotFound, "", "node %q does not exist", bounded(cl.Node, 253))
	}
	claims := make([]host.Claim, 0, len(vd.Spec.Claims)+1)
	for _, have := range vd.Spec.Claims {
		claims = append(claims, host.Claim{Node: have.Node, ReadOnly: have.ReadOnly})
	}
	if slices.Contains(vd.Spec.Evict, cl.Node) {
		return false, fault.New(fault.InProgress, "The request is repeated.", "disk %s is being taken from node %s, which was down", vd.Name, cl.Node)
	}
	next, err := host.AddClaim(vd.Name, claims, cl)
	if err != nil {
		return false, err
	}
	if len(next) == len(claims) {
		return true, nil
	}
	if err := c.released(ctx, vd, cl); err != nil {
		return false, err
	}
	switch {
	case retired(vd):
		return false, isRetired(vd.Name)
	case vd.DeletionTimestamp != nil:
		return false, fault.New(fault.Precondition, "", "disk %s is being deleted", vd.Name)
	case vd.Status.UUID == "":
		return false, fault.New(fault.InProgress, "The request is repeated.", "disk %s is not made yet", vd.Name)
	case damage(vd) != nil:
		return false, damage(vd)
	}
	if err := c.reaches(ctx, vd, cl.Node); err != nil {
		return false, err
	}
	return false, c.hasSlot(ctx, cl.Node)
}

func mode(readOnly bool) string {
	if readOnly {
		return "for reading"
	}
	return "for writing"
}

// released refuses while another node has the disk open: with no claim left it has not released it cleanly.
func (c *Client) released(ctx context.Context, vd *v1alpha1.VirtualDisk, cl host.Claim) error {
	for _, a := range vd.Status.Attachments {
		if a.Host == cl.Node || a.ReadOnly && cl.ReadOnly {
			continue
		}
		remedy := "Wait until node " + a.Host + " has released it."
		if slices.Contains(vd.Spec.Evict, a.Host) {
			remedy = "Wait: it is being taken from node " + a.Host + "; see kubectl describe virtualdisk."
		} else if s, err := newNodes(c.api).state(ctx, a.Host); err == nil && !s.exists {
			remedy = "Node " + a.Host + " does not exist any more and never released the disk: make sure that the machine is off, then bring " +
				"its vmdk-hostd back to release the disk, or repair it with vmdkctl."
		}
		return fault.New(fault.InUse, remedy, "disk %s is attached on node %s %s", vd.Name, a.Host, mode(a.ReadOnly))
	}
	return nil
}

func (c *Client) reaches(ctx context.Context, vd *v1alpha1.VirtualDisk, node string) error {
	ds, err := c.datastore(ctx, vd.Spec.Datastore)
	if err != nil {
		return err
	}
	if ds.Spec.Scope != v1alpha1.ScopeShared && vd.Spec.Host != node {
		return fault.New(fault.Precondition, "Run the pod on node "+vd.Spec.Host+", or use a shared datastore.",
			"disk %s lies in datastore %s of node %s; node %s does not reach it", vd.Name, ds.Name, vd.Spec.Host, node)
	}
	if hostStatus(ds, node) == nil && !overNBD(ctx, ds) {
		return fault.New(fault.Precondition, "Run vmdk-hostd with this datastore on the node.", "node %s does not reach datastore %s", node, ds.Name)
	}
	return nil
}

// overNBD says that a node may use disks of a shared directory through another host. The disks of a node's own directory stay where
// their volumes say that pods must run.
func overNBD(ctx context.Context, ds *v1alpha1.Datastore) bool {
	order, err := transport.ParseOrder(host.TransportFrom(ctx))
	return err == nil && slices.Contains(order, transport.NameNBD) && ds.Spec.Scope == v1alpha1.ScopeShared
}

// lends says that the node will have the disk through another host, which is the one to work on it until the node has it attached.
func (c *Client) lends(ctx context.Context, vd *v1alpha1.VirtualDisk, node string) bool {
	ds, err := c.datastore(ctx, vd.Spec.Datastore)
	if err != nil || !overNBD(ctx, ds) {
		return false
	}
	h := hostStatus(ds, node)
	return h == nil || !h.Ready
}

// hasSlot counts the node's claims. Two claims at once may both see the last slot: the host has the last word at attach.
func (c *Client) hasSlot(ctx context.Context, node string) error {
	var all v1alpha1.VirtualDiskList
	if err := c.api.List(ctx, &all, anyVersion()); err != nil {
		return apiFault(err, "count the disks of node %s", node)
	}
	n := 0
	for i := range all.Items {
		if slices.ContainsFunc(all.Items[i].Spec.Claims, func(cl v1alpha1.DiskClaim) bool { return cl.Node == node }) {
			n++
		}
	}
	if n >= slots {
		return fault.New(fault.Exhausted, "Run the pod on another node.", "node %s has %d disks, all that its bus has slots for", node, n)
	}
	return nil
}

// Unclaim takes the claim back when the node has let the disk go. A node that is gone from the cluster keeps its entry in
// attachments, so that nobody else attaches before the disk is released, but does not hold up the deletion of its pods. A disk on
// a LUN is taken from a node that is down (evict).
func (c *Client) Unclaim(ctx context.Context, id, node string) error {
	if !host.ValidDiskID(id) {
		return nil
	}
	ctx, cancel := bound(ctx)
	defer cancel()
	for {
		vd, err := c.read(ctx, id)
		if vd == nil || err != nil {
			return err
		}
		if vd, err = c.evict(ctx, vd, node); fault.KindOf(err) == fault.InProgress && ctx.Err() == nil {
			continue // changed meanwhile
		} else if err != nil {
			return err
		}
		if vd, err = c.awaitRelease(ctx, vd, node); vd == nil || err != nil {
			return err
		}
		keep := slices.DeleteFunc(slices.Clone(vd.Spec.Claims), func(cl v1alpha1.DiskClaim) bool { return node == "" || cl.Node == node })
		if len(keep) == len(vd.Spec.Claims) {
			return nil
		}
		_, err = c.patch(ctx, vd, func(s *v1alpha1.VirtualDiskSpec) { s.Claims = keep })
		switch {
		case fault.KindOf(err) == fault.InProgress && ctx.Err() == nil:
			continue
		case fault.KindOf(err) == fault.NotFound:
			return nil
		}
		return err
	}
}

// awaitRelease waits a little for the node to let the disk go: its word arrives shortly after the unstage.
func (c *Client) awaitRelease(ctx context.Context, vd *v1alpha1.VirtualDisk, node string) (*v1alpha1.VirtualDisk, error) {
	id := vd.Name
	holder, err := c.holder(ctx, vd, node)
	if err != nil || holder == "" {
		return vd, err
	}
	wait, cancel := context.WithTimeout(ctx, c.releaseWait)
	defer cancel()
	vd, err = c.await(wait, id, "release", func(now *v1alpha1.VirtualDisk) (bool, error) {
		if now == nil {
			return true, nil
		}
		has, err := c.holder(wait, now, node)
		if err == nil {
			holder = has
		}
		return err == nil && has == "", err
	})
	if err != nil && wait.Err() != nil {
		return nil, fault.New(fault.InUse, "The request is repeated until the pods there are gone; see kubectl describe virtualdisk.",
			"node %s still has disk %s attached", holder, id)
	}
	return vd, err
}

// holder is a node, of those that the request names, that has the disk open and is still part of the cluster.
func (c *Client) holder(ctx context.Context, vd *v1alpha1.VirtualDisk, node string) (string, error) {
	for _, a := range vd.Status.Attachments {
		if node != "" && a.Host != node {
			continue
		}
		s, err := newNodes(c.api).state(ctx, a.Host)
		if err != nil {
			return "", err
		}
		if s.exists {
			return a.Host, nil
		}
	}
	return "", nil
}
