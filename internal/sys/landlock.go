package sys

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// LandlockABI is the version of Landlock this kernel has, 0 if it has none (landlock_create_ruleset(2)).
func LandlockABI() int {
	v, _, e := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if e != 0 {
		return 0
	}
	return int(v)
}

// What a worker may do below its directory: everything with regular files but executing and moving them elsewhere.
const landlockDir = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE |
	unix.LANDLOCK_ACCESS_FS_READ_DIR | unix.LANDLOCK_ACCESS_FS_MAKE_REG | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE |
	unix.LANDLOCK_ACCESS_FS_TRUNCATE

// landlockHandled is what a kernel of this ABI can be asked to forbid, and how long a ruleset's attributes are for it
// (include/uapi/linux/landlock.h).
func landlockHandled(abi int) (attr unix.LandlockRulesetAttr, size uintptr) {
	attr.Handled_access_fs = 1<<13 - 1 // EXECUTE .. MAKE_SYM
	size = 8
	if abi >= 2 {
		attr.Handled_access_fs |= unix.LANDLOCK_ACCESS_FS_REFER
	}
	if abi >= 3 {
		attr.Handled_access_fs |= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	if abi >= 4 {
		attr.Handled_access_net = unix.LANDLOCK_ACCESS_NET_BIND_TCP | unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
		size = 16
	}
	if abi >= 5 {
		attr.Handled_access_fs |= unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	}
	if abi >= 6 {
		attr.Scoped = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL
		size = 24
	}
	return attr, size
}

// RestrictTo leaves the whole process only the directory dir and what is below it; descriptors that are open already keep
// working. It needs NoNewPrivileges before it. It returns the ABI in force. Kinds: Unsupported.
func RestrictTo(dir *os.File) (int, error) {
	return restrict(true, func(allow func(f *os.File, access uint64) error) error { return allow(dir, landlockDir) })
}

// Path is a file that stays allowed behind RestrictToPaths.
type Path struct {
	Name  string
	Write bool
}

// landlockFile is what may be done with a file that is written: a device is asked for its size and block size.
const landlockFile = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV

// RestrictToPaths leaves the whole process some files, by what their names lead to now, and connections to other hosts. A file that is
// not there may come later where nothing but its like is: its directory is allowed instead, but for /dev. It needs NoNewPrivileges
// before it. It returns the ABI in force. Kinds: Unsupported.
func RestrictToPaths(paths []Path) (int, error) {
	return restrict(false, func(allow func(f *os.File, access uint64) error) error {
		for _, p := range paths {
			access := uint64(unix.LANDLOCK_ACCESS_FS_READ_FILE)
			if p.Write {
				access = landlockFile
			}
			f, err := openPath(p.Name)
			if errors.Is(err, fs.ErrNotExist) && p.Write && !strings.HasPrefix(p.Name, "/dev/") {
				f, err = openPath(filepath.Dir(p.Name))
			}
			if err != nil {
				continue // what is not there cannot be used either, until the process is started anew
			}
			err = allow(f, access)
			f.Close()
			if err != nil {
				return err
			}
		}
		return nil
	})
}

func openPath(name string) (*os.File, error) {
	fd, err := unix.Open(name, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// restrict makes a ruleset, has it filled, and puts it around the process. Without alone, connections to other hosts stay allowed.
func restrict(alone bool, fill func(allow func(f *os.File, access uint64) error) error) (int, error) {
	abi := LandlockABI()
	if abi == 0 {
		return 0, fault.New(fault.Unsupported, "", "the kernel has no Landlock")
	}
	attr, size := landlockHandled(abi)
	if !alone {
		attr.Handled_access_net &^= unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
	}
	rules, _, e := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), size, 0)
	if e != 0 {
		return 0, os.NewSyscallError("landlock_create_ruleset", e)
	}
	defer func() { _ = unix.Close(int(rules)) }()
	err := fill(func(f *os.File, access uint64) error {
		fd, err := Fd(f)
		if err != nil {
			return err
		}
		rule := unix.LandlockPathBeneathAttr{Allowed_access: access & attr.Handled_access_fs, Parent_fd: int32(fd)}
		_, _, e := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, rules, unix.LANDLOCK_RULE_PATH_BENEATH,
			uintptr(unsafe.Pointer(&rule)), 0, 0, 0)
		runtime.KeepAlive(f)
		if e != 0 {
			return os.NewSyscallError("landlock_add_rule", e)
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	if err := onAllThreads("landlock_restrict_self", unix.SYS_LANDLOCK_RESTRICT_SELF, rules, 0, 0, 0, 0); err != nil {
		return 0, err
	}
	return abi, nil
}

// onAllThreads makes a system call that changes only the calling thread in every thread. A program with cgo cannot.
func onAllThreads(name string, trap, a1, a2, a3, a4, a5 uintptr) error {
	_, _, e := syscall.AllThreadsSyscall6(trap, a1, a2, a3, a4, a5, 0)
	switch e {
	case 0:
		return nil
	case syscall.ENOTSUP:
		return fault.New(fault.Unsupported, "build with CGO_ENABLED=0", "%s: a program with cgo cannot change all its threads", name)
	}
	return os.NewSyscallError(name, e)
}
