package lun

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"log/slog"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/san"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/lunlease"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/lunpath"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/reserve"
)

// Path is how this host reaches a LUN, and by what others are kept from it.
type Path struct {
	Where       string // lunpath.Open's
	Credentials lunpath.Credentials
	// LeaseOnly uses no reservations: time alone stops whoever has lost the LUN or a map of it.
	LeaseOnly bool
	Me        lunlease.Me
	// Lease has the times of the LUN's lease; the rest of it is filled in.
	Lease lunlease.Options
	// MaxIO is how long a command of a node that was cut off may still take; 0: 10 s, as long as a map allows.
	MaxIO time.Duration
	Log   *slog.Logger
}

// Owner completes the configuration of an Owner of the LUN.
//
// With reservations every host registers a key when it wants the LUN, and its owner holds the reservation. A node's worker registers
// when it uses a map: through iscsi:// each session is by itself, and a node's sessions have one key, which the owner preempts when the
// node is silent: what it sends later is refused, whatever it was. A block device of the kernel has one key for all that this host does, so that
// cutting a node off ends its use of the LUN altogether; it comes back when its hostd registers anew, and a request that hung since
// before is let in again then.
func (p Path) Owner(c OwnerConfig) OwnerConfig {
	if p.MaxIO == 0 {
		p.MaxIO = 10 * time.Second
	}
	c.Open, c.Acquire, c.Server.LeaseOnly = p.open, p.acquire, p.LeaseOnly
	return c
}

func (p Path) options() lunpath.Options {
	return lunpath.Options{Credentials: p.Credentials, ReadWrite: true, Log: p.Log}
}

// open: who is not registered cannot read a LUN that is reserved, so that what is on it shows later.
func (p Path) open(ctx context.Context) (fsx.File, []string, error) {
	o := p.options()
	o.Blank = !p.LeaseOnly
	f, id, err := lunpath.Open(ctx, p.Where, o)
	if err != nil {
		return nil, nil, err
	}
	if id.Designator == "" {
		return f, nil, nil
	}
	return f, []string{id.Designator}, nil
}

// Look says whether this host reaches the LUN, and what is on it.
func (p Path) Look(ctx context.Context) (detail string, err error) {
	o := p.options()
	o.ReadWrite, o.Blank = false, !p.LeaseOnly
	f, id, err := lunpath.Open(ctx, p.Where, o)
	if err != nil {
		return "", err
	}
	if detail = id.Where; id.Store != "" {
		detail += ", store " + id.Store
	}
	return detail, f.Close()
}

// reservations are those of an open LUN, nil if it has none or they are not to be used.
func (p Path) reservations(ctx context.Context, f fsx.File) (reserve.Unit, func(context.Context) error, error) {
	if p.LeaseOnly {
		return nil, nil, nil
	}
	u, reset, ok := lunpath.Reservations(f)
	if !ok {
		return nil, nil, nil
	}
	_, err := u.State(ctx)
	if errors.Is(err, fault.Unsupported) {
		return nil, nil, nil
	}
	return u, reset, err
}

func (p Path) acquire(ctx context.Context, f fsx.File) (Lease, Fencing, error) {
	u, reset, err := p.reservations(ctx, f)
	if err != nil {
		return nil, Fencing{}, err
	}
	o := p.Lease
	o.Unit, o.Reset, o.Log = u, reset, p.Log
	l, err := lunlease.Acquire(ctx, f, p.Me, o)
	if err != nil {
		return nil, Fencing{}, err
	}
	if u == nil {
		return l, Fencing{}, nil
	}
	own := lunlease.Key(p.Me.Host)
	return l, Fencing{Key: p.key, Fencer: fencer{reserve.Fencer{Unit: u, Key: own, Reset: reset, MaxIO: p.MaxIO}}}, nil
}

// nodeKeys marks the keys of nodes, which are others than those of owners (lunlease.Key).
const nodeKeys = uint64(0x564e) << 48

// key is with what a node registers.
func (p Path) key(node string) uint64 {
	if !lunpath.IsURL(p.Where) { // a device has one key for everything
		return uint64(lunlease.Key(node))
	}
	sum := sha256.Sum256([]byte("node\x00" + node))
	return nodeKeys | binary.LittleEndian.Uint64(sum[:])>>16
}

// fencer cuts nodes off. This host's own key it cannot give up, where a device has no other: its own workers are stopped by time alone.
type fencer struct{ reserve.Fencer }

var (
	_ san.Fencer = fencer{}
	_ san.Timed  = fencer{}
)

// Timed implements san.Timed.
func (f fencer) Timed(key uint64) bool { return reserve.Key(key) == f.Key }

func (f fencer) Fence(ctx context.Context, node string, key uint64) error {
	if f.Timed(key) {
		return nil
	}
	return f.Fencer.Fence(ctx, node, key)
}
