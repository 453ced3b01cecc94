package driver

import (
	"context"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

func parseCreateSnapshot(req *csi.CreateSnapshotRequest) (host.SnapshotSpec, error) {
	spec := host.SnapshotSpec{Name: req.GetName(), Disk: req.GetSourceVolumeId()}
	if err := checkName("snapshot", spec.Name); err != nil {
		return spec, err
	}
	if spec.Disk == "" {
		return spec, invalid("name the volume", "source_volume_id is missing")
	}
	var err error
	if spec.Freeze, spec.FreezeDeadline, err = parseFreeze(req.GetParameters()); err != nil {
		return spec, err
	}
	return spec, checkID(spec.Disk)
}

// CreateSnapshot answers when the snapshot is cut, which makes it ready to use: there is no processing behind it.
func (c *controller) CreateSnapshot(ctx context.Context, req *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	spec, err := parseCreateSnapshot(req)
	if err == nil {
		err = c.usableFrom(ctx, spec.Disk, req.GetAccessibilityRequirements())
	}
	if err != nil {
		return nil, toStatus(err)
	}
	snap, err := c.snapshots.CreateSnapshot(ctx, spec)
	if err != nil {
		return nil, toStatus(err)
	}
	return &csi.CreateSnapshotResponse{Snapshot: snapshotOf(snap)}, nil
}

// usableFrom says whether snapshots of a disk are usable where the orchestrator wants them: they are where the disk is.
func (c *controller) usableFrom(ctx context.Context, disk string, wish *csi.TopologyRequirement) error {
	nodes := nodesOf(wish.GetRequisite())
	if len(nodes) == 0 {
		return nil
	}
	d, err := c.disks.Get(ctx, disk)
	if err != nil {
		return err
	}
	if len(d.Hosts) == 0 || slices.ContainsFunc(d.Hosts, func(h string) bool { return slices.Contains(nodes, h) }) {
		return nil
	}
	return fault.New(fault.Exhausted, "ask for node "+d.Hosts[0]+", or keep such volumes on a shared datastore",
		"a snapshot of volume %s is usable on node %s alone, not on %s", disk, d.Hosts[0], strings.Join(nodes, ", "))
}

func snapshotOf(s host.Snapshot) *csi.Snapshot {
	return &csi.Snapshot{SnapshotId: s.ID, SourceVolumeId: s.Disk, SizeBytes: s.Size, CreationTime: timestamppb.New(s.Created),
		ReadyToUse: s.Ready, AccessibleTopology: topologyOf(s.Hosts)}
}

func (c *controller) DeleteSnapshot(ctx context.Context, req *csi.DeleteSnapshotRequest) (*csi.DeleteSnapshotResponse, error) {
	err := checkSnapshotID(req.GetSnapshotId())
	if err == nil {
		err = c.snapshots.DeleteSnapshot(ctx, req.GetSnapshotId())
	}
	// What does not exist is deleted.
	if err != nil && fault.KindOf(err) != fault.NotFound {
		return nil, toStatus(err)
	}
	return &csi.DeleteSnapshotResponse{}, nil
}

func (c *controller) GetSnapshot(ctx context.Context, req *csi.GetSnapshotRequest) (*csi.GetSnapshotResponse, error) {
	snap, err := c.snapshot(ctx, req.GetSnapshotId())
	if err != nil {
		return nil, toStatus(err)
	}
	return &csi.GetSnapshotResponse{Snapshot: snapshotOf(snap)}, nil
}

// snapshot is one that was cut: before, it has neither a content nor a time.
func (c *controller) snapshot(ctx context.Context, id string) (host.Snapshot, error) {
	if err := checkSnapshotID(id); err != nil {
		return host.Snapshot{}, err
	}
	snap, err := c.snapshots.GetSnapshot(ctx, id)
	if err == nil && !isCut(snap) {
		err = fault.New(fault.NotFound, "", "snapshot %s is still being made", id)
	}
	return snap, err
}

func isCut(s host.Snapshot) bool { return !s.Created.IsZero() }

func (c *controller) ListSnapshots(ctx context.Context, req *csi.ListSnapshotsRequest) (*csi.ListSnapshotsResponse, error) {
	if req.GetMaxEntries() < 0 {
		return nil, toStatus(invalid("use 0 for all", "max_entries %d is negative", req.GetMaxEntries()))
	}
	if req.GetSnapshotId() != "" {
		return c.listOne(ctx, req)
	}
	list, next, err := c.snapshots.ListSnapshots(ctx, req.GetSourceVolumeId(), int(req.GetMaxEntries()), req.GetStartingToken())
	if err != nil {
		return nil, toListStatus(err)
	}
	out := &csi.ListSnapshotsResponse{NextToken: next}
	for _, s := range list {
		if isCut(s) {
			out.Entries = append(out.Entries, &csi.ListSnapshotsResponse_Entry{Snapshot: snapshotOf(s)})
		}
	}
	return out, nil
}

// listOne is the list of one snapshot, which is empty if there is none.
func (c *controller) listOne(ctx context.Context, req *csi.ListSnapshotsRequest) (*csi.ListSnapshotsResponse, error) {
	out := &csi.ListSnapshotsResponse{}
	snap, err := c.snapshot(ctx, req.GetSnapshotId())
	switch {
	case fault.KindOf(err) == fault.NotFound:
		return out, nil
	case err != nil:
		return nil, toStatus(err)
	}
	if of := req.GetSourceVolumeId(); of == "" || of == snap.Disk {
		out.Entries = append(out.Entries, &csi.ListSnapshotsResponse_Entry{Snapshot: snapshotOf(snap)})
	}
	return out, nil
}
