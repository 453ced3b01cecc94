package driver

import (
	"context"
	"strconv"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// controller is the inner CSI controller service: it checks and translates. NewController gives it its locks.
type controller struct {
	csi.UnimplementedControllerServer
	disks      host.Disks
	snapshots  host.Snapshots
	claims     host.Claims
	datastores host.Datastores
}

var controllerCapabilities = []csi.ControllerServiceCapability_RPC_Type{
	csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
	csi.ControllerServiceCapability_RPC_PUBLISH_UNPUBLISH_VOLUME,
	csi.ControllerServiceCapability_RPC_PUBLISH_READONLY,
	csi.ControllerServiceCapability_RPC_LIST_VOLUMES,
	csi.ControllerServiceCapability_RPC_LIST_VOLUMES_PUBLISHED_NODES,
	csi.ControllerServiceCapability_RPC_GET_VOLUME,
	csi.ControllerServiceCapability_RPC_GET_CAPACITY,
	csi.ControllerServiceCapability_RPC_EXPAND_VOLUME,
	csi.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	csi.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT,
	csi.ControllerServiceCapability_RPC_LIST_SNAPSHOTS,
	csi.ControllerServiceCapability_RPC_GET_SNAPSHOT,
	csi.ControllerServiceCapability_RPC_CLONE_VOLUME,
	csi.ControllerServiceCapability_RPC_GET_VOLUME_HEALTH,
	csi.ControllerServiceCapability_RPC_LIST_VOLUME_HEALTH,
}

func (c *controller) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	out := &csi.ControllerGetCapabilitiesResponse{}
	for _, t := range controllerCapabilities {
		out.Capabilities = append(out.Capabilities, &csi.ControllerServiceCapability{Type: &csi.ControllerServiceCapability_Rpc{
			Rpc: &csi.ControllerServiceCapability_RPC{Type: t}}})
	}
	return out, nil
}

func (c *controller) DeleteVolume(ctx context.Context, req *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	err := checkID(req.GetVolumeId())
	if err == nil {
		err = c.disks.Delete(ctx, req.GetVolumeId())
	}
	// What does not exist is deleted.
	if err != nil && fault.KindOf(err) != fault.NotFound {
		return nil, toStatus(err)
	}
	return &csi.DeleteVolumeResponse{}, nil
}

func (c *controller) ControllerPublishVolume(ctx context.Context, req *csi.ControllerPublishVolumeRequest) (*csi.ControllerPublishVolumeResponse, error) {
	if req.GetVolumeId() == "" {
		return nil, toStatus(checkID(""))
	}
	if req.GetNodeId() == "" {
		return nil, toStatus(invalid("name the node", "node_id is missing"))
	}
	params, err := fromContext(req.GetVolumeContext())
	if err != nil {
		return nil, toStatus(err)
	}
	can, err := parseCapability(req.GetVolumeCapability(), params)
	if err != nil {
		return nil, toStatus(err)
	}
	if err := checkID(req.GetVolumeId()); err != nil {
		return nil, toStatus(err)
	}
	claim := host.Claim{Node: req.GetNodeId(), ReadOnly: can.readOnly || req.GetReadonly()}
	if err := c.claims.Claim(host.WithTransport(ctx, params.transport), req.GetVolumeId(), claim); err != nil {
		return nil, toStatus(err)
	}
	disk, err := c.disks.Get(ctx, req.GetVolumeId())
	if err != nil {
		return nil, toStatus(err)
	}
	publish := map[string]string{contextReadOnly: strconv.FormatBool(claim.ReadOnly), contextUUID: disk.UUID}
	if params.transport != "" {
		// The order that the node is to try; which one serves is known on the node alone, and stands in the object's status.
		publish[contextTransport] = params.transport
	}
	c.expect(ctx, disk, claim.Node, params.transport, publish)
	return &csi.ControllerPublishVolumeResponse{PublishContext: publish}, nil
}

func (c *controller) ControllerUnpublishVolume(ctx context.Context, req *csi.ControllerUnpublishVolumeRequest) (*csi.ControllerUnpublishVolumeResponse, error) {
	err := checkID(req.GetVolumeId())
	if err == nil {
		err = c.claims.Unclaim(ctx, req.GetVolumeId(), req.GetNodeId())
	}
	if err != nil && fault.KindOf(err) != fault.NotFound {
		return nil, toStatus(err)
	}
	return &csi.ControllerUnpublishVolumeResponse{}, nil
}

func (c *controller) ControllerExpandVolume(ctx context.Context, req *csi.ControllerExpandVolumeRequest) (*csi.ControllerExpandVolumeResponse, error) {
	id := req.GetVolumeId()
	if id == "" {
		return nil, toStatus(checkID(id))
	}
	if req.GetCapacityRange() == nil {
		return nil, toStatus(invalid("say how large the volume is to be", "capacity_range is missing"))
	}
	size, err := sizeOf(req.GetCapacityRange(), host.MinCapacity, host.MinCapacity)
	if err != nil {
		return nil, toStatus(err)
	}
	disk, err := c.get(ctx, id)
	if err != nil {
		return nil, toStatus(err)
	}
	if limit := req.GetCapacityRange().GetLimitBytes(); limit > 0 && disk.Size > limit {
		return nil, toStatus(outOfLimit(id, disk.Size, limit))
	}
	if disk.Size < size {
		if disk, err = c.disks.Expand(ctx, id, size); err != nil {
			return nil, toStatus(err)
		}
	}
	// The node has work to do also for a raw block volume: its device's size changes.
	return &csi.ControllerExpandVolumeResponse{CapacityBytes: disk.Size, NodeExpansionRequired: true}, nil
}
