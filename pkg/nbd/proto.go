package nbd

import (
	"encoding/binary"
	"errors"
	"syscall"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Numbers of the protocol (proto.md, "Values"). Everything is big-endian.
const (
	magicServer     = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption     = 0x49484156454f5054 // "IHAVEOPT"
	magicOptReply   = 0x0003e889045565a9
	magicRequest    = 0x25609513
	magicSimple     = 0x67446698
	magicStructured = 0x668e33ef
)

// Handshake flags, of both sides.
const (
	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1
)

// Options of the handshake.
const (
	optExportName      = 1
	optAbort           = 2
	optList            = 3
	optStartTLS        = 5
	optInfo            = 6
	optGo              = 7
	optStructuredReply = 8
	optListMeta        = 9
	optSetMeta         = 10
)

// Replies to options. Errors have the highest bit set.
const (
	repAck    = 1
	repServer = 2
	repInfo   = 3
	repMeta   = 4

	repErrUnsup    = 1<<31 + 1
	repErrPolicy   = 1<<31 + 2
	repErrInvalid  = 1<<31 + 3
	repErrTLSReqd  = 1<<31 + 5
	repErrUnknown  = 1<<31 + 6
	repErrShutdown = 1<<31 + 7
	repErrTooBig   = 1<<31 + 9
)

const (
	infoExport      = 0
	infoName        = 1
	infoDescription = 2
	infoBlockSize   = 3
)

// Transmission flags of an export.
const (
	transHasFlags    = 1 << 0
	transReadOnly    = 1 << 1
	transFlush       = 1 << 2
	transFUA         = 1 << 3
	transTrim        = 1 << 5
	transWriteZeroes = 1 << 6
	transDF          = 1 << 7
	transMultiConn   = 1 << 8
	transCache       = 1 << 10
	transFastZero    = 1 << 11
)

const (
	cmdRead        = 0
	cmdWrite       = 1
	cmdDisc        = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdCache       = 5
	cmdWriteZeroes = 6
	cmdBlockStatus = 7
)

// Command flags.
const (
	cmdFUA      = 1 << 0
	cmdNoHole   = 1 << 1
	cmdDF       = 1 << 2
	cmdReqOne   = 1 << 3
	cmdFastZero = 1 << 4
)

// Structured replies.
const (
	chunkDone = 1 << 0

	chunkNone        = 0
	chunkData        = 1
	chunkHole        = 2
	chunkBlockStatus = 5
	chunkError       = 1<<15 + 1
	chunkErrorOffset = 1<<15 + 2
)

// Flags of base:allocation.
const (
	StateHole = 1 << 0
	StateZero = 1 << 1
)

// StateDirty is the flag of what changed, as of qemu:dirty-bitmap.
const StateDirty = 1 << 0

const (
	allocationContext = "base:allocation"
	maxString         = 4096 // proto.md, "Conventions": names are at most 4096 bytes
	maxContexts       = 16   // that a connection may select
	// MaxPayload is what one request may read or write; proto.md, "Size constraints", recommends it.
	maxPayload = 32 << 20
	// An option's data is a name and some numbers; the longest is a list of contexts.
	maxOption = 64 << 10

	requestSize    = 28
	simpleSize     = 16
	structuredSize = 20
)

// Error values of the transmission phase.
const (
	errnoPerm     = 1
	errnoIO       = 5
	errnoNoMem    = 12
	errnoInvalid  = 22
	errnoNoSpace  = 28
	errnoOverflow = 75
	errnoNotSup   = 95
	errnoShutdown = 108
)

// ErrnoOf is what a client is told about a failure.
func errnoOf(err error) uint32 {
	switch k := fault.KindOf(err); k {
	case "":
		return 0
	case fault.ReadOnly, fault.Denied:
		return errnoPerm
	case fault.Invalid, fault.OutOfRange:
		return errnoInvalid
	case fault.NoSpace:
		return errnoNoSpace
	case fault.Exhausted:
		return errnoNoMem
	case fault.Unsupported:
		return errnoNotSup
	default:
		if errors.Is(err, syscall.ENOMEM) {
			return errnoNoMem
		}
		return errnoIO
	}
}

// FaultOf is the failure that a server told.
func faultOf(errno uint32, what, msg string) error {
	if errno == 0 {
		return nil
	}
	if msg != "" {
		msg = ": " + msg
	}
	k, remedy := fault.Internal, "Look into the log of the server."
	switch errno {
	case errnoPerm:
		k, remedy = fault.ReadOnly, "Open the disk for writing."
	case errnoNoMem:
		k, remedy = fault.Exhausted, "Give the server more memory, or try again later."
	case errnoInvalid, errnoOverflow:
		k, remedy = fault.Invalid, ""
	case errnoNoSpace:
		k, remedy = fault.NoSpace, "Free space on the datastore."
	case errnoNotSup:
		k, remedy = fault.Unsupported, ""
	case errnoShutdown:
		k, remedy = fault.Unavailable, "Try again when the server is back."
	}
	return fault.New(k, remedy, "the NBD server refused to %s%s: %w", what, msg, syscall.Errno(errno))
}

var commandNames = map[uint16]string{cmdRead: "read", cmdWrite: "write", cmdDisc: "disconnect", cmdFlush: "flush", cmdTrim: "trim",
	cmdCache: "cache", cmdWriteZeroes: "write zeroes", cmdBlockStatus: "tell the block status"}

// Request is the header of a command.
type request struct {
	flags, cmd uint16
	cookie     uint64
	off        uint64
	length     uint32
}

func (r *request) encode(b []byte) {
	be := binary.BigEndian
	be.PutUint32(b, magicRequest)
	be.PutUint16(b[4:], r.flags)
	be.PutUint16(b[6:], r.cmd)
	be.PutUint64(b[8:], r.cookie)
	be.PutUint64(b[16:], r.off)
	be.PutUint32(b[24:], r.length)
}

// Decode is false if b does not begin with a request: the stream is lost then.
func (r *request) decode(b []byte) bool {
	be := binary.BigEndian
	if be.Uint32(b) != magicRequest {
		return false
	}
	r.flags, r.cmd = be.Uint16(b[4:]), be.Uint16(b[6:])
	r.cookie, r.off, r.length = be.Uint64(b[8:]), be.Uint64(b[16:]), be.Uint32(b[24:])
	return true
}

// Parser takes numbers and strings off an option's data. After a piece was missing, bad stays set.
type parser struct {
	b   []byte
	bad bool
}

func (p *parser) take(n uint32) []byte {
	if p.bad || uint64(n) > uint64(len(p.b)) {
		p.bad = true
		return nil
	}
	b := p.b[:n]
	p.b = p.b[n:]
	return b
}

func (p *parser) u16() uint16 {
	if b := p.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (p *parser) u32() uint32 {
	if b := p.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (p *parser) u64() uint64 {
	if b := p.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// Str is a string behind its length.
func (p *parser) str() string {
	n := p.u32()
	if n > maxString {
		p.bad = true
	}
	return string(p.take(n))
}

// Done says that nothing was missing and nothing is left.
func (p *parser) done() bool { return !p.bad && len(p.b) == 0 }
