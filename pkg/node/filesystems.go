package node

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	mountutils "k8s.io/mount-utils"
	utilexec "k8s.io/utils/exec"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Tools are the file system tools of the node plugin's image: blkid, e2fsprogs, xfsprogs, btrfs-progs.
type Tools struct{}

// makeArgs are conservative: what an older kernel than the image's tools cannot mount is off, and no mkfs discards: on a new
// disk there is nothing to discard, and on a thick one it would give up the space that is reserved.
//
// ext4: mke2fs(8) -E nodiscard; -m 0, no blocks for the superuser. xfs: mkfs.xfs(8) -K no discard; nrext64 needs Linux 5.19. btrfs: mkfs.btrfs(8) -K.
var makeArgs = map[string][]string{
	"ext4":  {"-F", "-q", "-m", "0", "-E", "nodiscard"},
	"btrfs": {"-f", "-q", "-K"},
	"xfs":   {"-f", "-q", "-K", "-m", "bigtime=1,inobtcount=1,reflink=1,rmapbt=0", "-i", "nrext64=0"},
}

// probed at both ends of a device that blkid finds nothing on: the places where partition tables, volume managers and
// file systems have their first words.
const probed = 1 << 20

// Probe asks blkid, and does not believe that "nothing known" means "nothing": a device is empty when its first and last
// MiB are zeros. It reads them first: blkid also says "nothing found" of a device that cannot be read.
func (Tools) Probe(device string) (string, error) {
	zero, err := endsAreZero(device)
	if err != nil {
		return "", err
	}
	format, err := (&mountutils.SafeFormatAndMount{Exec: utilexec.New()}).GetDiskFormat(device)
	switch {
	case err != nil:
		return "", fault.Wrap(err, "blkid %s", device)
	case strings.HasPrefix(format, "unknown data"), format == "" && !zero:
		return Unknown, nil
	}
	return format, nil
}

func endsAreZero(device string) (bool, error) {
	f, err := os.Open(device)
	if err != nil {
		return false, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return false, err
	}
	buf := make([]byte, min(size, probed))
	for _, off := range []int64{0, size - int64(len(buf))} {
		if _, err := f.ReadAt(buf, off); err != nil {
			return false, err
		}
		if len(bytes.Trim(buf, "\x00")) > 0 {
			return false, nil
		}
	}
	return true, nil
}

// run runs a tool and makes its output part of the error.
func run(ctx context.Context, name string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	text := strings.TrimSpace(string(out))
	if err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return text, fault.New(fault.Unsupported, "use the project's image of the node plugin, or install it", "%s: %w", name, err)
		}
		if len(text) > 1000 {
			text = "..." + text[len(text)-1000:]
		}
		return text, fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, text)
	}
	return text, nil
}

// Make makes a file system.
func (Tools) Make(ctx context.Context, device, fsType string) error {
	args, ok := makeArgs[fsType]
	if !ok {
		return fault.New(fault.Invalid, "allowed values: ext4, xfs, btrfs", "file system type %q", fsType)
	}
	_, err := run(ctx, "mkfs."+fsType, append(args[:len(args):len(args)], device)...)
	return fault.Wrap(err, "make a file system on %s", device)
}

// clearUnit divides the size of a grain and is a block of most file systems: what is zero of it may be a hole.
const clearUnit = 4096

