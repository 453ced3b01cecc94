package host

import (
	"context"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// NoSnapshots is the Snapshots of an adapter that serves none.
type NoSnapshots struct{}

var _ Snapshots = NoSnapshots{}

func noSnapshots() error {
	return fault.New(fault.Unsupported, "Use a host that serves snapshots.", "this host serves no snapshots")
}

// CreateSnapshot implements Snapshots.
func (NoSnapshots) CreateSnapshot(context.Context, SnapshotSpec) (Snapshot, error) {
	return Snapshot{}, noSnapshots()
}

// DeleteSnapshot implements Snapshots.
func (NoSnapshots) DeleteSnapshot(context.Context, string) error { return noSnapshots() }

// GetSnapshot implements Snapshots.
func (NoSnapshots) GetSnapshot(context.Context, string) (Snapshot, error) {
	return Snapshot{}, noSnapshots()
}

// ListSnapshots implements Snapshots.
func (NoSnapshots) ListSnapshots(context.Context, string, int, string) ([]Snapshot, string, error) {
	return nil, "", noSnapshots()
}
