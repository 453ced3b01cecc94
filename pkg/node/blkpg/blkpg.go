package blkpg

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/sys"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// include/uapi/linux/blkpg.h
const (
	opAdd    = 1
	opResize = 3
	blkpg    = 0x1269 // BLKPG, _IO(0x12, 105)
)

type partition struct {
	start, length int64
	number        int32
	_             [64]byte // devname, unused
	_             [64]byte // volname, unused
	_             [4]byte
}

type argument struct {
	op, flags, size int32
	_               int32
	data            unsafe.Pointer
}

// sector is the unit of the attributes in sysfs, whatever the device's own.
const sector = 512

// Ensure makes partition 1 of the block device at path show the bytes [start, start+length) and returns its node. It can be
// repeated, and it grows a partition that is mounted. Kinds: Precondition (partition 1 starts elsewhere).
func Ensure(path string, start, length int64) (string, error) {
	disk := filepath.Base(path)
	name := disk + suffix(disk)
	dir := filepath.Join("/sys/block", disk, name)
	had, err := attribute(dir, "start")
	switch {
	case errors.Is(err, os.ErrNotExist):
		if err := tell(path, opAdd, start, length); err != nil {
			return "", fault.Wrap(err, "add a partition to %s", path)
		}
	case err != nil:
		return "", fault.Wrap(err, "look at the partition of %s", path)
	case had*sector != start:
		return "", fault.New(fault.Precondition, "detach and attach the disk", "partition 1 of %s starts at %d, not at %d", path, had*sector, start)
	default:
		if size, err := attribute(dir, "size"); err != nil || size*sector != length {
			if err := tell(path, opResize, start, length); err != nil {
				return "", fault.Wrap(err, "resize the partition of %s", path)
			}
		}
	}
	node := filepath.Join(filepath.Dir(path), name)
	return node, fault.Wrap(ensureNode(dir, node), "make %s", node)
}

// suffix of partition 1: loop0p1, and sda1 (block/partitions/core.c, add_partition).
func suffix(disk string) string {
	if disk != "" && '0' <= disk[len(disk)-1] && disk[len(disk)-1] <= '9' {
		return "p1"
	}
	return "1"
}

func tell(path string, op int32, start, length int64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	fd, err := sys.Fd(f)
	if err != nil {
		return err
	}
	p := &partition{start: start, length: length, number: 1}
	a := &argument{op: op, size: int32(unsafe.Sizeof(*p)), data: unsafe.Pointer(p)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), blkpg, uintptr(unsafe.Pointer(a)))
	runtime.KeepAlive(f)
	if errno != 0 {
		return os.NewSyscallError("BLKPG", errno)
	}
	return nil
}

func attribute(dir, name string) (int64, error) {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
}

// ensureNode makes the partition's node where devtmpfs does not, and replaces one that an earlier partition left.
func ensureNode(dir, node string) error {
	b, err := os.ReadFile(filepath.Join(dir, "dev"))
	if err != nil {
		return err
	}
	var major, minor uint32
	if _, err := fmt.Sscanf(string(b), "%d:%d", &major, &minor); err != nil {
		return err
	}
	want := unix.Mkdev(major, minor)
	var st unix.Stat_t
	err = unix.Stat(node, &st)
	if err == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && st.Rdev == want {
		return nil
	}
	if err == nil {
		if err := os.Remove(node); err != nil {
			return err
		}
	}
	if err := unix.Mknod(node, unix.S_IFBLK|0o660, int(want)); err != nil && err != unix.EEXIST {
		return os.NewSyscallError("mknod", err)
	}
	return nil
}
