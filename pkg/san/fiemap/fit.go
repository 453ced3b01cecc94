package fiemap

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Flags of an inode (linux/fs.h) and of XFS (xfs_fs.h).
const (
	inodeImmutable   = 0x10
	inodeEncrypted   = 0x800
	inodeJournalData = 0x4000
	inodeExtents     = 0x80000
	inodeVerity      = 0x100000
	inodeInline      = 0x10000000

	xfsRealtime    = 0x1
	xfsGeoReflink  = 1 << 20
	iocXFSGeometry = 0x8100587E // XFS_IOC_FSGEOMETRY, struct xfs_fsop_geom of 256 bytes
	iocGetXattr    = 0x801C581F // FS_IOC_FSGETXATTR, struct fsxattr of 28 bytes
)

// fit refuses files and file systems of which FIEMAP does not tell all, and finds the device below: the whole one, and where on
// it the file system begins.
func fit(f *os.File, write bool) (device string, start int64, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return "", 0, fault.Wrap(err, "inspect %s", f.Name())
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return "", 0, fault.New(fault.Invalid, "", "%s is no regular file", f.Name())
	case st.Nlink != 1:
		return "", 0, notNow("Give the disk a copy of its own.", "%s has %d names", f.Name(), st.Nlink)
	case st.Size == 0 || st.Size%unit != 0:
		return "", 0, notHere("%s has %d bytes: a multiple of %d is needed", f.Name(), st.Size, unit)
	}
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		return "", 0, notHere("%s tells no flags: %w", f.Name(), err)
	}
	if flags&(inodeEncrypted|inodeVerity|inodeInline|inodeJournalData) != 0 {
		return "", 0, notHere("%s is encrypted, sealed, inline or journalled (flags %#x)", f.Name(), flags)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		return "", 0, fault.Wrap(err, "inspect the file system of %s", f.Name())
	}
	switch uint32(fs.Type) {
	case unix.EXT4_SUPER_MAGIC:
		err = fitExt4(f, flags, st.Dev)
	case unix.XFS_SUPER_MAGIC:
		err = fitXFS(f, write)
	default:
		err = notHere("the file system of %s (%#x) is neither ext4 nor XFS", f.Name(), uint32(fs.Type))
	}
	if err != nil {
		return "", 0, err
	}
	if write && flags&inodeImmutable == 0 {
		return "", 0, notNow("Set it with chattr +i before anybody else can open the file.", "%s is not immutable: its blocks could move", f.Name())
	}
	return below(fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)))
}

func fitExt4(f *os.File, flags uint32, dev uint64) error {
	if flags&inodeExtents == 0 {
		return notHere("%s is mapped by blocks, not extents", f.Name())
	}
	options, err := superOptions(dev)
	if err != nil {
		return err
	}
	for o := range strings.SplitSeq(options, ",") {
		if o == "data=journal" {
			return notHere("%s is on a file system with data=journal: the journal could be replayed over what is written to the LUN", f.Name())
		}
	}
	return nil
}

// superOptions are the options of the file system on a device. One that is mounted nowhere in sight tells nothing: refused.
func superOptions(dev uint64) (string, error) {
	m, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer m.Close()
	want := fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev))
	for lines := bufio.NewScanner(m); lines.Scan(); {
		left, right, ok := strings.Cut(lines.Text(), " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if ok && len(l) > 2 && l[2] == want && len(r) > 2 {
			return r[2], nil
		}
	}
	return "", notHere("the file system on device %s is mounted where its options cannot be seen", want)
}

func fitXFS(f *os.File, write bool) error {
	var attr [28]byte // struct fsxattr: xflags first
	if err := ioctl(f, iocGetXattr, unsafe.Pointer(&attr)); err != nil {
		return notHere("%s tells no XFS attributes: %w", f.Name(), err)
	}
	if *(*uint32)(unsafe.Pointer(&attr))&xfsRealtime != 0 {
		return notHere("%s is on the realtime device", f.Name())
	}
	var geometry [32]uint64 // flags are at byte 92
	if err := ioctl(f, iocXFSGeometry, unsafe.Pointer(&geometry)); err != nil {
		return notHere("the XFS of %s tells no geometry: %w", f.Name(), err)
	}
	if write && (*[64]uint32)(unsafe.Pointer(&geometry))[23]&xfsGeoReflink != 0 {
		return notHere("the XFS of %s has reflink: a copy would share blocks in spite of chattr +i (mkfs.xfs -m reflink=0)", f.Name())
	}
	return nil
}

func ioctl(f *os.File, request uintptr, arg unsafe.Pointer) error {
	if _, _, no := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(arg)); no != 0 {
		return no
	}
	return nil
}

// below is the whole device under a partition, and where the partition begins. What is made of several devices, or of parts
// of one (dm, md), is refused.
func below(dev string) (device string, start int64, err error) {
	dir := "/sys/dev/block/" + dev
	if _, err := os.Stat(dir); err != nil {
		return "", 0, notHere("the file system is on no block device of its own (%s)", dev)
	}
	if slaves, _ := os.ReadDir(dir + "/slaves"); len(slaves) > 0 {
		return "", 0, notHere("the file system is on device %s, which is made of others", dev)
	}
	for _, made := range []string{"dm", "md"} {
		if _, err := os.Stat(filepath.Join(dir, made)); err == nil {
			return "", 0, notHere("the file system is on device %s, which is %s", dev, made)
		}
	}
	if _, err := os.Stat(dir + "/partition"); err != nil {
		return dev, 0, nil
	}
	text, err := os.ReadFile(dir + "/start")
	if err != nil {
		return "", 0, fault.Wrap(err, "find the start of partition %s", dev)
	}
	sectors, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return "", 0, fault.Wrap(err, "find the start of partition %s", dev)
	}
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return "", 0, fault.Wrap(err, "find the device of partition %s", dev)
	}
	whole, err := os.ReadFile(filepath.Join(filepath.Dir(real), "dev"))
	return strings.TrimSpace(string(whole)), sectors * 512, fault.Wrap(err, "find the device of partition %s", dev)
}
