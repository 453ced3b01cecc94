package fuse

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/sys"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Session is the node side of one disk: a FUSE file system that no mountinfo shows and the descriptor that serves it.
type Session struct {
	// Dev is the /dev/fuse descriptor. It is the caller's: whoever serves or holds the disk gets a duplicate, and the
	// session's file system dies with the last of them.
	Dev *os.File

	name  string
	minor uint32 // of the file system's device number, its name in fusectl

	mu    sync.Mutex
	mount *os.File // nil after CloseMount
}

// fileTag ends the disk's id in the file's name. What follows is the session's maker's: the server answers to all.
const fileTag = '@'

// NewSession makes the file system whose one file is called name: the disk's id, or id@tag with anything that tells the
// maker's files from those of others (nodes that share a kernel, as in kind). The kernel's INIT waits in Dev for a server.
// Needs CAP_SYS_ADMIN. Kinds: Invalid (name), Unsupported (kernel without FUSE), Denied.
func NewSession(name string) (*Session, error) {
	if name == "" || name == "." || name == ".." || len(name) > 255 || strings.ContainsAny(name, "/\x00") {
		return nil, fault.New(fault.Invalid, "use the disk's id", "%q cannot name a disk's file", name)
	}
	// Not os.OpenFile: it would make the description non-blocking and register it with the runtime's poller, and every
	// process that holds a duplicate would wake up for every request.
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fault.New(fault.Unsupported, "load the kernel module fuse and give the node plugin /dev/fuse",
			"open /dev/fuse: %w", err)
	}
	dev := os.NewFile(uintptr(fd), "/dev/fuse")
	mount, err := sys.DetachedMount("fuse", []sys.MountParam{
		{Key: "source", Value: "vmdk-csi"},
		{Key: "fd", Value: strconv.Itoa(fd)},
		{Key: "rootmode", Value: "40000"},
		{Key: "user_id", Value: strconv.Itoa(os.Geteuid())},
		{Key: "group_id", Value: strconv.Itoa(os.Getegid())},
		{Key: "max_read", Value: strconv.Itoa(MaxIO)},
	}, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		dev.Close()
		return nil, fault.Wrap(err, "make the FUSE session of %s", name)
	}
	s := &Session{Dev: dev, name: name, mount: mount}
	if s.minor, err = deviceMinor(mount); err != nil {
		mount.Close()
		dev.Close()
		return nil, fault.Wrap(err, "make the FUSE session of %s", name)
	}
	return s, nil
}

// deviceMinor asks for what the kernel knows without the server (AT_STATX_DONT_SYNC): there is no server yet.
func deviceMinor(mount *os.File) (uint32, error) {
	fd, err := sys.Fd(mount)
	if err != nil {
		return 0, err
	}
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, 0, &st); err != nil {
		return 0, os.NewSyscallError("statx", err)
	}
	return st.Dev_minor, nil
}

// OpenDisk opens the disk's file with flags (O_RDWR or O_RDONLY; O_CLOEXEC is added). The server may never answer: when
// ctx ends first the session is aborted, which ends the open for certain, and the session is of no more use.
func (s *Session) OpenDisk(ctx context.Context, flags int) (*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mount == nil {
		return nil, fault.New(fault.Precondition, "make a new session", "the mount of %s is closed", s.name)
	}
	fd, err := sys.Fd(s.mount)
	if err != nil {
		return nil, err
	}
	type opened struct {
		fd  int
		err error
	}
	done := make(chan opened)
	abandoned := make(chan struct{})
	go func() {
		f, err := unix.Openat(fd, s.name, flags|unix.O_CLOEXEC, 0)
		select {
		case done <- opened{f, err}:
		case <-abandoned: // a file that nobody knows would keep the session's file system for ever
			if err == nil {
				_ = unix.Close(f)
			}
		}
	}()
	var aborted error
	var o opened
	select {
	case o = <-done:
	case <-ctx.Done():
		aborted = context.Cause(ctx)
		if err := s.Abort(); err != nil {
			// The open ends when a server answers after all, or the last duplicate of Dev is closed; until then its thread
			// stays in the kernel, and nobody can wait for it.
			close(abandoned)
			return nil, fault.New(fault.Timeout, "restart hostd, then try again",
				"open %s: no answer from the server (%w), and the session cannot be aborted: %w", s.name, aborted, err)
		}
		o = <-done
	}
	if o.err == nil && aborted == nil {
		return os.NewFile(uintptr(o.fd), "/"+s.name), nil
	}
	if o.err == nil {
		_ = unix.Close(o.fd)
	}
	if aborted != nil {
		return nil, fault.New(fault.Timeout, "see hostd's log for why the disk's worker does not answer",
			"open %s: no answer from the server: %w", s.name, aborted)
	}
	return nil, fault.Wrap(os.NewSyscallError("openat", o.err), "open %s in its FUSE session", s.name)
}

// CloseMount closes the mount. What was opened through it keeps the file system alive. May be repeated.
func (s *Session) CloseMount() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mount == nil {
		return nil
	}
	err := s.mount.Close()
	s.mount = nil
	return err
}

// Close closes the mount and this process's Dev.
func (s *Session) Close() error {
	err := s.CloseMount()
	if cerr := s.Dev.Close(); err == nil {
		err = cerr
	}
	return err
}

// Abort ends the session now: every request fails, the server's Serve returns nil. It reaches the kernel through a
// detached mount of fusectl (Documentation/filesystems/fuse.rst, "Control filesystem").
func (s *Session) Abort() error {
	ctl, err := sys.DetachedMount("fusectl", nil, 0)
	if err != nil {
		return fault.Wrap(err, "abort the FUSE session of %s", s.name)
	}
	defer func() { _ = ctl.Close() }()
	fd, err := sys.Fd(ctl)
	if err != nil {
		return err
	}
	a, err := unix.Openat(fd, fmt.Sprintf("%d/abort", s.minor), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fault.Wrap(os.NewSyscallError("openat", err), "abort the FUSE session of %s", s.name)
	}
	defer func() { _ = unix.Close(a) }()
	_, err = unix.Write(a, []byte("1"))
	return os.NewSyscallError("write", err)
}
