package fsx

import (
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// meaning is what an errno of a file operation says in this module's vocabulary, where fault.KindOf does not know it.
var meaning = map[unix.Errno]struct {
	kind   fault.Kind
	remedy string
}{
	unix.ENOSPC:       {fault.NoSpace, "Free space on the datastore or enlarge it."},
	unix.EDQUOT:       {fault.NoSpace, "Raise the quota of the datastore."},
	unix.EROFS:        {fault.ReadOnly, "Mount the datastore read-write."},
	unix.ENOENT:       {fault.NotFound, ""},
	unix.EEXIST:       {fault.Exists, ""},
	unix.ELOOP:        {fault.Invalid, "Symbolic links are not followed below a datastore."},
	unix.ENOTDIR:      {fault.Invalid, ""},
	unix.EISDIR:       {fault.Invalid, ""},
	unix.EXDEV:        {fault.Unsupported, "The two names are on different file systems."},
	unix.ENAMETOOLONG: {fault.Invalid, ""},
	unix.EINVAL:       {fault.Invalid, ""},
	unix.ENXIO:        {fault.Invalid, ""},
	unix.ENOTEMPTY:    {fault.Precondition, ""},
	unix.EBUSY:        {fault.InUse, ""},
	unix.ETXTBSY:      {fault.InUse, ""},
	unix.EMLINK:       {fault.Exhausted, "The file system allows no further hard link to this file."},
	unix.EMFILE:       {fault.Exhausted, "Raise the limit of open files (ulimit -n)."},
	unix.ENFILE:       {fault.Exhausted, "Raise fs.file-max."},
	unix.ENOMEM:       {fault.Exhausted, ""},
	unix.EFBIG:        {fault.OutOfRange, "The file system cannot hold a file of this size."},
	unix.ENOLCK:       {fault.Unsupported, "The file system has no working byte-range locks."},
	unix.EOPNOTSUPP:   {fault.Unsupported, ""},
	unix.ENOSYS:       {fault.Unsupported, ""},
	unix.ESTALE:       {fault.Unavailable, "The server forgot this file: reopen the datastore."},
	unix.ETIMEDOUT:    {fault.Unavailable, ""},
	unix.EHOSTUNREACH: {fault.Unavailable, ""},
	unix.ENOTCONN:     {fault.Unavailable, ""},
	unix.EACCES:       {fault.Denied, ""},
	unix.EPERM:        {fault.Denied, ""},
}

// Failure makes an error of op on path: a fault with the kind of err and err itself below; nil stays nil.
func Failure(op, path string, err error) error {
	if err == nil {
		return nil
	}
	var f *fault.Fault
	if errors.As(err, &f) {
		return err
	}
	kind, remedy := fault.KindOf(err), ""
	var no unix.Errno
	if errors.As(err, &no) {
		if m, ok := meaning[no]; ok {
			kind, remedy = m.kind, m.remedy
		}
		if no == unix.EBADF {
			err = errors.Join(fs.ErrClosed, err)
		}
	}
	return fault.New(kind, remedy, "%s %s: %w", op, path, err)
}

// Poisoned is what a failed sync says for ever.
func Poisoned(path string, err error) error {
	return fault.New(fault.Poisoned, "Close the disk, check it, and open it again.",
		"sync %s failed, what it should have stored is uncertain: %w", path, err)
}

// noEINTR repeats a call that a signal interrupted; the Go runtime sends SIGURG to its threads at any time.
func noEINTR(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func noEINTR1[T any](call func() (T, error)) (T, error) {
	for {
		if v, err := call(); !errors.Is(err, unix.EINTR) {
			return v, err
		}
	}
}
