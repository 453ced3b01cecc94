package wire

import (
	"context"
	"os"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// Create implements host.Disks.
func (cl *Client) Create(ctx context.Context, spec host.DiskSpec) (d host.Disk, err error) {
	method := mCreate
	if spec.Source != nil {
		method = mCreateFrom
	}
	err = cl.plain(ctx, method, spec, &d)
	return d, err
}

// Delete implements host.Disks.
func (cl *Client) Delete(ctx context.Context, id string) error {
	return cl.plain(ctx, mDelete, byID{ID: id}, nil)
}

// Get implements host.Disks.
func (cl *Client) Get(ctx context.Context, id string) (d host.Disk, err error) {
	err = cl.plain(ctx, mGet, byID{ID: id}, &d)
	return d, err
}

// List implements host.Disks.
func (cl *Client) List(ctx context.Context, max int, token string) ([]host.Disk, string, error) {
	var r listResult
	err := cl.plain(ctx, mList, listArgs{Max: max, Token: token}, &r)
	return r.Disks, r.Next, err
}

// Expand implements host.Disks.
func (cl *Client) Expand(ctx context.Context, id string, size int64) (d host.Disk, err error) {
	err = cl.plain(ctx, mExpand, byID{ID: id, Size: size}, &d)
	return d, err
}

// CreateSnapshot implements host.Snapshots.
func (cl *Client) CreateSnapshot(ctx context.Context, spec host.SnapshotSpec) (snap host.Snapshot, err error) {
	err = cl.plain(ctx, mCreateSnapshot, spec, &snap)
	return snap, err
}

// DeleteSnapshot implements host.Snapshots.
func (cl *Client) DeleteSnapshot(ctx context.Context, id string) error {
	return cl.plain(ctx, mDeleteSnapshot, byID{ID: id}, nil)
}

// GetSnapshot implements host.Snapshots.
func (cl *Client) GetSnapshot(ctx context.Context, id string) (snap host.Snapshot, err error) {
	err = cl.plain(ctx, mGetSnapshot, byID{ID: id}, &snap)
	return snap, err
}

// ListSnapshots implements host.Snapshots.
func (cl *Client) ListSnapshots(ctx context.Context, disk string, max int, token string) ([]host.Snapshot, string, error) {
	var r listSnapshotsResult
	err := cl.plain(ctx, mListSnapshots, listSnapshotsArgs{Disk: disk, Max: max, Token: token}, &r)
	return r.Snapshots, r.Next, err
}

// Claim implements host.Claims.
func (cl *Client) Claim(ctx context.Context, id string, c host.Claim) error {
	return cl.plain(ctx, mClaim, claimArgs{ID: id, Claim: c}, nil)
}

// Unclaim implements host.Claims.
func (cl *Client) Unclaim(ctx context.Context, id, node string) error {
	return cl.plain(ctx, mUnclaim, byID{ID: id, Node: node}, nil)
}

// Evict implements host.Evictor.
func (cl *Client) Evict(ctx context.Context, id, node string) error {
	return cl.plain(ctx, mEvict, byID{ID: id, Node: node}, nil)
}

// Datastores implements host.Datastores.
func (cl *Client) Datastores(ctx context.Context) (list []host.Datastore, err error) {
	err = cl.plain(ctx, mDatastores, nil, &list)
	return list, err
}

// Attach implements host.Attacher.
func (cl *Client) Attach(ctx context.Context, req host.AttachRequest, dev host.Device) (a host.Attachment, err error) {
	args := attachArgs{Request: req}
	var files []*os.File
	for i, f := range []*os.File{dev.Fuse, dev.Table} {
		if f != nil {
			args.Has[i] = true
			files = append(files, f)
		}
	}
	got, err := cl.call(ctx, mAttach, args, files, &a)
	closeFiles(got)
	return a, err
}

// Detach implements host.Attacher.
func (cl *Client) Detach(ctx context.Context, id string) error {
	return cl.plain(ctx, mDetach, byID{ID: id}, nil)
}

// Attachments implements host.Attacher.
func (cl *Client) Attachments(ctx context.Context) (list []host.Attachment, err error) {
	err = cl.plain(ctx, mAttachments, nil, &list)
	return list, err
}

// Grown implements host.Attacher.
func (cl *Client) Grown(ctx context.Context, id string) (a host.Attachment, err error) {
	err = cl.plain(ctx, mGrown, byID{ID: id}, &a)
	return a, err
}

// Sync implements host.Keeper.
func (cl *Client) Sync(ctx context.Context, held []host.Held) ([]host.Held, error) {
	texts, files := pack(held)
	var back []heldText
	got, err := cl.call(ctx, mSync, texts, files, &back)
	if err != nil {
		return nil, err
	}
	out, err := unpack(back, got)
	if err != nil {
		closeFiles(got)
		return nil, fault.Wrap(err, "hostd's answer")
	}
	return out, nil
}
