package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Machine is where the numbers are from, in general words.
func machine(dir string) (string, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return "", err
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return "", err
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return "", err
	}
	sync, err := syncTime(dir)
	if err != nil {
		return "", err
	}
	memory := float64(info.Totalram) * float64(info.Unit) / (1 << 30)
	busy := float64(info.Loads[0]) / (1 << 16) // sysinfo(2): fixed point
	return fmt.Sprintf("%d CPUs, %.0f GiB of memory, Linux %s, %s; a 4 KiB write with its fdatasync takes %s there (median); load average %.1f before the run",
		runtime.NumCPU(), memory, release(unix.ByteSliceToString(uts.Release[:])), fsName(int64(fs.Type)), duration(sync), busy), nil
}

// Release is the version without what a distributor appended.
func release(s string) string {
	parts := strings.SplitN(s, ".", 3)
	if len(parts) < 2 {
		return s
	}
	minor := strings.TrimRightFunc(parts[1], func(r rune) bool { return r < '0' || r > '9' })
	return parts[0] + "." + minor
}

func fsName(magic int64) string {
	switch magic {
	case unix.EXT4_SUPER_MAGIC:
		return "ext4"
	case unix.XFS_SUPER_MAGIC:
		return "xfs"
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs"
	case unix.TMPFS_MAGIC:
		return "tmpfs"
	case unix.NFS_SUPER_MAGIC:
		return "nfs"
	}
	return fmt.Sprintf("a file system of type %#x", magic)
}

// SyncTime is the median of small durable writes: what every number with a flush in it is made of.
func syncTime(dir string) (time.Duration, error) {
	f, err := os.Create(filepath.Join(dir, "sync"))
	if err != nil {
		return 0, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := f.Write(make([]byte, 64*blockSize)); err != nil {
		return 0, err
	}
	var all []time.Duration
	for i := range 64 {
		begin := time.Now()
		if _, err := f.WriteAt(make([]byte, blockSize), int64(i)*blockSize); err != nil {
			return 0, err
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			return 0, err
		}
		all = append(all, time.Since(begin))
	}
	return median(all), nil
}
