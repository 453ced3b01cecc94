package local

import (
	"context"
	"errors"
	"sync"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/volume"
)

// createFrom makes a disk that has a source. The source's disk is locked until its links are taken over: a copy of them may
// take hours, in which it can be detached or deleted.
func (h *Host) createFrom(ctx context.Context, s *store, v *volume.Volumes, spec host.DiskSpec) (host.Disk, error) {
	id := host.DiskID(spec.Name)
	if _, err := v.Get(ctx, id); err == nil {
		return v.CreateFrom(ctx, spec, nil) // it is there, or is another one
	}
	disk, err := h.sourceDisk(ctx, s, v, spec)
	if err != nil {
		return host.Disk{}, err
	}
	if disk == "" || disk == id {
		return v.CreateFrom(ctx, spec, nil) // which says what is wrong with the source
	}
	end, err := h.begin(ctx, disk, "clone")
	if err != nil {
		return host.Disk{}, err
	}
	end = sync.OnceFunc(end)
	defer end()
	server, err := h.server(v, disk)
	if err != nil {
		return host.Disk{}, err
	}
	return v.CreateFrom(volume.WhenTaken(ctx, end), spec, server)
}

// sourceDisk is the id of the disk that has the source's links, "" if v has no such source. Kinds: Invalid (it is in another
// datastore).
func (h *Host) sourceDisk(ctx context.Context, s *store, v *volume.Volumes, spec host.DiskSpec) (string, error) {
	src := *spec.Source
	q := snapshotDisk(src.Snapshot)
	if src.Disk != "" {
		q = func(v *volume.Volumes) (bool, error) {
			_, err := v.Get(ctx, src.Disk)
			if errors.Is(err, fault.NotFound) {
				return false, nil
			}
			return err == nil, err
		}
	}
	if ok, err := q(v); err != nil {
		return "", err
	} else if !ok {
		h.askAll(h.others(s), othersTime, q, func(a answer) bool {
			if a.has {
				err = spec.CheckSource(a.s.cfg.Name, 0)
			}
			return a.has
		})
		return "", err
	}
	if src.Disk != "" {
		return src.Disk, nil
	}
	return v.SnapshotDisk(src.Snapshot)
}
