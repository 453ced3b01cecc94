package fuse

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// The protocol's numbers, from include/uapi/linux/fuse.h (7.45). Messages are in the machine's byte order.
const (
	opLookup      = 1
	opForget      = 2
	opGetattr     = 3
	opSetattr     = 4
	opOpen        = 14
	opRead        = 15
	opWrite       = 16
	opStatfs      = 17
	opRelease     = 18
	opFsync       = 20
	opFlush       = 25
	opInit        = 26
	opInterrupt   = 36
	opDestroy     = 38
	opNotifyReply = 41
	opBatchForget = 42
	opFallocate   = 43

	initAsyncRead = 1 << 0
	initBigWrites = 1 << 5
	initAsyncDIO  = 1 << 15
	initMaxPages  = 1 << 22
	initExt       = 1 << 30
	initHasResend = 1 << 39

	openDirectIO = 1 << 0 // FOPEN_DIRECT_IO
	// FOPEN_NOFLUSH (Linux 5.16): close(2) asks the server nothing. A process that dies with the disk's file and the last
	// /dev/fuse descriptor would otherwise wait in exit(2), unkillable, for an answer that only itself could give.
	openNoFlush        = 1 << 5
	openParallelWrites = 1 << 6 // FOPEN_PARALLEL_DIRECT_WRITES

	notifyInvalInode = 2
	notifyRetrieve   = 5
	notifyResend     = 7

	setattrSize = 1 << 3 // FATTR_SIZE

	inHeader  = 40 // struct fuse_in_header
	ioIn      = 40 // struct fuse_read_in, struct fuse_write_in
	outHeader = 16 // struct fuse_out_header
	initOut   = 64 // struct fuse_init_out
	attrSize  = 88 // struct fuse_attr
	attrOut   = 16 + attrSize
	entryOut  = 40 + attrSize
	openOut   = 16
	writeOut  = 8
	statfsOut = 80
	// struct fuse_notify_retrieve_out
	retrieveOut = 32

	uniqueResend = uint64(1) << 63 // FUSE_UNIQUE_RESEND

	rootNode = 1
	diskNode = 2

	// MaxIO is the largest read or write in bytes. The kernel would allow 1 MiB; larger requests arrive in pieces, which
	// several threads serve at once: sequential throughput is the same, and the buffers can be held in memory.
	MaxIO = 256 << 10
	// maxBackground is how many asynchronous requests the kernel keeps in flight; its default of 12 halves throughput.
	maxBackground = 256

	// attrValid is how long the kernel trusts an answer, in seconds (a year). Nothing but Resized changes an attribute,
	// and with a short time a stalled server would stall everybody who lists the machine's loop devices.
	attrValid = 365 * 24 * 3600

	// The modes of FALLOCATE that the block layer sends: discard and write zeroes (drivers/block/loop.c).
	fallocPunch = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	fallocZero  = unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE
)

var native = binary.NativeEndian

// negotiated is what INIT settled for the life of the session.
type negotiated struct {
	minor    uint32
	flags    uint64
	maxWrite uint32
}

// stateVersion marks the layout of a saved negotiated.
const stateVersion = 1

func (n negotiated) marshal() []byte {
	b := make([]byte, 24)
	native.PutUint32(b[0:], stateVersion)
	native.PutUint32(b[4:], n.minor)
	native.PutUint64(b[8:], n.flags)
	native.PutUint32(b[16:], n.maxWrite)
	return b
}

func unmarshalState(b []byte) (negotiated, bool) {
	if len(b) != 24 || native.Uint32(b) != stateVersion {
		return negotiated{}, false
	}
	n := negotiated{minor: native.Uint32(b[4:]), flags: native.Uint64(b[8:]), maxWrite: native.Uint32(b[16:])}
	return n, n.maxWrite > 0 && n.maxWrite <= MaxIO
}

// putAttr fills a struct fuse_attr.
func putAttr(b []byte, node uint64, size int64, readOnly bool) {
	clear(b[:attrSize])
	native.PutUint64(b[0:], node)
	if node == rootNode {
		native.PutUint32(b[60:], unix.S_IFDIR|0o700)
		native.PutUint32(b[64:], 2)
		return
	}
	mode := uint32(unix.S_IFREG | 0o600)
	if readOnly {
		mode = unix.S_IFREG | 0o400
	}
	native.PutUint64(b[8:], uint64(size))
	native.PutUint64(b[16:], uint64(size/512))
	native.PutUint32(b[60:], mode)
	native.PutUint32(b[64:], 1)
	native.PutUint32(b[80:], 4096)
}
