package fsx

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Permissions of what is created, before the umask: a disk's content is nobody else's business.
const (
	fileMode = 0o640
	dirMode  = 0o750
)

// resolve keeps a lookup inside the directory whatever the name contains (openat2(2)).
const resolve = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

type osDir struct {
	fd   int
	path string // for messages only

	syncMu  sync.Mutex
	syncErr error
}

// OpenRoot opens the directory at path. The path itself may contain symbolic links (it is the administrator's);
// nothing below it is reached through one.
func OpenRoot(path string) (Dir, error) {
	fd, err := noEINTR1(func() (int, error) {
		return unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, Failure("open directory", path, err)
	}
	return &osDir{fd: fd, path: path}, nil
}

// FromFD makes a Dir of a directory descriptor that another process handed over. The Dir owns fd from then on, except
// when an error is returned.
func FromFD(fd int) (Dir, error) {
	var st unix.Stat_t
	if err := noEINTR(func() error { return unix.Fstat(fd, &st) }); err != nil {
		return nil, Failure("inspect descriptor", fmt.Sprintf("fd %d", fd), err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil, fault.New(fault.Invalid, "", "descriptor %d is not a directory", fd)
	}
	unix.CloseOnExec(fd)
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		path = fmt.Sprintf("fd %d", fd)
	}
	return &osDir{fd: fd, path: path}, nil
}

// FromFile is FromFD of a duplicate: f stays the caller's.
func FromFile(f *os.File) (Dir, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, Failure("duplicate descriptor", f.Name(), err)
	}
	var fd int
	cerr := raw.Control(func(p uintptr) {
		fd, err = noEINTR1(func() (int, error) { return unix.FcntlInt(p, unix.F_DUPFD_CLOEXEC, 3) })
	})
	if err := errors.Join(cerr, err); err != nil {
		return nil, Failure("duplicate descriptor", f.Name(), err)
	}
	d, err := FromFD(fd)
	if err != nil {
		_ = unix.Close(fd)
	}
	return d, err
}

// Descriptor duplicates the descriptor of a directory that OpenRoot, FromFD or their Sub opened, to hand it to
// another process. The caller closes it. Another implementation of Dir may bring a Descriptor method of its own.
func Descriptor(d Dir) (*os.File, error) {
	d = Unwrap(d)
	if o, ok := d.(interface{ Descriptor() (*os.File, error) }); ok {
		return o.Descriptor()
	}
	od, ok := d.(*osDir)
	if !ok {
		return nil, fault.New(fault.Unsupported, "", "a %T has no file descriptor", d)
	}
	fd, err := noEINTR1(func() (int, error) { return unix.FcntlInt(uintptr(od.fd), unix.F_DUPFD_CLOEXEC, 3) })
	if err != nil {
		return nil, Failure("duplicate directory", od.path, err)
	}
	return os.NewFile(uintptr(fd), od.path), nil
}

// CheckName tells whether name can be an entry of a Dir.
func CheckName(name string) error {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return fault.New(fault.Invalid, "", "%q is not a file name: one path element is needed, without a slash or NUL", name)
	}
	return nil
}

func (d *osDir) join(name string) string { return d.path + "/" + name }

// openat opens name below d and never leaves it.
func (d *osDir) openat(name string, flags int, mode uint32) (int, error) {
	flags |= unix.O_CLOEXEC | unix.O_NOFOLLOW
	if flags&unix.O_CREAT == 0 {
		mode = 0 // openat2(2) insists
	}
	how := unix.OpenHow{Flags: uint64(flags), Mode: uint64(mode), Resolve: resolve}
	fd, err := noEINTR1(func() (int, error) { return unix.Openat2(d.fd, name, &how) })
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		// No openat2 (before Linux 5.6, or a seccomp filter): for one path element O_NOFOLLOW gives the same.
		return noEINTR1(func() (int, error) { return unix.Openat(d.fd, name, flags, mode) })
	}
	return fd, err
}

func (d *osDir) Sub(name string) (Dir, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	fd, err := d.openat(name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, Failure("open directory", d.join(name), err)
	}
	return &osDir{fd: fd, path: d.join(name)}, nil
}

func (d *osDir) Mkdir(name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	return Failure("make directory", d.join(name), noEINTR(func() error { return unix.Mkdirat(d.fd, name, dirMode) }))
}

