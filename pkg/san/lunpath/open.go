package lunpath

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/san"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/reserve"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/store"
)

// Credentials are for iscsi://. The zero value is enough for targets that let everybody in.
type Credentials struct {
	Initiator    string `json:"initiator,omitempty"`    // our iSCSI name; "": DefaultInitiator
	Secret       string `json:"secret,omitempty"`       // CHAP: what the URL's user proves
	TargetUser   string `json:"targetUser,omitempty"`   // CHAP: what the target must prove
	TargetSecret string `json:"targetSecret,omitempty"` // "": nothing
}

// DefaultInitiator is our iSCSI name where none is configured. Reservations and access lists of a target need one for each host.
const DefaultInitiator = "iqn.2026-01.io.vmdk-csi:host"

// Options of Open.
type Options struct {
	Credentials
	ReadWrite bool
	Exclusive bool   // a device that is mounted, or that somebody on this machine has so, is InUse
	Blank     bool   // do not look for a store: there may be none yet
	Store     string // the UUID that the store must have; "": any
	Nonce     string // what its owner must have written when it opened it (store.ReadNonce); "": anything
	Bytes     int64  // how large the LUN must be at least
	// Key, if not 0, is registered before anything is read: a LUN that is reserved lets only registrants in.
	Key reserve.Key
	// Visit registers a key of its own while an iscsi:// LUN is open that others have reserved: for who only wants to look, or to clear it.
	Visit bool

	MaxIO time.Duration // the longest that a command may take through iscsi://; 0: the lease's default of 3s
	Log   *slog.Logger  // nil: silence
}

// Want is o for the LUN of a block map.
func (o Options) Want(l san.LUN) Options {
	o.Store, o.Nonce, o.Bytes, o.Key = l.Store, l.Nonce, l.Bytes, reserve.Key(l.Key)
	return o
}

// Identity is what was found.
type Identity struct {
	Where string `json:"where"`
	Bytes int64  `json:"bytes"`           // of the LUN
	Store string `json:"store,omitempty"` // UUID; "" only with Blank
	Nonce string `json:"nonce,omitempty"` // "": nobody has opened the store yet
	// Designator is the logical unit's own name (VPD page 0x83, as udev writes it), "" where it is not known.
	Designator string `json:"designator,omitempty"`
}

// IsURL tells whether where is an iscsi:// URL.
func IsURL(where string) bool { return strings.HasPrefix(where, scheme) }

// Open opens a LUN and makes sure that it is the one. See the package's table for the kinds of errors.
func Open(ctx context.Context, where string, o Options) (fsx.File, Identity, error) {
	lun, designator, err := open(ctx, where, o)
	if err != nil {
		return nil, Identity{}, err
	}
	var id Identity
	if o.Visit && o.Key == 0 {
		o.Key = visitor(lun)
	}
	if o.Key != 0 {
		err = register(ctx, lun, o.Key)
	}
	if err == nil {
		id, err = identify(lun, where, o)
	}
	if err != nil {
		return nil, Identity{}, errors.Join(fault.Wrap(err, "LUN %s", where), lun.Close())
	}
	id.Designator = designator
	return lun, id, nil
}

func open(ctx context.Context, where string, o Options) (fsx.File, string, error) {
	if IsURL(where) {
		return openISCSI(ctx, where, o)
	}
	flag := fsx.ReadOnly | fsx.Direct
	if o.ReadWrite {
		flag |= fsx.ReadWrite
	}
	if o.Exclusive {
		flag |= fsx.Exclusive
	}
	lun, err := fsx.OpenDevice(where, flag)
	if errors.Is(err, unix.EISDIR) {
		return nil, "", fault.New(fault.Invalid, "Name a block device.", "the LUN is a directory: %w", err)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "", fault.New(fault.NotFound, "Check the zoning, the target's access list and the device's name on this machine.", "the LUN is missing: %w", err)
	}
	if err != nil || !o.ReadWrite {
		return lun, "", err
	}
	with, err := withReservations(lun, where)
	if err != nil {
		return nil, "", errors.Join(err, lun.Close())
	}
	return with, "", nil
}

// identify reads what the LUN is, through this path.
func identify(lun fsx.File, where string, o Options) (Identity, error) {
	info, err := lun.Stat()
	if err != nil {
		return Identity{}, err
	}
	id := Identity{Where: where, Bytes: info.Size}
	if o.Blank {
		return id, nil
	}
	if info.Size < o.Bytes {
		return id, fault.New(fault.OutOfRange, "Give the LUN its former size back, or check which device is named.", "it has %d bytes, %d are needed", info.Size, o.Bytes)
	}
	s, err := store.Identify(lun)
	if err != nil {
		return id, err
	}
	id.Store = s.UUID
	if o.Store != "" && o.Store != s.UUID {
		return id, fault.New(fault.Precondition, "Check the zoning and which device is named.", "it is the wrong one: it has store %s, wanted is %s", s.UUID, o.Store)
	}
	switch u, nonce, err := store.ReadNonce(lun); {
	case err == nil && u.String() == s.UUID:
		id.Nonce = store.UUID(nonce).String()
	case err != nil && !errors.Is(err, fault.NotFound): // NotFound: nobody has opened it
		return id, err
	}
	if o.Nonce != "" && o.Nonce != id.Nonce {
		return id, fault.New(fault.Precondition, "Ask its owner again.",
			"its owner has opened store %s anew since, or it is a copy: it says %q, wanted is %q", s.UUID, id.Nonce, o.Nonce)
	}
	return id, nil
}
