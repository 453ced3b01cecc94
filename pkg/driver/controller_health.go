package driver

import (
	"context"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// ControllerGetVolumeHealth says what is wrong with a volume: nothing, most of the time.
func (c *controller) ControllerGetVolumeHealth(ctx context.Context, req *csi.ControllerGetVolumeHealthRequest) (*csi.ControllerGetVolumeHealthResponse, error) {
	id := req.GetVolumeId()
	if err := checkID(id); err != nil {
		return nil, toStatus(err)
	}
	health := &csi.VolumeHealth{VolumeId: id}
	disk, err := c.disks.Get(ctx, id)
	switch kind := fault.KindOf(err); {
	case lost(kind):
		health.HealthStatuses = []*csi.VolumeHealth_VolumeHealthEntry{entry(csi.VolumeHealthErrorType_DATA_LOSS, string(kind), err.Error())}
		return &csi.ControllerGetVolumeHealthResponse{VolumeHealth: health}, nil
	case err != nil:
		return nil, toStatus(err)
	case disk.Phase == host.Retired || disk.Phase == host.Pending:
		return nil, toStatus(fault.New(fault.NotFound, "", "volume %s does not exist (its disk is %s)", id, disk.Phase))
	}
	stores, err := c.datastores.Datastores(ctx)
	if err != nil {
		return nil, toStatus(err)
	}
	health.HealthStatuses = ailments(disk, stores)
	return &csi.ControllerGetVolumeHealthResponse{VolumeHealth: health}, nil
}

// ControllerListVolumeHealth lists the volumes that something is wrong with.
func (c *controller) ControllerListVolumeHealth(ctx context.Context, req *csi.ControllerListVolumeHealthRequest) (*csi.ControllerListVolumeHealthResponse, error) {
	if req.GetMaxEntries() < 0 {
		return nil, toStatus(invalid("use 0 for all", "max_entries %d is negative", req.GetMaxEntries()))
	}
	disks, next, err := c.disks.List(ctx, int(req.GetMaxEntries()), req.GetStartingToken())
	if err != nil {
		return nil, toListStatus(err)
	}
	stores, err := c.datastores.Datastores(ctx)
	if err != nil {
		return nil, toStatus(err)
	}
	out := &csi.ControllerListVolumeHealthResponse{NextToken: next}
	for _, d := range disks {
		if d.Phase == host.Retired || d.Phase == host.Pending {
			continue
		}
		if bad := ailments(d, stores); len(bad) > 0 {
			out.Entries = append(out.Entries, &csi.VolumeHealth{VolumeId: d.ID, HealthStatuses: bad})
		}
	}
	return out, nil
}

// lost are the kinds of failures that mean lost data.
func lost(k fault.Kind) bool { return k == fault.Damaged || k == fault.Poisoned }

func entry(status csi.VolumeHealthErrorType, reason, message string) *csi.VolumeHealth_VolumeHealthEntry {
	return &csi.VolumeHealth_VolumeHealthEntry{Status: status, Reason: reason, Message: message}
}

// ailments of a disk: damage, a datastore that no host of it can use, and what its users were told. One of a kind, as the
// specification wants.
func ailments(d host.Disk, stores []host.Datastore) []*csi.VolumeHealth_VolumeHealthEntry {
	var out []*csi.VolumeHealth_VolumeHealthEntry
	add := func(status csi.VolumeHealthErrorType, reason, message string) {
		if !slices.ContainsFunc(out, func(e *csi.VolumeHealth_VolumeHealthEntry) bool {
			return e.GetStatus() == status && e.GetReason() == reason
		}) {
			out = append(out, entry(status, reason, message))
		}
	}
	if d.Phase == host.Failed {
		add(csi.VolumeHealthErrorType_DATA_LOSS, string(fault.Damaged), d.Reason)
	}
	if why := unreachable(d, stores); why != "" {
		add(csi.VolumeHealthErrorType_INACCESSIBLE, "DatastoreNotReady", why)
	}
	for _, a := range d.Attachments {
		if a.Trouble == nil {
			continue
		}
		status := csi.VolumeHealthErrorType_DEGRADED
		if lost(a.Trouble.Fault.Kind) {
			status = csi.VolumeHealthErrorType_DATA_LOSS
		}
		add(status, string(a.Trouble.Fault.Kind), "on node "+a.Host+": "+a.Trouble.Fault.Error())
	}
	return out
}

// unreachable says why no host can use the disk's datastore, "" if one can.
func unreachable(d host.Disk, stores []host.Datastore) string {
	i := slices.IndexFunc(stores, func(s host.Datastore) bool { return s.Name == d.Spec.Datastore })
	if i < 0 {
		return "datastore " + d.Spec.Datastore + " does not exist"
	}
	var whyNot []string
	for _, h := range stores[i].Hosts {
		if len(d.Hosts) > 0 && !slices.Contains(d.Hosts, h.Host) {
			continue
		}
		if h.Ready {
			return ""
		}
		whyNot = append(whyNot, h.Host+": "+h.Reason)
	}
	if len(whyNot) == 0 {
		whyNot = []string{"no host reports it"}
	}
	return "datastore " + d.Spec.Datastore + ": " + strings.Join(whyNot, "; ")
}
