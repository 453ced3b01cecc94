package kube

import (
	"context"

	"github.com/vmdk-csi/vmdk-csi/pkg/api/v1alpha1"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// pickFor chooses the host that makes a disk. One with a source is made where the source's files are and nobody else holds
// them: on a datastore of the nodes at the source's node, on a shared one where the source is attached, if it is.
func (c *Client) pickFor(ctx context.Context, ds *v1alpha1.Datastore, id string, spec host.DiskSpec) (string, error) {
	if spec.Source == nil {
		return c.pick(ctx, ds, id, spec.Host)
	}
	from, err := c.source(ctx, spec)
	if err != nil {
		return "", err
	}
	if ds.Spec.Scope == v1alpha1.ScopeShared {
		if from.held != "" {
			return from.held, nil
		}
		return c.pick(ctx, ds, id, spec.Host)
	}
	if spec.Host != "" && spec.Host != from.host {
		n := newNodes(c.api)
		if s, err := n.state(ctx, spec.Host); err != nil || !s.exists {
			return "", n.works(ctx, ds, spec.Host)
		}
		return "", fault.New(fault.Exhausted, "Run the pod on node "+from.host+", or keep such disks on a shared datastore.",
			"the source of the disk lies in datastore %s of node %s; node %s does not reach it", ds.Name, from.host, spec.Host)
	}
	return from.host, newNodes(c.api).works(ctx, ds, from.host)
}

// origin is where a source is.
type origin struct {
	host string // that works on it
	held string // that has its disk open, "" for none
}

// source finds what the disk is to be made from, and refuses what cannot be restored.
func (c *Client) source(ctx context.Context, spec host.DiskSpec) (origin, error) {
	var from origin
	var datastore string
	var size int64
	if id := spec.Source.Snapshot; id != "" {
		snap, err := c.mustSnapshot(ctx, id)
		if err != nil {
			return from, err
		}
		if err := restorable(snap); err != nil {
			return from, err
		}
		from.host, datastore, size = snap.Spec.Host, snap.Spec.Datastore, snap.Status.RestoreSizeBytes
	} else {
		vd, err := c.mustLive(ctx, spec.Source.Disk)
		if err != nil {
			return from, err
		}
		from.host, datastore, size = vd.Spec.Host, vd.Spec.Datastore, vd.Status.SizeBytes
	}
	if err := spec.CheckSource(datastore, size); err != nil {
		return from, err
	}
	var err error
	from.held, err = c.heldSource(ctx, &v1alpha1.DiskSource{Snapshot: spec.Source.Snapshot, Disk: spec.Source.Disk})
	return from, err
}

// mustLive reads a disk that something is to be made of.
func (c *Client) mustLive(ctx context.Context, id string) (*v1alpha1.VirtualDisk, error) {
	vd, err := c.must(ctx, id)
	switch {
	case err != nil:
		return nil, err
	case retired(vd):
		return nil, isRetired(id)
	case vd.DeletionTimestamp != nil:
		return nil, fault.New(fault.NotFound, "", "disk %s is being deleted", id)
	case vd.Status.UUID == "":
		return nil, fault.New(fault.InProgress, "The request is repeated.", "disk %s is not made yet", id)
	}
	return vd, damage(vd)
}

// restorable says why a snapshot is no source now.
func restorable(ds *v1alpha1.DiskSnapshot) error {
	if ds.Status.Ready {
		return nil
	}
	if err := broken(ds); err != nil {
		return err
	}
	return fault.New(fault.InProgress, "The request is repeated.", "snapshot %s is not made yet", ds.Name)
}

// heldSource is the host that has the disk of a source open: its hostd alone may touch the links. "" for none.
func (c *Client) heldSource(ctx context.Context, from *v1alpha1.DiskSource) (string, error) {
	if from == nil {
		return "", nil
	}
	disk := from.Disk
	if from.Snapshot != "" {
		ds, err := snapshots.read(ctx, c.api, from.Snapshot)
		if ds == nil || err != nil {
			return "", err
		}
		disk = ds.Spec.Disk
	}
	vd, err := c.read(ctx, disk)
	if vd == nil || err != nil {
		return "", err
	}
	return writer(vd), nil
}
