package node

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// From include/uapi/linux/fs.h: FIFREEZE is _IOWR('X', 119, int), FITHAW _IOWR('X', 120, int).
const (
	ioctlFreeze = 0xc0045877
	ioctlThaw   = 0xc0045878
)

// What a helper is told to do, and what it says.
const (
	doFreeze = "freeze" // PATH UNTIL
	doThaw   = "thaw"   // PATH

	saysFrozen = "frozen"
	saysThawed = "thawed" // it goes on; of a freeze: and it stood still until now
	saysLate   = "late"   // the freeze came when it was not wanted any more; it goes on
)

// FreezeHelper is the process that stops one file system and lets it go on. It is a process of its own because the kernel
// may keep who freezes waiting for as long as a device does not answer (freeze_super syncs, uninterruptibly), and because
// what was stopped must go on when the node plugin is stopped or dead:
//
//  1. freeze: PATH, which must be a mount point       died here: the kernel goes on with it, and the record that the node
//     plugin wrote before has its next start thaw it
//  2. say so
//  3. wait until UNTIL (CLOCK_MONOTONIC, nanoseconds), or until in ends, which it does with the node plugin
//  4. thaw, and say so
//
// A freeze that comes after UNTIL is undone at once. It never ends by a signal that it can catch before it has thawed.
func FreezeHelper(args []string, in io.Reader, out io.Writer) error {
	signal.Ignore(syscall.SIGPIPE) // a node plugin that is dead does not read
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer signal.Stop(stop)
	switch {
	case len(args) == 2 && args[0] == doThaw:
		fs, err := openMountPoint(args[1])
		if err == nil {
			defer fs.Close()
			err = thaw(fs)
		}
		// EINVAL: not frozen. What is not mounted is not frozen, as far as that path is concerned.
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) && !errors.Is(err, fault.NotFound) {
			return err
		}
		fmt.Fprintln(out, saysThawed)
		return nil
	case len(args) == 3 && args[0] == doFreeze:
		until, err := strconv.ParseInt(args[2], 10, 64)
		if err != nil {
			return fault.New(fault.Invalid, "", "%q is no time", args[2])
		}
		return freezeUntil(args[1], until, stop, in, out)
	}
	return fault.New(fault.Invalid, "It is started by vmdk-csi-node.", "%q: neither freeze PATH UNTIL nor thaw PATH", args)
}

func freezeUntil(path string, until int64, stop <-chan os.Signal, in io.Reader, out io.Writer) error {
	fs, err := openMountPoint(path)
	if err != nil {
		return err
	}
	defer fs.Close()
	// The reader ends with the process: nothing can be done about a read that does not return, and nobody waits for it.
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = io.Copy(io.Discard, bufio.NewReader(in)) // any end of it is the end
	}()
	wanted := func() bool {
		select {
		case <-ended:
			return false
		case <-stop:
			return false
		default:
			return monotonic() < until
		}
	}
	if !wanted() {
		fmt.Fprintln(out, saysLate)
		return nil
	}
	if err := ioctl(fs, ioctlFreeze); err != nil {
		return fault.Wrap(err, "freeze the file system at %s", path)
	}
	if !wanted() {
		err := thaw(fs)
		fmt.Fprintln(out, saysLate)
		return err
	}
	fmt.Fprintln(out, saysFrozen)
	for left := until - monotonic(); left > 0; left = until - monotonic() {
		timer := time.NewTimer(time.Duration(left))
		select {
		case <-ended:
		case <-stop:
		case <-timer.C:
			continue // the clock decides
		}
		timer.Stop()
		break
	}
	if err := thaw(fs); err != nil {
		return fault.Wrap(err, "somebody else let the file system at %s go on", path)
	}
	fmt.Fprintln(out, saysThawed)
	return nil
}

// openMountPoint opens what is mounted at path. A directory of another file system, where the mount has gone, is refused: that
// would stop the node's own.
func openMountPoint(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fault.Wrap(err, "open %s", path)
	}
	fs := os.NewFile(uintptr(fd), path)
	var root, above unix.Stat_t
	if err = unix.Fstat(fd, &root); err == nil {
		err = unix.Fstatat(fd, "..", &above, 0)
	}
	if err == nil && root.Dev == above.Dev {
		err = fault.New(fault.NotFound, "", "nothing is mounted at %s", path)
	}
	if err != nil {
		fs.Close()
		return nil, err
	}
	return fs, nil
}

// thaw fails with EINVAL if the file system is not frozen.
func thaw(fs *os.File) error { return ioctl(fs, ioctlThaw) }

func ioctl(f *os.File, request uint) error {
	for {
		if err := unix.IoctlSetInt(int(f.Fd()), request, 0); err != unix.EINTR {
			return err
		}
	}
}

// monotonic is CLOCK_MONOTONIC in nanoseconds, which is the same for all processes of a machine.
func monotonic() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		panic(err) // it cannot fail with a clock that exists
	}
	return t.Nano()
}
