package fuse

import (
	"bytes"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// handle serves the message of n bytes that read took.
func (t *thread) handle(n int) error {
	op, unique := native.Uint32(t.head[4:]), native.Uint64(t.head[8:])
	t.s.requests.Add(1)
	if unique&uniqueResend != 0 {
		t.s.resent.Add(1)
	}
	off, size := int64(native.Uint64(t.head[48:])), native.Uint32(t.head[56:])
	switch op {
	case opForget, opBatchForget, opInterrupt, opNotifyReply: // no answer is expected, or allowed
		return nil
	case opRead:
		payload, errno := t.readDisk(off, size)
		return t.reply(errno, 0, payload)
	case opWrite:
		errno := t.writeDisk(off, size, n)
		native.PutUint32(t.out[outHeader:], size)
		native.PutUint32(t.out[outHeader+4:], 0)
		return t.reply(errno, writeOut, nil)
	case opInit:
		return t.init(t.arguments(n))
	case opDestroy:
		return t.reply(0, 0, nil)
	}
	clear(t.out[:])
	body, errno := t.control(op, t.arguments(n))
	return t.reply(errno, body, nil)
}

// arguments is what follows the header of a short message, in one piece.
func (t *thread) arguments(n int) []byte {
	a := append(t.args[:0], t.head[inHeader:min(n, len(t.head))]...)
	if n > len(t.head) {
		a = append(a, t.data[:min(n-len(t.head), cap(a)-len(a))]...)
	}
	return a
}

func (t *thread) readDisk(off int64, size uint32) ([]byte, unix.Errno) {
	end := t.s.p.Disk.Size()
	if size > MaxIO || off < 0 {
		return nil, unix.EINVAL
	}
	if off >= end {
		return nil, 0
	}
	b := t.data[:min(int64(size), end-off)]
	if _, err := t.s.p.Disk.ReadAt(b, off); err != nil && !errors.Is(err, io.EOF) {
		return nil, t.errno("read", err, off, int64(size))
	}
	return b, 0
}

func (t *thread) writeDisk(off int64, size uint32, n int) unix.Errno {
	if t.s.p.ReadOnly {
		return unix.EROFS
	}
	if size > MaxIO || n != len(t.head)+int(size) {
		return unix.EINVAL
	}
	_, err := t.s.p.Disk.WriteAt(t.data[:size], off)
	return t.errno("write", err, off, int64(size))
}

// control serves everything but data and INIT; the answer's body is written behind t.out's header.
func (t *thread) control(op uint32, args []byte) (int, unix.Errno) {
	out, node, disk := t.out[outHeader:], native.Uint64(t.head[16:]), t.s.p.Disk
	switch op {
	case opLookup:
		name, _, _ := bytes.Cut(args, []byte{0})
		name, _, _ = bytes.Cut(name, []byte{fileTag})
		if node != rootNode || string(name) != t.s.p.Name {
			return 0, unix.ENOENT
		}
		native.PutUint64(out[0:], diskNode)
		native.PutUint64(out[8:], 1)
		native.PutUint64(out[16:], attrValid)
		native.PutUint64(out[24:], attrValid)
		putAttr(out[40:], diskNode, disk.Size(), t.s.p.ReadOnly)
		return entryOut, 0
	case opGetattr, opSetattr:
		if op == opSetattr && len(args) < 4 {
			return 0, unix.EINVAL
		}
		if op == opSetattr && native.Uint32(args)&setattrSize != 0 {
			return 0, unix.EPERM // a disk grows by its owner's request, never by truncate(2)
		}
		native.PutUint64(out[0:], attrValid)
		putAttr(out[16:], node, disk.Size(), t.s.p.ReadOnly)
		return attrOut, 0
	case opOpen:
		if node != diskNode {
			return 0, unix.EISDIR
		}
		if len(args) < 4 {
			return 0, unix.EINVAL
		}
		if t.s.p.ReadOnly && native.Uint32(args)&unix.O_ACCMODE != unix.O_RDONLY {
			return 0, unix.EROFS
		}
		native.PutUint32(out[8:], openDirectIO|openParallelWrites|openNoFlush)
		return openOut, 0
	case opStatfs:
		// The loop driver takes its discard granularity from f_bsize (loop_config_discard).
		native.PutUint64(out[0:], uint64(disk.Size())/4096)
		native.PutUint32(out[40:], 4096)
		native.PutUint32(out[44:], 255)
		native.PutUint32(out[48:], 4096)
		return statfsOut, 0
	case opRelease:
		return 0, 0
	case opFlush: // a kernel without FOPEN_NOFLUSH sends none after this
		return 0, unix.ENOSYS
	case opFsync:
		if t.s.p.ReadOnly {
			return 0, 0
		}
		return 0, t.errno("flush", disk.Flush(), 0, 0)
	case opFallocate:
		return 0, t.fallocate(args)
	}
	return 0, unix.ENOSYS
}

func (t *thread) fallocate(args []byte) unix.Errno {
	if len(args) < 32 {
		return unix.EINVAL
	}
	if t.s.p.ReadOnly {
		return unix.EROFS
	}
	off, n := int64(native.Uint64(args[8:])), int64(native.Uint64(args[16:]))
	switch native.Uint32(args[24:]) {
	case fallocPunch:
		err := t.s.p.Disk.Discard(off, n)
		if fault.KindOf(err) == fault.Unsupported {
			// No failure: the guest does without, and the block layer writes zeros where the request meant zeros
			// (blkdev_issue_zeroout, block/blk-lib.c).
			return unix.EOPNOTSUPP
		}
		return t.errno("discard", err, off, n)
	case fallocZero:
		return t.errno("write zeroes", t.s.p.Disk.WriteZeroes(off, n), off, n)
	}
	return unix.EOPNOTSUPP
}

// init settles the session, has its outcome kept, and only then answers.
func (t *thread) init(args []byte) error {
	if len(args) < 16 {
		return t.reply(unix.EPROTO, 0, nil)
	}
	minor, offered := native.Uint32(args[4:]), uint64(native.Uint32(args[12:]))
	if offered&initExt != 0 && len(args) >= 20 {
		offered |= uint64(native.Uint32(args[16:])) << 32
	}
	if offered&initHasResend == 0 {
		if err := t.reply(unix.EPROTO, 0, nil); err != nil {
			return err
		}
		return noResend()
	}
	n := negotiated{
		minor:    minor,
		flags:    offered & (initAsyncRead | initBigWrites | initAsyncDIO | initMaxPages | initExt | initHasResend),
		maxWrite: MaxIO,
	}
	if t.s.p.SaveState != nil {
		if err := t.s.p.SaveState(n.marshal()); err != nil {
			return errors.Join(t.reply(unix.EIO, 0, nil), fault.Wrap(err, "keep the FUSE session of %s", t.s.p.Name))
		}
	}
	clear(t.out[:])
	out := t.out[outHeader:]
	native.PutUint32(out[0:], 7)
	native.PutUint32(out[4:], n.minor)
	native.PutUint32(out[8:], MaxIO) // readahead
	native.PutUint32(out[12:], uint32(n.flags))
	native.PutUint16(out[16:], maxBackground)
	native.PutUint16(out[18:], maxBackground) // congestion threshold
	native.PutUint32(out[20:], n.maxWrite)
	native.PutUint32(out[24:], 1) // time granularity, ns
	native.PutUint16(out[28:], uint16(MaxIO/os.Getpagesize()))
	native.PutUint32(out[32:], uint32(n.flags>>32))
	t.s.log.Info("FUSE session", "disk", t.s.p.Name, "protocol", minor, "flags", n.flags)
	return t.reply(0, initOut, nil)
}

// errno is what the kernel is told; everything but a full datastore and a read-only disk is EIO.
func (t *thread) errno(what string, err error, off, n int64) unix.Errno {
	if err == nil {
		return 0
	}
	e := unix.EIO
	switch kind := fault.KindOf(err); kind {
	case fault.NoSpace:
		e = unix.ENOSPC
	case fault.ReadOnly:
		e = unix.EROFS
	}
	t.s.log.Error("disk request failed", "disk", t.s.p.Name, "request", what, "offset", off, "bytes", n, "error", err)
	return e
}
