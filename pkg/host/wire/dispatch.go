package wire

import (
	"context"
	"encoding/json"
	"os"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// dispatch calls the method. files stay the caller's; the held disks of the result become the caller's.
func dispatch(ctx context.Context, h host.Host, req request, files []*os.File) (result any, held []host.Held, err error) {
	switch req.Method {
	case mAttach:
		result, err = attach(ctx, h, req.Args, files)
		return result, nil, err
	case mSync:
		held, err = syncHeld(ctx, h, req.Args, files)
		return nil, held, err
	case mList:
		var a listArgs
		if err := decodeArgs(req.Args, &a); err != nil {
			return nil, nil, err
		}
		disks, next, err := h.List(ctx, a.Max, a.Token)
		return listResult{Disks: disks, Next: next}, nil, err
	case mCreate, mCreateFrom:
		var spec host.DiskSpec
		if err := decodeArgs(req.Args, &spec); err != nil {
			return nil, nil, err
		}
		result, err = h.Create(ctx, spec)
	case mListSnapshots:
		var a listSnapshotsArgs
		if err := decodeArgs(req.Args, &a); err != nil {
			return nil, nil, err
		}
		list, next, err := h.ListSnapshots(ctx, a.Disk, a.Max, a.Token)
		return listSnapshotsResult{Snapshots: list, Next: next}, nil, err
	case mCreateSnapshot:
		var spec host.SnapshotSpec
		if err := decodeArgs(req.Args, &spec); err != nil {
			return nil, nil, err
		}
		result, err = h.CreateSnapshot(ctx, spec)
	case mClaim:
		var a claimArgs
		if err := decodeArgs(req.Args, &a); err != nil {
			return nil, nil, err
		}
		err = h.Claim(ctx, a.ID, a.Claim)
	case mDatastores:
		result, err = h.Datastores(ctx)
	case mAttachments:
		result, err = h.Attachments(ctx)
	default:
		var a byID
		if err := decodeArgs(req.Args, &a); err != nil {
			return nil, nil, err
		}
		result, err = dispatchByID(ctx, h, req.Method, a)
	}
	return result, nil, err
}

func dispatchByID(ctx context.Context, h host.Host, method string, a byID) (any, error) {
	switch method {
	case mGet:
		return h.Get(ctx, a.ID)
	case mDelete:
		return nil, h.Delete(ctx, a.ID)
	case mGetSnapshot:
		return h.GetSnapshot(ctx, a.ID)
	case mDeleteSnapshot:
		return nil, h.DeleteSnapshot(ctx, a.ID)
	case mExpand:
		return h.Expand(ctx, a.ID, a.Size)
	case mUnclaim:
		return nil, h.Unclaim(ctx, a.ID, a.Node)
	case mEvict:
		if e, ok := h.(host.Evictor); ok {
			return nil, e.Evict(ctx, a.ID, a.Node)
		}
		return nil, fault.New(fault.Unsupported, "", "this hostd has no datastore on a LUN: disk %s is not taken from node %q", a.ID, a.Node)
	case mDetach:
		return nil, h.Detach(ctx, a.ID)
	case mGrown:
		return h.Grown(ctx, a.ID)
	}
	return nil, fault.New(fault.Unsupported, "Use the same release of vmdk-csi on both sides.", "hostd has no method %q", method)
}

func attach(ctx context.Context, h host.Host, args json.RawMessage, files []*os.File) (any, error) {
	var a attachArgs
	if err := decodeArgs(args, &a); err != nil {
		return nil, err
	}
	var dev host.Device
	for i, p := range []**os.File{&dev.Fuse, &dev.Table} {
		if a.Has[i] && len(files) > 0 {
			*p, files = files[0], files[1:]
		}
	}
	return h.Attach(ctx, a.Request, dev)
}

func syncHeld(ctx context.Context, h host.Host, args json.RawMessage, files []*os.File) ([]host.Held, error) {
	var texts []heldText
	if err := decodeArgs(args, &texts); err != nil {
		return nil, err
	}
	held, err := unpack(texts, files)
	if err != nil {
		return nil, err
	}
	out, err := h.Sync(ctx, held)
	if err == nil && out == nil {
		out = []host.Held{}
	}
	return out, err
}

func decodeArgs(text json.RawMessage, v any) error {
	if len(text) == 0 {
		return nil
	}
	if err := json.Unmarshal(text, v); err != nil {
		return fault.New(fault.Invalid, "Use the same release of vmdk-csi on both sides.", "arguments: %w", err)
	}
	return nil
}
