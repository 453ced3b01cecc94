package vmdkctl

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// DeviceBusy says who uses a block device: somebody who claimed it (a mount in whatever namespace, LVM, swap), or another
// process that has it open. nil: nobody. Kinds: InUse.
func deviceBusy(path string) error {
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
	if who := openers(path, os.Getpid()); len(who) > 0 {
		return fault.New(fault.InUse, "End these processes, or wait for them.", "%s is open in %s", path, strings.Join(who, ", "))
	}
	return nil
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

// Openers are the processes that have the device or a partition of it open, as far as this one may look.
func openers(device string, self int) []string {
	dirs, err := filepath.Glob("/proc/[0-9]*/fd")
	if err != nil {
		return nil
	}
	var who []string
	for _, d := range dirs {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(d)))
		if err != nil || pid == self || !hasOpen(d, device) {
			continue
		}
		comm, err := os.ReadFile(filepath.Join(filepath.Dir(d), "comm"))
		if err != nil {
			continue // ended meanwhile
		}
		who = append(who, fmt.Sprintf("process %d (%s)", pid, strings.TrimSpace(string(comm))))
	}
	return who
}

func hasOpen(fds, device string) bool {
	names, err := os.ReadDir(fds)
	if err != nil {
		return false
	}
	for _, n := range names {
		target, err := os.Readlink(filepath.Join(fds, n.Name()))
		if err != nil {
			continue
		}
		if target == device || strings.HasPrefix(target, device+"p") {
			return true
		}
	}
	return false
}
