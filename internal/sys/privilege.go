package sys

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// NoNewPrivileges: no execve gives this process more than it has (PR_SET_NO_NEW_PRIVS).
func NoNewPrivileges() error {
	return onAllThreads("prctl PR_SET_NO_NEW_PRIVS", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
}

// DropCapabilities empties the capability sets of the process.
func DropCapabilities() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	return onAllThreads("capset", unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&none[0])), 0, 0, 0)
}

// BecomeIOFlusher tells the kernel that its memory reclaim may wait for this process: allocations on its behalf then never
// wait for I/O that it would have to serve (PR_SET_IO_FLUSHER). Needs CAP_SYS_RESOURCE.
func BecomeIOFlusher() error {
	return onAllThreads("prctl PR_SET_IO_FLUSHER", unix.SYS_PRCTL, unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0)
}

// Undumpable: no core dump, no ptrace, and /proc/PID belongs to root (PR_SET_DUMPABLE).
func Undumpable() error {
	return os.NewSyscallError("prctl PR_SET_DUMPABLE", unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0))
}
