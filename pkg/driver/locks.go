package driver

import (
	"context"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/vmdk-csi/vmdk-csi/internal/kmutex"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// NewController is the CSI controller service over the ports. It lets one changing call on a volume run at a time.
// That is politeness, not correctness: several replicas may run, and the ports are idempotent under concurrency.
func NewController(p Ports) csi.ControllerServer {
	return &lockingController{controller: &controller{disks: p, snapshots: p, claims: p, datastores: p}}
}

// Ports are what the controller service stands on. An embedding, not an interface of its own: the service takes them apart.
type Ports interface {
	host.Disks
	host.Snapshots
	host.Claims
	host.Datastores
}

type lockingController struct {
	*controller
	locks kmutex.Set
}

func locked[Req, Resp any](ctx context.Context, locks *kmutex.Set, id, op string, req Req, call func(context.Context, Req) (*Resp, error)) (*Resp, error) {
	unlock, err := locks.TryLock(id, op)
	if err != nil {
		return nil, toStatus(err)
	}
	defer unlock()
	return call(ctx, req)
}

func (c *lockingController) CreateVolume(ctx context.Context, req *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	return locked(ctx, &c.locks, host.DiskID(req.GetName()), "CreateVolume", req, c.controller.CreateVolume)
}

func (c *lockingController) DeleteVolume(ctx context.Context, req *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	return locked(ctx, &c.locks, req.GetVolumeId(), "DeleteVolume", req, c.controller.DeleteVolume)
}

func (c *lockingController) ControllerPublishVolume(ctx context.Context, req *csi.ControllerPublishVolumeRequest) (*csi.ControllerPublishVolumeResponse, error) {
	return locked(ctx, &c.locks, req.GetVolumeId(), "ControllerPublishVolume", req, c.controller.ControllerPublishVolume)
}

func (c *lockingController) ControllerUnpublishVolume(ctx context.Context, req *csi.ControllerUnpublishVolumeRequest) (*csi.ControllerUnpublishVolumeResponse, error) {
	return locked(ctx, &c.locks, req.GetVolumeId(), "ControllerUnpublishVolume", req, c.controller.ControllerUnpublishVolume)
}

func (c *lockingController) ControllerExpandVolume(ctx context.Context, req *csi.ControllerExpandVolumeRequest) (*csi.ControllerExpandVolumeResponse, error) {
	return locked(ctx, &c.locks, req.GetVolumeId(), "ControllerExpandVolume", req, c.controller.ControllerExpandVolume)
}

func (c *lockingController) CreateSnapshot(ctx context.Context, req *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	return locked(ctx, &c.locks, host.SnapshotID(req.GetName()), "CreateSnapshot", req, c.controller.CreateSnapshot)
}

func (c *lockingController) DeleteSnapshot(ctx context.Context, req *csi.DeleteSnapshotRequest) (*csi.DeleteSnapshotResponse, error) {
	return locked(ctx, &c.locks, req.GetSnapshotId(), "DeleteSnapshot", req, c.controller.DeleteSnapshot)
}
