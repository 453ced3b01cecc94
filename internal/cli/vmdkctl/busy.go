package vmdkctl

import (
	"bufio"
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/sys"
	"github.com/vmdk-csi/vmdk-csi/pkg/export/loop"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// DeviceClaimed says who claimed a block device: a mount in whatever namespace, LVM, swap. nil: nobody. Kinds: InUse.
//
// Who merely has it open is not looked for in /proc/*/fd: such a look waits, unkillably, for any process on the machine
// that is stuck in execve(2). Unbind finds out by itself.
func deviceClaimed(path string) error {
	// open(2): O_EXCL on a block device fails with EBUSY if the system uses it; its partitions count.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.EBUSY):
		if at := mountPoints(path); len(at) > 0 {
			return fault.New(fault.InUse, "Unmount it: `umount "+strings.Join(at, " ")+"`.", "%s is mounted at %s", path, strings.Join(at, " and "))
		}
		return fault.New(fault.InUse, "`lsblk "+path+"` shows who; a mount may be in another mount namespace.", "%s is in use by the system", path)
	case err != nil:
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	_ = unix.Close(fd)
	return nil
}

// Unbind detaches dev, which only this process may have open. Kinds: InUse (somebody else has it open; nothing changed).
//
// LOOP_CLR_FD never refuses (drivers/block/loop.c, loop_clr_fd): it sets autoclear, and of a sole opener's device it begins
// the end at once. LOOP_SET_STATUS64 tells which: it fails with ENXIO on a device that is ending; else it takes autoclear
// off again, so that the device stays when the others close it.
func unbind(dev *loop.Device, readOnly bool) error {
	fd, err := sys.Fd(dev.File)
	if err != nil {
		return err
	}
	if err := unix.IoctlSetInt(fd, unix.LOOP_CLR_FD, 0); err != nil {
		if errors.Is(err, unix.ENXIO) {
			return nil // detached meanwhile
		}
		return fault.Wrap(os.NewSyscallError("LOOP_CLR_FD", err), "detach %s", dev.Path())
	}
	info := unix.LoopInfo64{Flags: unix.LO_FLAGS_PARTSCAN | unix.LO_FLAGS_DIRECT_IO}
	if readOnly {
		info.Flags |= unix.LO_FLAGS_READ_ONLY
	}
	switch err := unix.IoctlLoopSetStatus64(fd, &info); {
	case errors.Is(err, unix.ENXIO):
		return nil
	case err != nil:
		return fault.Wrap(os.NewSyscallError("LOOP_SET_STATUS64", err), "detach %s", dev.Path())
	}
	return fault.New(fault.InUse, "`fuser -v "+dev.Path()+"` shows which; end it, or wait for it.", "%s is open in another process", dev.Path())
}

// MountPoints are the places where a device or a partition of it is mounted, in this mount namespace.
func mountPoints(device string) []string {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	defer f.Close()
	var at []string
	for s := bufio.NewScanner(f); s.Scan(); {
		// proc_pid_mountinfo(5): id parent major:minor root mountpoint options [tags] - type source options
		before, after, ok := strings.Cut(s.Text(), " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !ok || len(left) < 5 || len(right) < 2 {
			continue
		}
		if rest, ok := strings.CutPrefix(right[1], device); ok && strings.Trim(rest, "p0123456789") == "" && (rest == "" || rest[0] == 'p') {
			at = append(at, unescape(left[4]))
		}
	}
	return at
}

// Unescape undoes the octal escapes of blanks in mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
