package fuse

import (
	"encoding/binary"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/block"
	"github.com/vmdk-csi/vmdk-csi/pkg/export"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// message is a request as the kernel writes it.
func message(op uint32, node uint64, body ...[]byte) []byte {
	b := make([]byte, inHeader)
	native.PutUint32(b[4:], op)
	native.PutUint64(b[8:], 7)
	native.PutUint64(b[16:], node)
	for _, x := range body {
		b = append(b, x...)
	}
	native.PutUint32(b, uint32(len(b)))
	return b
}

func u64s(v ...uint64) []byte {
	var b []byte
	for _, x := range v {
		b = binary.NativeEndian.AppendUint64(b, x)
	}
	return b
}

func initBody(flags uint64) []byte {
	b := make([]byte, 64)
	native.PutUint32(b[0:], 7)
	native.PutUint32(b[4:], 45)
	native.PutUint32(b[12:], uint32(flags))
	native.PutUint32(b[16:], uint32(flags>>32))
	return b
}

// conversation plays the kernel on one end of a socket, and returns the answer's errno and body.
func conversation(t *testing.T, p export.Params, msg []byte) (errno unix.Errno, body []byte, err error) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fds[0]) }()
	dev := os.NewFile(uintptr(fds[1]), "dev")
	defer dev.Close()
	s := NewServer(dev, Options{Threads: 1})
	s.p = p
	th, err := newThread(s, fds[1])
	if err != nil {
		t.Fatal(err)
	}
	defer th.free()
	if _, err := unix.Write(fds[0], msg); err != nil {
		t.Fatal(err)
	}
	n, ok, err := th.read()
	if err != nil || !ok {
		return 0, nil, err
	}
	herr := th.handle(n)
	out := make([]byte, MaxIO)
	r, _, rerr := unix.Recvfrom(fds[0], out, unix.MSG_DONTWAIT)
	if errors.Is(rerr, unix.EAGAIN) {
		return 0, nil, herr
	}
	if rerr != nil || r < outHeader || int(native.Uint32(out)) != r || native.Uint64(out[8:]) != 7 {
		t.Fatalf("an answer of %d bytes that says %d, to %d; %v", r, native.Uint32(out), native.Uint64(out[8:]), rerr)
	}
	return unix.Errno(-int32(native.Uint32(out[4:]))), out[outHeader:r], herr
}

func TestMessages(t *testing.T) {
	size := uint64(1 << 20)
	for name, c := range map[string]struct {
		msg      []byte
		readOnly bool
		errno    unix.Errno
		body     int
	}{
		"lookup":                {msg: message(opLookup, rootNode, []byte("disk\x00")), body: entryOut},
		"lookup other":          {msg: message(opLookup, rootNode, []byte("other\x00")), errno: unix.ENOENT},
		"lookup below disk":     {msg: message(opLookup, diskNode, []byte("disk\x00")), errno: unix.ENOENT},
		"getattr root":          {msg: message(opGetattr, rootNode, make([]byte, 16)), body: attrOut},
		"open root":             {msg: message(opOpen, rootNode, make([]byte, 8)), errno: unix.EISDIR},
		"statfs":                {msg: message(opStatfs, rootNode), body: statfsOut},
		"read":                  {msg: message(opRead, diskNode, u64s(0, 4096, 512, 0, 0)), body: 512},
		"read over the end":     {msg: message(opRead, diskNode, u64s(0, size-100, 512, 0, 0)), body: 100},
		"read behind the end":   {msg: message(opRead, diskNode, u64s(0, size, 512, 0, 0))},
		"read too much":         {msg: message(opRead, diskNode, u64s(0, 0, MaxIO+1, 0, 0)), errno: unix.EINVAL},
		"read negative":         {msg: message(opRead, diskNode, u64s(0, 1<<63, 512, 0, 0)), errno: unix.EINVAL},
		"write":                 {msg: message(opWrite, diskNode, u64s(0, 0, 512, 0, 0), make([]byte, 512)), body: writeOut},
		"write short message":   {msg: message(opWrite, diskNode, u64s(0, 0, 512, 0, 0), make([]byte, 511)), errno: unix.EINVAL},
		"write read-only":       {msg: message(opWrite, diskNode, u64s(0, 0, 512, 0, 0), make([]byte, 512)), readOnly: true, errno: unix.EROFS},
		"write behind the end":  {msg: message(opWrite, diskNode, u64s(0, size, 512, 0, 0), make([]byte, 512)), errno: unix.EIO},
		"fallocate short":       {msg: message(opFallocate, diskNode, u64s(0)), errno: unix.EINVAL},
		"fallocate plain":       {msg: message(opFallocate, diskNode, u64s(0, 0, 512, 0)), errno: unix.EOPNOTSUPP},
		"discard":               {msg: message(opFallocate, diskNode, u64s(0, 0, 512, fallocPunch))},
		"discard read-only":     {msg: message(opFallocate, diskNode, u64s(0, 0, 512, fallocPunch)), readOnly: true, errno: unix.EROFS},
		"discard overflow":      {msg: message(opFallocate, diskNode, u64s(0, 1<<62, 1<<62, fallocPunch)), errno: unix.EIO},
		"truncate":              {msg: message(opSetattr, diskNode, u64s(setattrSize, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)), errno: unix.EPERM},
		"setattr short":         {msg: message(opSetattr, diskNode), errno: unix.EINVAL},
		"open short":            {msg: message(opOpen, diskNode), errno: unix.EINVAL},
		"unknown":               {msg: message(9999, diskNode), errno: unix.ENOSYS},
		"init of another world": {msg: message(opInit, 0, make([]byte, 8)), errno: unix.EPROTO},
		"init":                  {msg: message(opInit, 0, initBody(initHasResend|initExt)), body: initOut},
		"destroy":               {msg: message(opDestroy, 0)},
	} {
		t.Run(name, func(t *testing.T) {
			errno, body, err := conversation(t, export.Params{Name: "disk", Disk: newMemory(int(size)), ReadOnly: c.readOnly}, c.msg)
			if err != nil || errno != c.errno || len(body) != c.body {
				t.Errorf("errno %v with %d bytes, %v; want %v with %d", errno, len(body), err, c.errno, c.body)
			}
		})
	}
}

