package driver

import (
	"context"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/vmdk-csi/vmdk-csi/pkg/stage"
)

// Slots of a host's (emulated) SCSI buses: 4 controllers of 16 units, of which unit 7 is the controller itself.
const maxVolumes = 4 * 15

// Node is the CSI node service over the stage port, whose implementation holds the locks.
type Node struct {
	csi.UnimplementedNodeServer
	ID      string // the node's name
	Volumes stage.Volumes
}

// NodeGetCapabilities says what the node service can do.
func (n *Node) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	out := &csi.NodeGetCapabilitiesResponse{}
	for _, t := range []csi.NodeServiceCapability_RPC_Type{
		csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME,
		csi.NodeServiceCapability_RPC_GET_VOLUME_STATS,
		csi.NodeServiceCapability_RPC_EXPAND_VOLUME,
		csi.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	} {
		out.Capabilities = append(out.Capabilities, &csi.NodeServiceCapability{Type: &csi.NodeServiceCapability_Rpc{
			Rpc: &csi.NodeServiceCapability_RPC{Type: t}}})
	}
	return out, nil
}

// NodeGetInfo names the node, its slots and its place.
func (n *Node) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: n.ID, MaxVolumesPerNode: maxVolumes,
		AccessibleTopology: topologyOf([]string{n.ID})[0]}, nil
}

// use is how a node request uses a volume.
func use(c *csi.VolumeCapability, volume, publish map[string]string) (capability, parameters, error) {
	params, err := fromContext(volume)
	if err != nil {
		return capability{}, params, err
	}
	can, err := parseCapability(c, params)
	if err != nil {
		return capability{}, params, err
	}
	can.readOnly = can.readOnly || publish[contextReadOnly] == "true"
	if order, ok := publish[contextTransport]; ok {
		if err := checkValue("publish context", contextTransport, order, nil); err != nil {
			return capability{}, params, err
		}
		params.transport = order
	}
	return can, params, nil
}

// checkPath: paths are the orchestrator's. One that is relative or climbs is not what it seems to be.
func checkPath(field, path string) error {
	switch {
	case path == "":
		return invalid("name the path", "%s is missing", field)
	case !filepath.IsAbs(path), filepath.Clean(path) != path:
		return invalid("use an absolute path without \"..\"", "%s %q is not absolute and clean", field, clip(path))
	}
	return nil
}

// firstError returns what the checks of one request found first. All of a request's fields are checked for presence
// before its id is checked for existence: the specification wants INVALID_ARGUMENT of the two.
func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func checkPresent(id string) error {
	if id == "" {
		return checkID(id)
	}
	return nil
}

// NodeStageVolume attaches the disk and mounts it once for the node.
func (n *Node) NodeStageVolume(ctx context.Context, req *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	err := firstError(checkPresent(req.GetVolumeId()), checkPath("staging_target_path", req.GetStagingTargetPath()))
	if err != nil {
		return nil, toStatus(err)
	}
	can, params, err := use(req.GetVolumeCapability(), req.GetVolumeContext(), req.GetPublishContext())
	if err == nil {
		err = checkID(req.GetVolumeId())
	}
	if err == nil {
		err = n.Volumes.Stage(ctx, stage.Volume{ID: req.GetVolumeId(), StagingPath: req.GetStagingTargetPath(), Mode: can.mode,
			FSType: can.fsType, Options: can.options, Partition: params.partition, ReadOnly: can.readOnly, Transport: params.transport, Copy: params.copy})
	}
	if err != nil {
		return nil, toStatus(err)
	}
	return &csi.NodeStageVolumeResponse{}, nil
}

