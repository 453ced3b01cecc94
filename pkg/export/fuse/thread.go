package fuse

import (
	"context"
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/sys"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// thread reads one request at a time and answers it. Its buffers are reused: nothing is allocated per request.
type thread struct {
	s    *Server
	fd   int
	head [inHeader + ioIn]byte // headers of READ and WRITE; of a longer message the rest runs on into data
	data []byte                // page aligned: the payload of WRITE arrives where O_DIRECT can take it
	out  [outHeader + entryOut]byte
	args [512]byte
}

func newThread(s *Server, fd int) (*thread, error) {
	// With head this is the least that the kernel takes: the largest WRITE with its headers (fuse_dev_do_read). Every page
	// must be present: see the package's documentation, "Take-over".
	data, err := sys.AlignedBuffer(MaxIO)
	if err != nil {
		return nil, err
	}
	return &thread{s: s, fd: fd, data: data}, nil
}

func (t *thread) free() { _ = sys.FreeBuffer(t.data) }

// alone serves until the kernel knows the disk's file, with one thread that polls beside /dev/fuse for the end of ctx:
// before INIT is answered wakeReader would wait, and before the file is known it cannot wake anybody. resumed: an earlier
// server saved INIT's outcome; it may have died before it answered.
func (t *thread) alone(ctx context.Context, resumed bool) error {
	ev, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("eventfd", err)
	}
	defer func() { _ = unix.Close(ev) }()
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(woken)
		_, _ = unix.Write(ev, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	})
	defer func() {
		if !stop() {
			<-woken
		}
	}()
	wait := -1
	if resumed {
		wait = 0 // an INIT that is asked again is in the queue already
	}
	for ctx.Err() == nil {
		op, err := t.next(ev, wait)
		if err != nil || t.s.gone.Load() {
			return err
		}
		if wait == 0 || op == opOpen {
			err := wakeReader(t.s.dev) // whoever reads what this sends drops it
			if err == nil || errors.Is(err, unix.ENODEV) {
				return nil
			}
			if !errors.Is(err, unix.ENOENT) {
				return fault.Wrap(err, "serve %s", t.s.p.Name)
			}
		}
		wait = -1
	}
	return context.Cause(ctx)
}

// next serves one message if one comes within wait milliseconds (-1: any time) and before ev is written.
func (t *thread) next(ev, wait int) (op uint32, err error) {
	fds := []unix.PollFd{{Fd: int32(t.fd), Events: unix.POLLIN}, {Fd: int32(ev), Events: unix.POLLIN}}
	if _, err := unix.Poll(fds, wait); err != nil && !errors.Is(err, unix.EINTR) {
		return 0, os.NewSyscallError("poll", err)
	}
	if fds[0].Revents == 0 {
		return 0, nil
	}
	n, ok, err := t.read()
	if err != nil || !ok {
		return 0, err
	}
	return native.Uint32(t.head[4:]), t.handle(n)
}

// loop serves until the device is gone, the server stops, or /dev/fuse fails. What it has read it answers.
func (t *thread) loop() error {
	for !t.s.stopping.Load() && !t.s.gone.Load() {
		n, ok, err := t.read()
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		if err := t.handle(n); err != nil {
			return err
		}
	}
	return nil
}

// read takes one message. ok is false when there was none: interrupted, or the device is gone (then s.gone is set).
func (t *thread) read() (n int, ok bool, err error) {
	iov := [2]unix.Iovec{{Base: &t.head[0]}, {Base: &t.data[0]}}
	iov[0].SetLen(len(t.head))
	iov[1].SetLen(len(t.data))
	r, _, e := unix.Syscall(unix.SYS_READV, uintptr(t.fd), uintptr(unsafe.Pointer(&iov[0])), 2)
	switch e {
	case 0:
	case unix.EINTR, unix.EAGAIN, unix.ENOENT: // ENOENT: the request was taken back while it was copied
		return 0, false, nil
	case unix.ENODEV, unix.ECONNABORTED: // unmounted; aborted
		t.s.gone.Store(true)
		return 0, false, nil
	default:
		return 0, false, fault.Wrap(os.NewSyscallError("readv /dev/fuse", e), "serve %s", t.s.p.Name)
	}
	if int(r) < inHeader || int(r) != int(native.Uint32(t.head[0:])) {
		return 0, false, fault.New(fault.Internal, "", "FUSE message of %d bytes announces %d", r, native.Uint32(t.head[0:]))
	}
	return int(r), true, nil
}

// reply answers the current request with errno, or with the first body bytes of t.out behind the header and then payload.
func (t *thread) reply(errno unix.Errno, body int, payload []byte) error {
	if errno != 0 {
		body, payload = 0, nil
	}
	native.PutUint32(t.out[0:], uint32(outHeader+body+len(payload)))
	native.PutUint32(t.out[4:], uint32(-int32(errno)))
	copy(t.out[8:16], t.head[8:16]) // unique, with FUSE_UNIQUE_RESEND if it came so
	iov := [2]unix.Iovec{{Base: &t.out[0]}}
	iov[0].SetLen(outHeader + body)
	cnt := 1
	if len(payload) > 0 {
		iov[1].Base = &payload[0]
		iov[1].SetLen(len(payload))
		cnt = 2
	}
	for {
		_, _, e := unix.Syscall(unix.SYS_WRITEV, uintptr(t.fd), uintptr(unsafe.Pointer(&iov[0])), uintptr(cnt))
		switch e {
		case 0, unix.ENOENT: // ENOENT: nobody waits for the answer any more
			return nil
		case unix.EINTR:
			continue
		case unix.ENODEV, unix.EPERM: // EPERM: the connection is shut down (fuse_dev_write, fuse_get_dev)
			t.s.gone.Store(true)
			return nil
		}
		return fault.Wrap(os.NewSyscallError("writev /dev/fuse", e), "answer the kernel for %s", t.s.p.Name)
	}
}
