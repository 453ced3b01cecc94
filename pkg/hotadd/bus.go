package hotadd

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// The shape of a bus.
const (
	Controllers  = 4
	Units        = 16
	ReservedUnit = 7
	Slots        = Controllers * (Units - 1) // 60
)

// Slot is a place on the bus.
type Slot struct {
	Controller int `json:"controller"` // 0..3
	Unit       int `json:"unit"`       // 0..15 without 7
}

func (s Slot) String() string { return fmt.Sprintf("%d:%d", s.Controller, s.Unit) }

// Check says whether a disk can be in the slot.
func (s Slot) Check() error {
	if s.Controller < 0 || s.Controller >= Controllers || s.Unit < 0 || s.Unit >= Units || s.Unit == ReservedUnit {
		return fault.New(fault.Invalid, "", "slot %s: controllers are 0 to %d, units 0 to %d without %d",
			s, Controllers-1, Units-1, ReservedUnit)
	}
	return nil
}

// Disk is what is added to a bus.
type Disk struct {
	ID   string `json:"id"`   // the disk's id, its key on the bus
	UUID string `json:"uuid"` // ddb.uuid, by which the guest recognizes it
}

// Serial is the serial number by which a guest recognizes the disk: the uuid's 32 digits in lower case, or where the disk
// has no such uuid, as many of a digest of its id.
func (d Disk) Serial() string {
	s := strings.ToLower(strings.NewReplacer("-", "", " ", "").Replace(d.UUID))
	if len(s) == 32 && strings.Trim(s, "0123456789abcdef") == "" {
		return s
	}
	sum := sha256.Sum256([]byte(d.ID))
	return hex.EncodeToString(sum[:16])
}

// Occupied is a slot with its disk.
type Occupied struct {
	Slot Slot `json:"slot"`
	Disk Disk `json:"disk"`
}

// Bus adds disks to this host. All methods may be called concurrently.
type Bus interface {
	// Attach gives the disk a slot, or returns the one that it has. Kinds: Exhausted (no slot is free), Invalid.
	Attach(ctx context.Context, want Disk) (Slot, error)
	// Detach frees the disk's slot; a disk without one is detached already.
	Detach(ctx context.Context, id string) error
	// List is what is on the bus, in order of slot.
	List(ctx context.Context) ([]Occupied, error)
	// Locate finds the disk's slot. Kind: NotFound.
	Locate(ctx context.Context, id string) (Slot, error)
}
