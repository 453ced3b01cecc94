package remote

import (
	"context"
	"errors"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/san"
)

var (
	_ host.Disks     = (*Client)(nil)
	_ host.Snapshots = (*Client)(nil)
)

// Create implements host.Disks.
func (c *Client) Create(ctx context.Context, spec host.DiskSpec) (d host.Disk, err error) {
	err = c.ask(ctx, pathCreate, &createBody{Spec: spec}, &d)
	return d, err
}

// Delete implements host.Disks.
func (c *Client) Delete(ctx context.Context, id string) error {
	return c.ask(ctx, pathDelete, &idBody{ID: id}, &none{})
}

// Get implements host.Disks.
func (c *Client) Get(ctx context.Context, id string) (d host.Disk, err error) {
	err = c.ask(ctx, pathGet, &idBody{ID: id}, &d)
	return d, err
}

// List implements host.Disks.
func (c *Client) List(ctx context.Context, limit int, token string) ([]host.Disk, string, error) {
	var r disksBody
	err := c.ask(ctx, pathList, &listBody{Max: limit, Token: token}, &r)
	return r.Disks, r.Next, err
}

// Expand implements host.Disks.
func (c *Client) Expand(ctx context.Context, id string, size int64) (d host.Disk, err error) {
	err = c.ask(ctx, pathExpand, &expandBody{ID: id, Size: size}, &d)
	return d, err
}

// CreateSnapshot implements host.Snapshots.
func (c *Client) CreateSnapshot(ctx context.Context, spec host.SnapshotSpec) (s host.Snapshot, err error) {
	err = c.ask(ctx, pathCreateSnapshot, &snapshotBody{Spec: spec}, &s)
	return s, err
}

// DeleteSnapshot implements host.Snapshots.
func (c *Client) DeleteSnapshot(ctx context.Context, id string) error {
	return c.ask(ctx, pathDeleteSnapshot, &idBody{ID: id}, &none{})
}

// GetSnapshot implements host.Snapshots.
func (c *Client) GetSnapshot(ctx context.Context, id string) (s host.Snapshot, err error) {
	err = c.ask(ctx, pathGetSnapshot, &idBody{ID: id}, &s)
	return s, err
}

// ListSnapshots implements host.Snapshots.
func (c *Client) ListSnapshots(ctx context.Context, disk string, limit int, token string) ([]host.Snapshot, string, error) {
	var r snapshotsBody
	err := c.ask(ctx, pathListSnapshots, &listBody{Disk: disk, Max: limit, Token: token}, &r)
	return r.Snapshots, r.Next, err
}

// Space is the datastore's capacity and what is free, in bytes.
func (c *Client) Space(ctx context.Context) (total, free int64, err error) {
	var r spaceBody
	err = c.ask(ctx, pathSpace, &emptyBody{}, &r)
	return r.Total, r.Free, err
}

// Serving is the peer that serves the datastore now. Kinds: Unavailable, Denied.
func (c *Client) Serving(ctx context.Context) (string, error) {
	err := c.ask(ctx, pathServes, &servesBody{}, &servesAnswer{})
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last, err
}

// Opened is what an open disk is.
type Opened struct {
	Disk  host.Disk `json:"disk"`
	Epoch int64     `json:"epoch"`
}

// OpenVolume has the server open a disk for this node, without a connection to it: who attaches learns the disk's size, UUID and
// epoch before a worker is started. Kinds: those of Datastore.Open.
func (c *Client) OpenVolume(ctx context.Context, id string, readOnly bool) (Opened, error) {
	r, err := c.open(ctx, diskBody{ID: id, ReadOnly: readOnly})
	return r.Opened, err
}

// callTime bounds a call on behalf of a disk that is in use: a server that stands still may have a successor.
const callTime = 30 * time.Second

func (c *Client) open(ctx context.Context, b diskBody) (r openedBody, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	err = c.ask(ctx, pathOpen, &b, &r)
	return r, err
}

// CloseVolume revokes the tickets and block maps that this node has of a disk, and has the server close and release it. The caller
// makes sure that no worker of the disk runs here any more. Not open is closed already.
func (c *Client) CloseVolume(ctx context.Context, id string) error {
	err := c.ask(ctx, pathClose, &idBody{ID: id}, &none{})
	if errors.As(err, &errNotHeld{}) {
		return nil
	}
	if err == nil {
		c.remember(id, "")
	}
	return err
}

// EvictVolume has the server take a disk from another node, which is dead. Kinds: those of host.Evictor.
func (c *Client) EvictVolume(ctx context.Context, id, node string) error {
	return c.ask(ctx, pathEvict, &evictBody{ID: id, From: node}, &none{})
}

func (c *Client) getMap(ctx context.Context, b diskBody, check bool) (*san.Map, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	var r mappedBody
	err := c.ask(ctx, pathMap, &mapBody{diskBody: b, Check: check}, &r)
	return r.Map, err
}

// mapClient is the server of maps as a san.Mapper sees it.
type mapClient struct {
	c      *Client
	volume string
}

var _ san.Client = mapClient{}

// Renew implements san.Client.
func (m mapClient) Renew(ctx context.Context, grant, generation uint64, digest string) (r san.Renewal, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	err = m.c.ask(ctx, pathRenew, &grantBody{ID: m.volume, Grant: grant, Generation: generation, Digest: digest}, &r)
	return r, err
}

// Return implements san.Client.
func (m mapClient) Return(ctx context.Context, grant, generation uint64) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	return m.c.ask(ctx, pathReturn, &grantBody{ID: m.volume, Grant: grant, Generation: generation}, &none{})
}

// abandon returns a map whose LUN could not be flushed.
func (m mapClient) abandon(ctx context.Context, grant, generation uint64) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	return m.c.ask(ctx, pathReturn, &grantBody{ID: m.volume, Grant: grant, Generation: generation, Unflushed: true}, &none{})
}

// recalled waits until the server wants the map back, or for a while.
func (m mapClient) recalled(ctx context.Context, grant, generation uint64) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, pollTime+10*time.Second)
	defer cancel()
	var r recallBody
	err := m.c.ask(ctx, pathRecall, &grantBody{ID: m.volume, Grant: grant, Generation: generation}, &r)
	return r.Recalled, err
}
