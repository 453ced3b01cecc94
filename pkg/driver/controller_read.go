package driver

import (
	"context"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

func (c *controller) ValidateVolumeCapabilities(ctx context.Context, req *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	id := req.GetVolumeId()
	switch {
	case id == "":
		return nil, toStatus(checkID(id))
	case len(req.GetVolumeCapabilities()) == 0:
		return nil, toStatus(invalid("name the capabilities to confirm", "volume_capabilities are missing"))
	}
	disk, err := c.get(ctx, id)
	if err != nil {
		return nil, toStatus(err)
	}
	if why := unconfirmed(req, disk); why != nil {
		return &csi.ValidateVolumeCapabilitiesResponse{Message: why.Error()}, nil
	}
	return &csi.ValidateVolumeCapabilitiesResponse{Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeContext: req.GetVolumeContext(), VolumeCapabilities: req.GetVolumeCapabilities(), Parameters: req.GetParameters()}}, nil
}

// unconfirmed says why a volume does not have what is asked, nil when it has.
func unconfirmed(req *csi.ValidateVolumeCapabilitiesRequest, disk host.Disk) error {
	params, err := fromContext(req.GetVolumeContext())
	if err != nil {
		return err
	}
	if _, err := parseCapabilities(req.GetVolumeCapabilities(), params); err != nil {
		return err
	}
	if len(req.GetParameters()) == 0 {
		return nil
	}
	if params, err = parseParameters(req.GetParameters()); err != nil {
		return err
	}
	switch {
	case params.format != disk.Spec.Format:
		return invalid("", "the volume's %s is %s", ParamDiskFormat, disk.Spec.Format)
	case params.diskType != disk.Spec.Type:
		return invalid("", "the volume's %s is %s", ParamDiskType, disk.Spec.Type)
	case disk.Spec.Source != nil && params.cloneMode != disk.Spec.CloneMode:
		return invalid("", "the volume's %s is %s", ParamCloneMode, disk.Spec.CloneMode)
	case params.datastore != "" && params.datastore != disk.Spec.Datastore:
		return invalid("", "the volume's %s is %s", ParamDatastore, disk.Spec.Datastore)
	}
	return refuseMutable(req.GetMutableParameters())
}

// get is a disk that is a volume: not one that is still being made or is kept only for its snapshots.
func (c *controller) get(ctx context.Context, id string) (host.Disk, error) {
	if err := checkID(id); err != nil {
		return host.Disk{}, err
	}
	disk, err := c.disks.Get(ctx, id)
	if err != nil {
		return host.Disk{}, err
	}
	if !isVolume(disk) {
		return host.Disk{}, fault.New(fault.NotFound, "", "volume %s does not exist (its disk is %s)", id, disk.Phase)
	}
	return disk, nil
}

func isVolume(d host.Disk) bool {
	return d.Phase == host.Ready || d.Phase == host.Deleting || d.Phase == ""
}

func publishedOn(d host.Disk) []string {
	var nodes []string
	for _, claim := range d.Claims {
		nodes = append(nodes, claim.Node)
	}
	return nodes
}

func (c *controller) ListVolumes(ctx context.Context, req *csi.ListVolumesRequest) (*csi.ListVolumesResponse, error) {
	if req.GetMaxEntries() < 0 {
		return nil, toStatus(invalid("use 0 for all", "max_entries %d is negative", req.GetMaxEntries()))
	}
	disks, next, err := c.disks.List(ctx, int(req.GetMaxEntries()), req.GetStartingToken())
	if err != nil {
		return nil, toListStatus(err)
	}
	out := &csi.ListVolumesResponse{NextToken: next}
	for _, d := range disks {
		if !isVolume(d) {
			continue
		}
		out.Entries = append(out.Entries, &csi.ListVolumesResponse_Entry{Volume: volumeOf(d),
			Status: &csi.ListVolumesResponse_VolumeStatus{PublishedNodeIds: publishedOn(d)}})
	}
	return out, nil
}

func (c *controller) ControllerGetVolume(ctx context.Context, req *csi.ControllerGetVolumeRequest) (*csi.ControllerGetVolumeResponse, error) {
	disk, err := c.get(ctx, req.GetVolumeId())
	if err != nil {
		return nil, toStatus(err)
	}
	return &csi.ControllerGetVolumeResponse{Volume: volumeOf(disk),
		Status: &csi.ControllerGetVolumeResponse_VolumeStatus{PublishedNodeIds: publishedOn(disk)}}, nil
}

func (c *controller) GetCapacity(ctx context.Context, req *csi.GetCapacityRequest) (*csi.GetCapacityResponse, error) {
	params, err := parseParameters(req.GetParameters())
	if err != nil {
		return nil, toStatus(err)
	}
	if len(req.GetVolumeCapabilities()) > 0 {
		if _, err := parseCapabilities(req.GetVolumeCapabilities(), params); err != nil {
			return nil, toStatus(err)
		}
	}
	stores, err := c.datastores.Datastores(ctx)
	if err != nil {
		return nil, toStatus(err)
	}
	node := req.GetAccessibleTopology().GetSegments()[TopologyNode]
	var free, largest int64
	for _, d := range stores {
		// An unknown datastore has no room: the claim's own failure names it, a capacity question must not fail for it.
		if params.datastore == "" || params.datastore == d.Name {
			f, l := room(d, node)
			free, largest = free+f, max(largest, l)
		}
	}
	return &csi.GetCapacityResponse{AvailableCapacity: free, MaximumVolumeSize: wrapperspb.Int64(largest),
		MinimumVolumeSize: wrapperspb.Int64(host.MinCapacity)}, nil
}
