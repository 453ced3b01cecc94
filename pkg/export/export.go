package export

import (
	"context"

	"github.com/vmdk-csi/vmdk-csi/pkg/block"
)

// Server serves one device to the kernel through one session, whose descriptor it was made with.
type Server interface {
	// Serve answers the kernel until the device is gone (nil: nobody can reach it any more and every request that was
	// in flight is answered) or ctx ends (context.Cause(ctx), after the requests in flight are answered; what the kernel
	// sends later waits for a successor).
	Serve(ctx context.Context, p Params) error
	// Resized makes the kernel forget the size it knows, so that it asks Disk.Size again. May be called during Serve.
	Resized() error
}

// Params is what a Server serves and how it carries on after another one.
type Params struct {
	Name     string // the file's name in the session
	Disk     block.Device
	ReadOnly bool
	// State is what an earlier server of this session gave SaveState, nil for the first server.
	State []byte
	// SaveState keeps the session's state (at most StateSize bytes) where it survives this process. It is called before
	// the kernel gets the answer that makes the state valid. nil: not kept.
	SaveState func([]byte) error
	// Takeover: another server served this session. That one must be certainly dead, all its threads included: requests
	// that it left unanswered are asked for again and done again.
	Takeover bool
	// Ready is called once, when the server is about to answer its first request. May be nil.
	Ready func()
}

// StateSize bounds what SaveState is given, in bytes.
const StateSize = 256