func (d *osDir) LinkFrom(src Dir, srcName, name string) error {
	if err := errors.Join(CheckName(srcName), CheckName(name)); err != nil {
		return err
	}
	from, ok := Unwrap(src).(*osDir)
	if !ok {
		return fault.New(fault.Unsupported, "", "cannot link from a %T into %s", src, d.path)
	}
	err := noEINTR(func() error { return unix.Linkat(from.fd, srcName, d.fd, name, 0) })
	if errors.Is(err, unix.EPERM) {
		// link(2): the file system has no hard links, or the file is a directory.
		err = fault.New(fault.Unsupported, "", "the file system of %s makes no hard link to %s: %w", d.path, from.join(srcName), err)
	}
	return Failure("link "+from.join(srcName)+" to", d.join(name), err)
}

func (d *osDir) Rename(oldName, newName string) error {
	if err := errors.Join(CheckName(oldName), CheckName(newName)); err != nil {
		return err
	}
	err := noEINTR(func() error { return unix.Renameat(d.fd, oldName, d.fd, newName) })
	return Failure("rename "+d.join(oldName)+" to", d.join(newName), err)
}

func (d *osDir) Remove(name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	err := noEINTR(func() error { return unix.Unlinkat(d.fd, name, 0) })
	// unlink(2) of a directory: Linux says EISDIR, POSIX EPERM.
	if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EPERM) {
		err = noEINTR(func() error { return unix.Unlinkat(d.fd, name, unix.AT_REMOVEDIR) })
	}
	return Failure("remove", d.join(name), err)
}

func (d *osDir) List() ([]string, error) {
	// A descriptor of its own, because the position of d.fd would be shared by concurrent listings.
	fd, err := noEINTR1(func() (int, error) {
		return unix.Openat(d.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, Failure("list", d.path, err)
	}
	f := os.NewFile(uintptr(fd), d.path)
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, Failure("list", d.path, err)
	}
	slices.Sort(names)
	return names, nil
}

func (d *osDir) Stat(name string) (Info, error) {
	if err := CheckName(name); err != nil {
		return Info{}, err
	}
	var st unix.Stat_t
	err := noEINTR(func() error { return unix.Fstatat(d.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) })
	if err != nil {
		return Info{}, Failure("inspect", d.join(name), err)
	}
	return infoOf(&st), nil
}

func (d *osDir) Sync() error {
	d.syncMu.Lock()
	defer d.syncMu.Unlock()
	if d.syncErr != nil {
		return d.syncErr
	}
	err := noEINTR(func() error { return unix.Fsync(d.fd) })
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil // fsync(2): the file system cannot sync a directory and makes its entries durable by itself (CIFS)
	}
	if errors.Is(err, unix.EBADF) { // closed: says nothing about the medium
		return Failure("sync", d.path, err)
	}
	if err != nil {
		d.syncErr = Poisoned(d.path, err)
	}
	return d.syncErr
}

func (d *osDir) Space() (total, free int64, err error) {
	var st unix.Statfs_t
	if err := noEINTR(func() error { return unix.Fstatfs(d.fd, &st) }); err != nil {
		return 0, 0, Failure("measure", d.path, err)
	}
	unit := st.Frsize
	if unit == 0 {
		unit = st.Bsize
	}
	return int64(st.Blocks) * unit, int64(st.Bavail) * unit, nil
}

func (d *osDir) Close() error {
	if d.fd < 0 {
		return nil
	}
	err := unix.Close(d.fd)
	d.fd = -1
	return Failure("close", d.path, err)
}

func infoOf(st *unix.Stat_t) Info {
	mode := fs.FileMode(st.Mode & 0o777)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFDIR:
		mode |= fs.ModeDir
	case unix.S_IFLNK:
		mode |= fs.ModeSymlink
	case unix.S_IFIFO:
		mode |= fs.ModeNamedPipe
	case unix.S_IFSOCK:
		mode |= fs.ModeSocket
	case unix.S_IFCHR:
		mode |= fs.ModeDevice | fs.ModeCharDevice
	default:
		mode |= fs.ModeDevice
	}
	return Info{
		Inode:     st.Ino,
		Device:    st.Dev,
		Links:     uint64(st.Nlink),
		Size:      st.Size,
		Allocated: st.Blocks * 512,
		Mode:      mode,
	}
}