// solid is a disk on a file system that cannot punch holes.
type solid struct{ block.Device }

func (solid) Discard(int64, int64) error { return fault.New(fault.Unsupported, "", "no holes here") }

// TestDiscardUnsupported: the kernel must hear that there is none, not that the disk failed, nor that the range was zeroed.
func TestDiscardUnsupported(t *testing.T) {
	for mode, want := range map[uint64]unix.Errno{fallocPunch: unix.EOPNOTSUPP, fallocZero: 0} {
		errno, _, err := conversation(t, export.Params{Name: "disk", Disk: solid{newMemory(4096)}},
			message(opFallocate, diskNode, u64s(0, 0, 512, mode)))
		if err != nil || errno != want {
			t.Errorf("mode %#x: errno %v, %v, want %v", mode, errno, err, want)
		}
	}
}

func TestInitWithoutResend(t *testing.T) {
	errno, _, err := conversation(t, export.Params{Name: "disk", Disk: newMemory(4096)}, message(opInit, 0, initBody(initExt|initAsyncDIO)))
	if errno != unix.EPROTO || fault.KindOf(err) != fault.Unsupported {
		t.Errorf("errno %v, %v", errno, err)
	}
}

// TestInitSavedFirst: the state is kept before the kernel is answered, and not answered if it cannot be kept.
func TestInitSavedFirst(t *testing.T) {
	full := errors.New("no room")
	errno, _, err := conversation(t, export.Params{Name: "disk", Disk: newMemory(4096),
		SaveState: func([]byte) error { return full }}, message(opInit, 0, initBody(initExt|initHasResend)))
	if errno != unix.EIO || !errors.Is(err, full) {
		t.Errorf("errno %v, %v", errno, err)
	}
	for _, bad := range [][]byte{nil, {1}, make([]byte, 24), append(negotiated{maxWrite: MaxIO}.marshal(), 0)} {
		if n, ok := unmarshalState(bad); ok {
			t.Errorf("%v is the state %+v", bad, n)
		}
	}
	want := negotiated{minor: 45, flags: initHasResend | 3, maxWrite: MaxIO}
	if got, ok := unmarshalState(want.marshal()); !ok || got != want {
		t.Errorf("%+v became %+v", want, got)
	}
}

// FuzzMessage: whatever arrives, a thread answers or refuses it.
func FuzzMessage(f *testing.F) {
	f.Add(message(opWrite, diskNode, u64s(0, 0, 512, 0, 0), make([]byte, 512)))
	f.Add(message(opLookup, rootNode, []byte("disk\x00")))
	f.Add(message(opFallocate, diskNode, u64s(0, 0, 512, fallocZero)))
	f.Add(message(opInit, 0, initBody(initHasResend|initExt)))
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		f.Fatal(err)
	}
	defer null.Close()
	f.Fuzz(func(t *testing.T, msg []byte) {
		if len(msg) < inHeader || len(msg) > MaxIO {
			return
		}
		s := NewServer(null, Options{Threads: 1})
		s.p = export.Params{Name: "disk", Disk: newMemory(1 << 16)}
		th, err := newThread(s, int(null.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		defer th.free()
		copy(th.head[:], msg)
		if len(msg) > len(th.head) {
			copy(th.data, msg[len(th.head):])
		}
		if err := th.handle(len(msg)); err != nil && fault.KindOf(err) != fault.Unsupported {
			t.Errorf("%v", err)
		}
	})
}
