package loop

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// sysBlock is where the kernel shows block devices.
const sysBlock = "/sys/block"

// Attached is a loop device as sysfs shows it.
type Attached struct {
	Number    int
	Path      string // /dev/loopN
	Backing   string // path of the backing file where it was opened; "/NAME" for the file NAME of a detached mount
	ReadOnly  bool
	AutoClear bool
	Offset    int64 // bytes
	Size      int64 // bytes
}

// List is every attached loop device of the machine, by number. It never waits for the server of a backing file.
func List() ([]Attached, error) {
	dirs, err := filepath.Glob(sysBlock + "/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	var all []Attached
	for _, p := range dirs {
		n, ok := numberOf("/dev/" + filepath.Base(filepath.Dir(filepath.Dir(p))))
		if !ok {
			continue
		}
		backing, attached, err := backingOf(n)
		if err != nil {
			return nil, err
		}
		if !attached { // since the directory was read
			continue
		}
		a := Attached{Number: n, Path: devicePath(n), Backing: backing}
		a.AutoClear = attribute(n, "loop/autoclear") == 1
		a.ReadOnly = attribute(n, "ro") == 1
		a.Offset = attribute(n, "loop/offset")
		a.Size = attribute(n, "size") * 512
		all = append(all, a)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].Number < all[j].Number })
	return all, nil
}

// FindByName finds the loop devices over the file name of a detached mount: after a restart that is how a disk's device
// is found again. More than one is possible (partitions as devices of their own).
func FindByName(name string) ([]Attached, error) {
	all, err := List()
	if err != nil {
		return nil, err
	}
	var found []Attached
	for _, a := range all {
		if a.Backing == "/"+name {
			found = append(found, a)
		}
	}
	return found, nil
}

// WaitReleased waits until loop device n shows another file than backing, or none. Kinds: Timeout (still in use).
func WaitReleased(ctx context.Context, n int, backing string) error {
	t := time.NewTicker(pollEvery)
	defer t.Stop()
	for {
		b, attached, err := backingOf(n)
		if err != nil {
			return err
		}
		if !attached || b != backing {
			return nil
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return fault.New(fault.Timeout, "find who still has it open or mounted (fuser, another mount namespace)",
				"%s still shows %s: %w", devicePath(n), backing, context.Cause(ctx))
		}
	}
}

func numberOf(path string) (int, bool) {
	s, ok := strings.CutPrefix(path, "/dev/loop")
	if !ok {
		return 0, false
	}
	n, err := strconv.Atoi(s)
	return n, err == nil && n >= 0
}

// backingOf reads the backing file's path. The directory loop/ exists while the device is attached; a read that races
// with the detach fails with ENODEV or ENXIO.
func backingOf(n int) (string, bool, error) {
	b, err := os.ReadFile(fmt.Sprintf("%s/loop%d/loop/backing_file", sysBlock, n))
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.ENXIO):
		return "", false, nil
	case err != nil:
		return "", false, fault.Wrap(err, "look at loop%d", n)
	}
	s := strings.TrimSuffix(string(b), "\n")
	return s, s != "", nil
}

// attribute reads a number of a device; one that is going away counts as 0.
func attribute(n int, name string) int64 {
	b, err := os.ReadFile(fmt.Sprintf("%s/loop%d/%s", sysBlock, n, name))
	if err != nil {
		return 0
	}
	v, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0
	}
	return v
}

func deviceNumber(n int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("%s/loop%d/dev", sysBlock, n))
	if err != nil {
		return 0, err
	}
	major, minor, ok := strings.Cut(strings.TrimSpace(string(b)), ":")
	ma, err1 := strconv.ParseUint(major, 10, 32)
	mi, err2 := strconv.ParseUint(minor, 10, 32)
	if !ok || err1 != nil || err2 != nil {
		return 0, fault.New(fault.Internal, "", "device number %q of loop%d", b, n)
	}
	return unix.Mkdev(uint32(ma), uint32(mi)), nil
}
