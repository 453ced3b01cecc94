// Command sync is the sync(1) of the test images. It calls syncfs(2) on the files named, or on every mount the container
// itself sees. The plain sync(2) flushes every file system of the machine: when a single one hangs (a file system over a
// user-space device whose server is gone, say), each pod that runs sync hangs with it, and can not even be killed.
package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"syscall"
)

// diskTypes are the file systems that have something to write back.
var diskTypes = map[string]bool{
	"ext2": true, "ext3": true, "ext4": true, "xfs": true, "btrfs": true, "vfat": true, "overlay": true, "fuse": true, "fuseblk": true,
}

func main() {
	paths := operands(os.Args[1:])
	if len(paths) == 0 {
		paths = mountPoints()
	}
	status := 0
	for _, p := range paths {
		if err := syncfs(p); err != nil {
			fmt.Fprintf(os.Stderr, "sync: %s: %v\n", p, err)
			status = 1
		}
	}
	os.Exit(status)
}

// operands drops the options of coreutils' sync (-d, -f): a whole file system is more than they ask for.
func operands(args []string) []string {
	var out []string
	for _, a := range args {
		if !strings.HasPrefix(a, "-") {
			out = append(out, a)
		}
	}
	return out
}

func mountPoints() []string {
	f, err := os.Open("/proc/self/mounts")
	if err != nil {
		return nil
	}
	defer f.Close()
	var out []string
	for s := bufio.NewScanner(f); s.Scan(); {
		// Spaces in a path are written \040 (proc(5)); such a mount is passed over.
		if m := strings.Fields(s.Text()); len(m) > 2 && diskTypes[m[2]] && !strings.Contains(m[1], `\`) {
			out = append(out, m[1])
		}
	}
	return out
}

func syncfs(path string) error {
	// Not blocking: a path may be a FIFO.
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	if _, _, errno := syscall.Syscall(sysSyncfs, uintptr(fd), 0, 0); errno != 0 {
		return errno
	}
	return nil
}
