package sys

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrOtherNamespace says that a process lives in a PID namespace that is not ours nor below ours.
var ErrOtherNamespace = errors.New("the process is in another PID namespace")

// PidfdKill sends SIGKILL; a process that is dead already is success. Errors: ErrOtherNamespace, where the kernel refuses
// (pidfd_send_signal(2), EINVAL).
func PidfdKill(pidfd *os.File) error {
	fd, err := Fd(pidfd)
	if err != nil {
		return err
	}
	switch err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); {
	case err == nil, errors.Is(err, unix.ESRCH):
		return nil
	case errors.Is(err, unix.EINVAL):
		return ErrOtherNamespace
	default:
		return os.NewSyscallError("pidfd_send_signal", err)
	}
}

// PidfdWait waits until every thread of the process is dead (a pidfd polls readable only then, kernel/exit.c,
// exit_notify) or ctx ends.
func PidfdWait(ctx context.Context, pidfd *os.File) error {
	fd, err := Fd(pidfd)
	if err != nil {
		return err
	}
	const slice = 20 * time.Millisecond // how late a cancelled ctx is noticed
	for {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, int(slice.Milliseconds()))
		switch {
		case n > 0:
			return nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return os.NewSyscallError("poll", err)
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
	}
}