// NodeUnstageVolume undoes NodeStageVolume.
func (n *Node) NodeUnstageVolume(ctx context.Context, req *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	err := firstError(checkPresent(req.GetVolumeId()), checkPath("staging_target_path", req.GetStagingTargetPath()),
		checkID(req.GetVolumeId()))
	if err == nil {
		err = n.Volumes.Unstage(ctx, req.GetVolumeId(), req.GetStagingTargetPath())
	}
	if err != nil {
		return nil, toStatus(err)
	}
	return &csi.NodeUnstageVolumeResponse{}, nil
}

// NodePublishVolume makes the volume appear at a workload's path.
func (n *Node) NodePublishVolume(ctx context.Context, req *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	err := firstError(checkPresent(req.GetVolumeId()), checkPath("target_path", req.GetTargetPath()))
	if err != nil {
		return nil, toStatus(err)
	}
	can, _, err := use(req.GetVolumeCapability(), req.GetVolumeContext(), req.GetPublishContext())
	if err == nil {
		err = firstError(checkPath("staging_target_path", req.GetStagingTargetPath()), checkID(req.GetVolumeId()))
	}
	if err == nil {
		err = n.Volumes.Publish(ctx, stage.Publication{ID: req.GetVolumeId(), StagingPath: req.GetStagingTargetPath(),
			Target: req.GetTargetPath(), Mode: can.mode, ReadOnly: can.readOnly || req.GetReadonly(), Options: can.options,
			SinglePath: can.singlePath})
	}
	if err != nil {
		return nil, toStatus(err)
	}
	return &csi.NodePublishVolumeResponse{}, nil
}

// NodeUnpublishVolume undoes NodePublishVolume.
func (n *Node) NodeUnpublishVolume(ctx context.Context, req *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	err := firstError(checkPresent(req.GetVolumeId()), checkPath("target_path", req.GetTargetPath()), checkID(req.GetVolumeId()))
	if err == nil {
		err = n.Volumes.Unpublish(ctx, req.GetVolumeId(), req.GetTargetPath())
	}
	if err != nil {
		return nil, toStatus(err)
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

// NodeExpandVolume grows the device, the partition and the file system after the disk.
func (n *Node) NodeExpandVolume(ctx context.Context, req *csi.NodeExpandVolumeRequest) (*csi.NodeExpandVolumeResponse, error) {
	err := checkPresent(req.GetVolumeId())
	if err == nil && req.GetVolumePath() == "" {
		err = checkPath("volume_path", "")
	}
	if err == nil {
		err = checkID(req.GetVolumeId()) // a path that is none of the volume's is not found, whatever its form
	}
	var size int64
	if err == nil {
		size, err = n.Volumes.Expand(ctx, req.GetVolumeId(), req.GetVolumePath(), req.GetCapacityRange().GetRequiredBytes())
	}
	if limit := req.GetCapacityRange().GetLimitBytes(); err == nil && limit > 0 && size > limit {
		err = outOfLimit(req.GetVolumeId(), size, limit)
	}
	if err != nil {
		return nil, toStatus(err)
	}
	return &csi.NodeExpandVolumeResponse{CapacityBytes: size}, nil
}

// NodeGetVolumeStats measures the volume at a path.
func (n *Node) NodeGetVolumeStats(ctx context.Context, req *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	err := checkPresent(req.GetVolumeId())
	if err == nil && req.GetVolumePath() == "" {
		err = checkPath("volume_path", "")
	}
	if err == nil {
		err = checkID(req.GetVolumeId())
	}
	if err != nil {
		return nil, toStatus(err)
	}
	u, err := n.Volumes.Usage(ctx, req.GetVolumeId(), req.GetVolumePath())
	if err != nil {
		return nil, toStatus(err)
	}
	out := &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{
		{Unit: csi.VolumeUsage_BYTES, Total: u.Total, Used: u.Used, Available: u.Free}}}
	if u.Mode == stage.Mount {
		out.Usage = append(out.Usage, &csi.VolumeUsage{Unit: csi.VolumeUsage_INODES, Total: u.Inodes, Used: u.InodesUsed,
			Available: u.InodesFree})
	}
	return out, nil
}
