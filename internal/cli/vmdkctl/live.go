package vmdkctl

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
)

// Bytes whose lock means that somebody writes the file: qemu's permission bytes for write and resize
// (qemu block/file-posix.c, RAW_LOCK_PERM_BASE 100), which this module takes too.
const (
	qemuWriteByte  = 101
	qemuResizeByte = 103
)

// Writers reads which files of this machine are locked by somebody who writes them. It looks at /proc/locks
// (proc_locks(5)) instead of trying a lock: the shortest lock of an onlooker can make an attach fail.
func writers() (map[string]bool, error) {
	text, err := os.ReadFile("/proc/locks")
	if err != nil {
		return nil, err
	}
	return parseLocks(text), nil
}

// parseLocks picks the files with a writer's lock, by lockKey.
//
//	1: OFDLCK ADVISORY  READ -1 fe:01:12345 101 101
func parseLocks(text []byte) map[string]bool {
	found := map[string]bool{}
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		f := strings.Fields(s.Text())
		// A waiting lock has "->" as its second field and is no lock.
		if len(f) < 8 || f[1] == "->" || f[1] == "FLOCK" || f[1] == "LEASE" {
			continue
		}
		from, err := strconv.ParseInt(f[6], 10, 64)
		if err != nil {
			continue
		}
		to := int64(1) << 62 // "EOF"
		if n, err := strconv.ParseInt(f[7], 10, 64); err == nil {
			to = n
		}
		for _, b := range []int64{qemuWriteByte, qemuResizeByte} {
			if from <= b && b <= to {
				found[f[5]] = true
			}
		}
	}
	return found
}

// lockKey is how /proc/locks names a file.
func lockKey(i fsx.Info) string {
	return fmt.Sprintf("%02x:%02x:%d", unix.Major(i.Device), unix.Minor(i.Device), i.Inode)
}
