package node

import (
	"context"

	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// Recorder shows what happens to a disk on the object that a user looks at. A call is a notice: it returns soon, and a
// notice that is lost is made good by whoever reconciles the objects with hostd.
type Recorder interface {
	// Attached: the disk is open on this node.
	Attached(ctx context.Context, a host.Attachment)
	// Detached: the disk with this id is no longer open on this node.
	Detached(ctx context.Context, id string)
	// Event says something about the disk with this id to a person: reason is one CamelCase word.
	Event(ctx context.Context, id string, warning bool, reason, message string)
}

// silent is the Recorder without anybody to tell.
type silent struct{}

func (silent) Attached(context.Context, host.Attachment)           {}
func (silent) Detached(context.Context, string)                    {}
func (silent) Event(context.Context, string, bool, string, string) {}
