package node

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// The kernel mounts one btrfs of an fsid at a time (fs/btrfs/volumes.c, device_list_add), so a copy needs an fsid of its own
// before it is mounted beside its source. The superblock has two for that (feature METADATA_UUID, Linux 5.0): the blocks keep
// the old one, which the superblock then names as metadata_uuid.
//
// btrfstune -m does the same and commits a transaction for it. That makes the log tree of a file system that was not
// unmounted unreadable (its blocks must have the superblock's generation plus one; seen with btrfs-progs 6.2: "parent transid
// verify failed"), and with it what was written by fsync since the last commit. Hence the superblock alone is changed here.
//
// Offsets: fs/btrfs/accessors.h and include/uapi/linux/btrfs_tree.h, struct btrfs_super_block; copies at 64 KiB, 64 MiB and
// 256 GiB (BTRFS_SUPER_INFO_OFFSET, btrfs_sb_offset).
const (
	btrfsSuperSize    = 4096
	btrfsCsumSize     = 32
	btrfsFSID         = 0x20
	btrfsBytenr       = 0x30
	btrfsMagic        = 0x40
	btrfsIncompat     = 0xbc
	btrfsCsumType     = 0xc4
	btrfsMetadataUUID = 0x23b

	btrfsMetadataUUIDFlag = 1 << 10
)

var btrfsSupers = []int64{64 << 10, 64 << 20, 256 << 30}

// ownFSID is the fsid of the copy that a disk holds: the same each time that the disk is staged, wherever. (RFC 9562, version 8.)
func ownFSID(diskUUID string) (id [16]byte) {
	sum := sha256.Sum256([]byte("vmdk-csi btrfs fsid\x00" + diskUUID))
	copy(id[:], sum[:])
	id[6], id[8] = id[6]&0x0f|0x80, id[8]&0x3f|0x80
	return id
}

func randomFSID() (id [16]byte) {
	_, _ = rand.Read(id[:]) // never fails
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	return id
}

func uuidText(id [16]byte) string {
	s := hex.EncodeToString(id[:])
	return fmt.Sprintf("%s-%s-%s-%s-%s", s[:8], s[8:12], s[12:16], s[16:20], s[20:])
}

// btrfsMounted says whether this kernel has a btrfs of that fsid open.
func btrfsMounted(id [16]byte) bool {
	_, err := os.Stat(filepath.Join("/sys/fs/btrfs", uuidText(id)))
	return err == nil
}

// ensureBtrfsIdentity gives the file system an fsid of its own if it holds a copy, or is beside its like.
func ensureBtrfsIdentity(device string, p Preparation) error {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	sb, err := readBtrfsSuper(f, btrfsSupers[0])
	if err == nil {
		have, want := [16]byte(sb[btrfsFSID:]), ownFSID(p.DiskUUID)
		taken := btrfsMounted(have)
		switch {
		case !p.Copy && !taken, have == want && !taken:
			return f.Close()
		case !p.Copy || btrfsMounted(want): // one disk read twice by this kernel
			want = randomFSID()
		}
		err = setBtrfsFSID(f, want)
	}
	return errors.Join(fault.Wrap(err, "give the btrfs on %s an fsid of its own", device), f.Close())
}

func readBtrfsSuper(f io.ReaderAt, at int64) ([]byte, error) {
	sb := make([]byte, btrfsSuperSize)
	if _, err := f.ReadAt(sb, at); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	if string(sb[btrfsMagic:btrfsMagic+8]) != "_BHRfS_M" || le.Uint64(sb[btrfsBytenr:]) != uint64(at) {
		return nil, fault.New(fault.Damaged, "", "there is no superblock at %d", at)
	}
	return sb, nil
}

// setBtrfsFSID:
//
//  1. write the copies of the superblock       died after: the first one decides, and has the old fsid
//  2. fsync; write the first; fsync            died after: done
//
// A copy that is not there, or damaged, is left alone: the kernel writes all of them with its next commit.
func setBtrfsFSID(f *os.File, id [16]byte) error {
	for _, at := range append(btrfsSupers[1:len(btrfsSupers):len(btrfsSupers)], btrfsSupers[0]) {
		sb, err := readBtrfsSuper(f, at)
		if err != nil && at != btrfsSupers[0] {
			continue
		}
		if err == nil {
			err = changeBtrfsFSID(sb, id)
		}
		if err == nil && at == btrfsSupers[0] {
			err = f.Sync()
		}
		if err == nil {
			_, err = f.WriteAt(sb, at)
		}
		if err != nil {
			return err
		}
	}
	return f.Sync()
}

func changeBtrfsFSID(sb []byte, id [16]byte) error {
	le := binary.LittleEndian
	if flags := le.Uint64(sb[btrfsIncompat:]); flags&btrfsMetadataUUIDFlag == 0 {
		copy(sb[btrfsMetadataUUID:], sb[btrfsFSID:btrfsFSID+16])
		le.PutUint64(sb[btrfsIncompat:], flags|btrfsMetadataUUIDFlag)
	}
	copy(sb[btrfsFSID:], id[:])
	clear(sb[:btrfsCsumSize])
	switch kind := le.Uint16(sb[btrfsCsumType:]); kind {
	case 0:
		le.PutUint32(sb, crc32.Checksum(sb[btrfsCsumSize:], crc32.MakeTable(crc32.Castagnoli)))
	case 2:
		sum := sha256.Sum256(sb[btrfsCsumSize:])
		copy(sb, sum[:])
	default:
		return fault.New(fault.Unsupported, "make it with crc32c or sha256 (mkfs.btrfs --csum), or use the copy where its source is not mounted",
			"its checksums are of kind %d", kind)
	}
	return nil
}

// btrfsLeast is the smallest size that the kernel lets a btrfs have by growing, also the one that it has already
// (fs/btrfs/ioctl.c, btrfs_ioctl_resize).
const btrfsLeast = 256 << 20

// growBtrfs grows a mounted btrfs that is smaller than its device.
func growBtrfs(ctx context.Context, device, mountpoint string) error {
	f, err := os.Open(device)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	var st unix.Statfs_t
	if err == nil {
		err = unix.Statfs(mountpoint, &st)
	}
	switch {
	case err != nil || size-int64(st.Blocks)*st.Bsize < 1<<20:
	case size < btrfsLeast:
		return fault.New(fault.Precondition, "expand the volume to 256 MiB or more", "the kernel grows no btrfs to less than 256 MiB")
	default:
		_, err = run(ctx, "btrfs", "filesystem", "resize", "max", mountpoint)
	}
	return fault.Wrap(err, "grow the file system at %s", mountpoint)
}
