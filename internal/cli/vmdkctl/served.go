package vmdkctl

import (
	"context"

	"github.com/vmdk-csi/vmdk-csi/pkg/volume"
	"github.com/vmdk-csi/vmdk-csi/pkg/worker"
)

// ServedDisk is an attached disk as package volume changes it.
type servedDisk struct{ *worker.Handle }

var _ volume.Server = servedDisk{}

// Grow implements volume.Server.
func (s servedDisk) Grow(ctx context.Context, size int64) error {
	_, err := s.Handle.Grow(ctx, size)
	return err
}
