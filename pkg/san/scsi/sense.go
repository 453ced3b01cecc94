package scsi

import (
	"fmt"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Sense is what sense data says (SPC-4 section 4.5).
type Sense struct {
	Key  byte
	ASC  byte // additional sense code
	ASCQ byte // and its qualifier
}

// The sense keys (SPC-4 table 48).
const (
	keyNoSense        = 0x0
	keyRecovered      = 0x1
	keyNotReady       = 0x2
	keyMedium         = 0x3
	keyHardware       = 0x4
	keyIllegalRequest = 0x5
	keyUnitAttention  = 0x6
	keyDataProtect    = 0x7
	keyAborted        = 0xb
)

// ParseSense reads sense data in fixed (response codes 70h, 71h) or descriptor format (72h, 73h). Bytes that are neither are no
// sense.
func ParseSense(b []byte) Sense {
	if len(b) == 0 {
		return Sense{}
	}
	switch b[0] & 0x7f {
	case 0x70, 0x71:
		var s Sense
		if len(b) > 2 {
			s.Key = b[2] & 0xf
		}
		if len(b) > 13 {
			s.ASC, s.ASCQ = b[12], b[13]
		}
		return s
	case 0x72, 0x73:
		if len(b) >= 4 {
			return Sense{Key: b[1] & 0xf, ASC: b[2], ASCQ: b[3]}
		}
	}
	return Sense{}
}

// lostCache tells that the unit attention reports a power on, a reset of the unit or a microcode change, as SPC-4 annex F lists
// them: what a volatile cache held is gone. The loss of a nexus (29h/07h) is none of them.
func (s Sense) lostCache() bool {
	return s.Key == keyUnitAttention && s.ASC == 0x29 && s.ASCQ != 0x07
}

func (s Sense) String() string {
	name := map[byte]string{
		keyNoSense: "no sense", keyRecovered: "recovered error", keyNotReady: "not ready", keyMedium: "medium error",
		keyHardware: "hardware error", keyIllegalRequest: "illegal request", keyUnitAttention: "unit attention",
		keyDataProtect: "data protect", keyAborted: "aborted command",
	}[s.Key]
	if name == "" {
		name = "sense key"
	}
	return fmt.Sprintf("%s %X/%02X%02X", name, s.Key, s.ASC, s.ASCQ)
}

// failure is the fault of a command that ended with r; nil when it succeeded.
func failure(what string, r Result) error {
	switch r.Status {
	case Good:
		return nil
	case ReservationConflict:
		return fault.New(fault.Fenced, "Another host owns this logical unit's reservation; ask for a new grant.",
			"%s: reservation conflict: this initiator is not registered", what)
	case Busy, TaskSetFull, TaskAborted:
		return fault.New(fault.Unavailable, "Try again.", "%s: the logical unit is busy (status %#02x)", what, byte(r.Status))
	case CheckCondition:
	default:
		return fault.New(fault.Internal, "", "%s: status %#02x", what, byte(r.Status))
	}
	s := ParseSense(r.Sense)
	switch {
	case s.Key == keyRecovered:
		return nil
	case s.Key == keyDataProtect && s.ASC == 0x27 && s.ASCQ == 0x07:
		return fault.New(fault.NoSpace, "Give the array's pool more room.", "%s: the array has no space left for this thin unit (%v)", what, s)
	case s.Key == keyDataProtect:
		return fault.New(fault.ReadOnly, "", "%s: the logical unit is write protected (%v)", what, s)
	case s.Key == keyIllegalRequest && s.ASC == 0x25:
		return fault.New(fault.NotFound, "Look at the target's list of logical units and who may see them.", "%s: there is no such logical unit (%v)", what, s)
	case s.Key == keyIllegalRequest && s.ASC == 0x21:
		return fault.New(fault.OutOfRange, "Was the logical unit made smaller?", "%s: the blocks are behind the unit's end (%v)", what, s)
	case s.Key == keyIllegalRequest:
		return fault.New(fault.Unsupported, "", "%s: the logical unit does not know this command (%v)", what, s)
	case s.Key == keyNotReady, s.Key == keyUnitAttention, s.Key == keyAborted:
		return fault.New(fault.Unavailable, "Try again.", "%s: %v", what, s)
	}
	return fault.New(fault.Internal, "The medium failed: look at the array.", "%s: %v", what, s)
}
