package sys

import (
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// denied is what a process that only moves bytes between descriptors never calls. Creating threads stays allowed, creating
// processes does not.
var denied = []uint32{
	// other programs and processes
	unix.SYS_EXECVE, unix.SYS_EXECVEAT, unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV,
	unix.SYS_KCMP, unix.SYS_PIDFD_GETFD, unix.SYS_PIDFD_OPEN, unix.SYS_SETNS, unix.SYS_UNSHARE, unix.SYS_PERSONALITY,
	// the mount table, and files around Landlock
	unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_MOVE_MOUNT, unix.SYS_OPEN_TREE,
	unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK, unix.SYS_MOUNT_SETATTR,
	unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_NAME_TO_HANDLE_AT, unix.SYS_MKNODAT, unix.SYS_FANOTIFY_INIT, unix.SYS_QUOTACTL,
	// large attack surfaces of the kernel
	unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD, unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER,
	unix.SYS_IO_URING_REGISTER, unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_SOCKETPAIR,
	// the machine
	unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD,
	unix.SYS_REBOOT, unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_ACCT, unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME,
	unix.SYS_ADJTIMEX, unix.SYS_CLOCK_ADJTIME, unix.SYS_SYSLOG, unix.SYS_VHANGUP, unix.SYS_SETHOSTNAME,
	unix.SYS_SETDOMAINNAME,
}

// Offsets in struct seccomp_data (include/uapi/linux/seccomp.h).
const (
	dataNr   = 0
	dataArch = 4
	dataArg0 = 16 // low half on a little-endian machine
)

// x32Bit marks the system calls of another ABI of the same architecture.
const x32Bit = 0x40000000

// denyFilter is the BPF program: another architecture or ABI, and every denied call, fail with EPERM; clone without
// CLONE_THREAD too; clone3, whose flags a filter cannot see, with ENOSYS, so that libraries fall back to clone.
//
// New sockets are denied too, or with internet those that do not speak to other hosts.
func denyFilter(arch uint32, internet bool) []unix.SockFilter {
	const ld, jeq, jge, jset, ret = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K,
		unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, unix.BPF_RET | unix.BPF_K
	errno := func(e unix.Errno) unix.SockFilter {
		return unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ERRNO | uint32(e)}
	}
	// Everything that is refused stands as a pair "not this: skip one; refuse", so no jump is long.
	p := []unix.SockFilter{
		{Code: ld, K: dataArch},
		{Code: jeq, K: arch, Jt: 1}, errno(unix.EPERM),
		{Code: ld, K: dataNr},
		{Code: jge, K: x32Bit, Jf: 1}, errno(unix.EPERM),
		{Code: jeq, K: unix.SYS_CLONE3, Jf: 1}, errno(unix.ENOSYS),
	}
	for _, nr := range denied {
		p = append(p, unix.SockFilter{Code: jeq, K: nr, Jf: 1}, errno(unix.EPERM))
	}
	if internet {
		p = append(p,
			unix.SockFilter{Code: jeq, K: unix.SYS_SOCKET, Jf: 5},
			unix.SockFilter{Code: ld, K: dataArg0},
			unix.SockFilter{Code: jeq, K: unix.AF_INET, Jt: 2},
			unix.SockFilter{Code: jeq, K: unix.AF_INET6, Jt: 1}, errno(unix.EPERM),
			unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ALLOW})
	} else {
		p = append(p, unix.SockFilter{Code: jeq, K: unix.SYS_SOCKET, Jf: 1}, errno(unix.EPERM))
	}
	return append(p,
		unix.SockFilter{Code: jeq, K: unix.SYS_CLONE, Jf: 3},
		unix.SockFilter{Code: ld, K: dataArg0},
		unix.SockFilter{Code: jset, K: unix.CLONE_THREAD, Jt: 1}, errno(unix.EPERM),
		unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ALLOW})
}

// DenySyscalls puts the filter around every thread of the process, and with it no_new_privs. Kinds: Unsupported.
func DenySyscalls() error { return denySyscalls(false) }

// DenySyscallsButInternet is DenySyscalls for a process that connects to other hosts.
func DenySyscallsButInternet() error { return denySyscalls(true) }

func denySyscalls(internet bool) error {
	arch, ok := map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}[runtime.GOARCH]
	if !ok {
		return fault.New(fault.Unsupported, "", "no system call filter for %s", runtime.GOARCH)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl PR_SET_NO_NEW_PRIVS", err)
	}
	f := denyFilter(arch, internet)
	prog := unix.SockFprog{Len: uint16(len(f)), Filter: &f[0]}
	const setModeFilter = 1 // SECCOMP_SET_MODE_FILTER
	tid, _, e := unix.Syscall(unix.SYS_SECCOMP, setModeFilter, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	switch {
	case e == unix.ENOSYS || e == unix.EINVAL:
		return fault.New(fault.Unsupported, "", "the kernel has no seccomp filters")
	case e != 0:
		return os.NewSyscallError("seccomp", e)
	case tid != 0:
		return fault.New(fault.Internal, "", "thread %d cannot take the system call filter", tid)
	}
	return nil
}
