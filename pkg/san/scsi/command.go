package scsi

import (
	"context"
	"encoding/binary"
)

// Transport carries commands to one logical unit and their answers back.
type Transport interface {
	// Do sends one command and waits for its status. An error means that no status came: the outcome is unknown (kinds
	// Unavailable, Timeout). A command that failed is no error: its Result says so. The transport does not repeat a command that is
	// not Repeatable; others it may send again after it lost its connection.
	Do(ctx context.Context, cmd Command) (Result, error)
}

// Command is a command descriptor block and its data.
type Command struct {
	CDB []byte // 6, 10, 12 or 16 bytes
	Out []byte // data for the unit; not changed, not kept
	In  []byte // where the unit's data goes
	// Repeatable tells that the command does the same when it is sent twice, also when other commands ran in between that do not
	// touch its blocks.
	Repeatable bool

	// Saw, if set, is called with the answer before Do returns, for all commands in the order of the answers. It does not wait.
	Saw func(Result)

	again bool // a write that is repeated after a reset
}

// Status is a command's status byte (SAM-5 section 5.3.1).
type Status byte

// The status codes.
const (
	Good                Status = 0x00
	CheckCondition      Status = 0x02
	Busy                Status = 0x08
	ReservationConflict Status = 0x18
	TaskSetFull         Status = 0x28
	TaskAborted         Status = 0x40
)

// Result is a command's end.
type Result struct {
	Status Status
	Sense  []byte // fixed or descriptor format, when Status is CheckCondition
	N      int    // bytes that came into Command.In
}

// The operation codes (SPC-4 table 2xx, SBC-3 table 20) that are used here.
const (
	opTestUnitReady     = 0x00
	opInquiry           = 0x12
	opModeSense6        = 0x1a
	opSynchronizeCache  = 0x91
	opReadCapacity16    = 0x9e // with service action 0x10
	opRead16            = 0x88
	opWrite16           = 0x8a
	opWriteSame16       = 0x93
	opPersistReserveIn  = 0x5e
	opPersistReserveOut = 0x5f
)

// Bits of READ(16), WRITE(16) and WRITE SAME(16), byte 1.
const (
	bitFUA   = 1 << 3
	bitUnmap = 1 << 3
)

// range16 is a CDB of 16 bytes with a block address at byte 2 and a number of blocks at byte 10 (SBC-3 sections 5.11, 5.37, 5.45).
func range16(op, flags byte, lba uint64, blocks uint32) []byte {
	c := make([]byte, 16)
	c[0], c[1] = op, flags
	binary.BigEndian.PutUint64(c[2:], lba)
	binary.BigEndian.PutUint32(c[10:], blocks)
	return c
}

func inquiry(page int, n uint16) []byte {
	c := []byte{opInquiry, 0, 0, 0, 0, 0}
	if page >= 0 {
		c[1], c[2] = 1, byte(page)
	}
	binary.BigEndian.PutUint16(c[3:], n)
	return c
}

func readCapacity16(n uint32) []byte {
	c := make([]byte, 16)
	c[0], c[1] = opReadCapacity16, 0x10
	binary.BigEndian.PutUint32(c[10:], n)
	return c
}