// Clear zeroes what Probe reads. Only what is not zero is written: that much is allocated, whereas zeros over a hole of
// a thin disk need room, and what left the file system half made was perhaps a full datastore.
func (Tools) Clear(device string) error {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err == nil {
		ends := min(size, probed)
		err = errors.Join(clearRange(f, 0, ends), clearRange(f, size-ends, ends))
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func clearRange(f *os.File, start, length int64) error {
	buf := make([]byte, length)
	if _, err := f.ReadAt(buf, start); err != nil {
		return err
	}
	for off := int64(0); off < length; {
		// Units are counted from the start of the device, wherever the range begins.
		end := min(length, off+clearUnit-(start+off)%clearUnit)
		if part := buf[off:end]; len(bytes.Trim(part, "\x00")) > 0 {
			clear(part)
			if _, err := f.WriteAt(part, start+off); err != nil {
				return err
			}
		}
		off = end
	}
	return nil
}

// Prepare: ext4 is checked as before every boot (e2fsck(8) -p: only what needs no decision), which does nothing to a clean one;
// xfs and btrfs repair themselves at mount by their logs, and xfs_repair and "btrfs check --repair" are a person's decision.
// A read-only mount of ext4 replays its journal and needs no check either.
//
// A copy: ext4 does not care; xfs is mounted with nouuid; btrfs gets an fsid of its own.
//
// An ext4 that is smaller than its device grows here, unmounted, since growing it mounted needs CAP_SYS_RESOURCE
// (fs/ext4/ioctl.c, ext4_ioctl_group_add and EXT4_IOC_RESIZE_FS), which not every node plugin gets.
func (Tools) Prepare(ctx context.Context, device, fsType string, p Preparation) error {
	switch {
	case fsType == "btrfs":
		return ensureBtrfsIdentity(device, p)
	case fsType != "ext4" || p.ReadOnly:
		return nil
	}
	small, err := extSmallerThanDevice(device)
	if err != nil {
		return err
	}
	args := []string{"-p", device}
	if small {
		args = []string{"-f", "-p", device} // resize2fs(8) wants a forced check
	}
	_, err = run(ctx, "e2fsck", args...)
	var exit *exec.ExitError
	// e2fsck(8), exit code: 1, errors corrected; 2, corrected and the machine should be restarted (it is not mounted here).
	if errors.As(err, &exit) && exit.ExitCode() <= 2 {
		err = nil
	}
	if err != nil {
		return fault.New(fault.Damaged, "attach the disk elsewhere and repair it by hand: e2fsck decides nothing by itself",
			"the file system on %s has errors: %w", device, err)
	}
	if small {
		if _, err := run(ctx, "resize2fs", device); err != nil {
			return fault.Wrap(err, "grow the file system on %s", device)
		}
	}
	return nil
}

// extSmallerThanDevice compares the superblock with the device (fs/ext4/ext4.h, struct ext4_super_block: block count at
// 4 and, its upper half, 0x150; log of the block size at 24; magic at 56; incompatible features at 96, 0x80 is 64bit).
func extSmallerThanDevice(device string) (bool, error) {
	f, err := os.Open(device)
	if err != nil {
		return false, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return false, err
	}
	sb := make([]byte, 1024)
	if _, err := f.ReadAt(sb, 1024); err != nil {
		return false, err
	}
	le := binary.LittleEndian
	if le.Uint16(sb[56:]) != 0xef53 {
		return false, fault.New(fault.Damaged, "", "%s has no ext4 superblock", device)
	}
	blocks, shift := int64(le.Uint32(sb[4:])), le.Uint32(sb[24:])
	if le.Uint32(sb[96:])&0x80 != 0 {
		blocks |= int64(le.Uint32(sb[0x150:])) << 32
	}
	if shift > 6 {
		return false, fault.New(fault.Damaged, "", "%s: block size 2^%d KiB in its superblock", device, shift)
	}
	block := int64(1024) << shift
	return blocks < size/block, nil
}

// Grow grows a mounted file system.
func (Tools) Grow(ctx context.Context, device, mountpoint, fsType string) error {
	switch fsType {
	case "xfs":
		_, err := run(ctx, "xfs_growfs", "-d", mountpoint)
		return fault.Wrap(err, "grow the file system at %s", mountpoint)
	case "btrfs":
		return growBtrfs(ctx, device, mountpoint)
	}
	out, err := run(ctx, "resize2fs", device)
	if err != nil && (strings.Contains(out, "Permission denied") || strings.Contains(out, "Operation not permitted")) {
		return fault.New(fault.Precondition, "restart the pod: an unmounted ext4 grows when it is staged; or give the node plugin "+
			"CAP_SYS_RESOURCE; xfs needs neither",
			"the kernel does not let this process grow a mounted ext4 (it lacks CAP_SYS_RESOURCE): %w", err)
	}
	return fault.Wrap(err, "grow the file system at %s", mountpoint)
}
