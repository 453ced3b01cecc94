package remote

import (
	"context"
	"crypto/tls"
	"log/slog"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// ClientConfig says which datastore a Client uses, and who it is.
type ClientConfig struct {
	Datastore, Node string
	// Peers are host:port of every host that may serve the datastore; asked anew when none does.
	Peers func(ctx context.Context) ([]string, error)
	// TLS has the node's certificate. Without a ServerName, servers must prove to be the host of their address.
	TLS *tls.Config
	Log *slog.Logger
}

// Client asks whoever serves a datastore. It tries the server that answered last, then all peers; Unavailable if none serves it.
type Client struct{ c ClientConfig }

// NewClient makes a client. Close ends its idle connections.
func NewClient(c ClientConfig) *Client { return &Client{c} }

var (
	_ host.Disks     = (*Client)(nil)
	_ host.Snapshots = (*Client)(nil)
)

// Close ends idle connections.
func (c *Client) Close() {}

func later() error { return fault.New(fault.Unsupported, "", "remote: client") }

// Create implements host.Disks.
func (c *Client) Create(context.Context, host.DiskSpec) (host.Disk, error) {
	return host.Disk{}, later()
}

// Delete implements host.Disks.
func (c *Client) Delete(context.Context, string) error { return later() }

// Get implements host.Disks.
func (c *Client) Get(context.Context, string) (host.Disk, error) { return host.Disk{}, later() }

// List implements host.Disks.
func (c *Client) List(context.Context, int, string) ([]host.Disk, string, error) {
	return nil, "", later()
}

// Expand implements host.Disks.
func (c *Client) Expand(context.Context, string, int64) (host.Disk, error) {
	return host.Disk{}, later()
}

// CreateSnapshot implements host.Snapshots.
func (c *Client) CreateSnapshot(context.Context, host.SnapshotSpec) (host.Snapshot, error) {
	return host.Snapshot{}, later()
}

// DeleteSnapshot implements host.Snapshots.
func (c *Client) DeleteSnapshot(context.Context, string) error { return later() }

// GetSnapshot implements host.Snapshots.
func (c *Client) GetSnapshot(context.Context, string) (host.Snapshot, error) {
	return host.Snapshot{}, later()
}

// ListSnapshots implements host.Snapshots.
func (c *Client) ListSnapshots(context.Context, string, int, string) ([]host.Snapshot, string, error) {
	return nil, "", later()
}

// Opened is what an open disk is.
type Opened struct {
	Disk  host.Disk `json:"disk"`
	Epoch int64     `json:"epoch"`
}

// OpenVolume has the server open a disk for this node, without a connection to it: who attaches learns the disk's size, UUID and
// epoch before a worker is started. Kinds: those of Datastore.Open.
func (c *Client) OpenVolume(context.Context, string, bool) (Opened, error) { return Opened{}, later() }

// CloseVolume revokes the tickets and block maps that this node has of a disk, and has the server close and release it. The caller
// makes sure that no worker of the disk runs here any more. Not open is closed already.
func (c *Client) CloseVolume(context.Context, string) error { return later() }

// Space is the datastore's capacity and what is free, in bytes.
func (c *Client) Space(context.Context) (total, free int64, err error) { return 0, 0, later() }
