package wire

import (
	"os"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// The methods; their text is the protocol.
const (
	mCreate      = "Create"
	mDelete      = "Delete"
	mGet         = "Get"
	mList        = "List"
	mExpand      = "Expand"
	mClaim       = "Claim"
	mUnclaim     = "Unclaim"
	mEvict       = "Evict"
	mDatastores  = "Datastores"
	mAttach      = "Attach"
	mDetach      = "Detach"
	mAttachments = "Attachments"
	mGrown       = "Grown"
	mSync        = "Sync"
	mHandover    = "Handover"

	// A disk with a source has a method of its own: a hostd that knows no sources must refuse it, not make an empty disk.
	mCreateFrom     = "CreateFrom"
	mCreateSnapshot = "CreateSnapshot"
	mDeleteSnapshot = "DeleteSnapshot"
	mGetSnapshot    = "GetSnapshot"
	mListSnapshots  = "ListSnapshots"
)

// byID is the argument of methods about one disk.
type byID struct {
	ID   string `json:"id"`
	Size int64  `json:"size,omitempty"` // Expand
	Node string `json:"node,omitempty"` // Unclaim, Evict
}

type listArgs struct {
	Max   int    `json:"max"`
	Token string `json:"token"`
}

type listResult struct {
	Disks []host.Disk `json:"disks"`
	Next  string      `json:"next"`
}

type listSnapshotsArgs struct {
	Disk  string `json:"disk,omitempty"`
	Max   int    `json:"max"`
	Token string `json:"token"`
}

type listSnapshotsResult struct {
	Snapshots []host.Snapshot `json:"snapshots"`
	Next      string          `json:"next"`
}

type claimArgs struct {
	ID    string     `json:"id"`
	Claim host.Claim `json:"claim"`
}

type attachArgs struct {
	Request host.AttachRequest `json:"request"`
	Has     [2]bool            `json:"has"` // fuse, table
}

// heldText is a host.Held beside its descriptors, which come in the order of descriptors.
type heldText struct {
	Attachment host.Attachment `json:"attachment"`
	Has        [4]bool         `json:"has"`
}

// descriptors are what a host.Held holds.
func descriptors(h *host.Held) [4]**os.File {
	return [4]**os.File{&h.Device.Fuse, &h.Device.Table, &h.Worker, &h.Device.Scratch}
}

// pack separates what is held into text and descriptors, which stay the owner's.
func pack(held []host.Held) (texts []heldText, files []*os.File) {
	for _, h := range held {
		t := heldText{Attachment: h.Attachment}
		for i, f := range descriptors(&h) {
			if *f != nil {
				t.Has[i] = true
				files = append(files, *f)
			}
		}
		texts = append(texts, t)
	}
	return texts, files
}

// unpack is the opposite. The descriptors of the result are files; on an error they stay the caller's.
func unpack(texts []heldText, files []*os.File) ([]host.Held, error) {
	held := make([]host.Held, 0, len(texts))
	for _, t := range texts {
		h := host.Held{Attachment: t.Attachment}
		for i, p := range descriptors(&h) {
			if !t.Has[i] {
				continue
			}
			if len(files) == 0 {
				return nil, fault.New(fault.Internal, "", "a message carries fewer descriptors than its disks")
			}
			*p, files = files[0], files[1:]
		}
		held = append(held, h)
	}
	if len(files) > 0 {
		return nil, fault.New(fault.Internal, "", "a message carries more descriptors than its disks")
	}
	return held, nil
}
