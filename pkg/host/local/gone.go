package local

import (
	"errors"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/sys"
)

// FuseGone says whether the connection of a /dev/fuse descriptor is aborted: poll(2) then reports POLLERR, whatever events
// were asked for (Linux fs/fuse/dev.c, fuse_dev_poll). As long as the kernel can send a request there are none.
func FuseGone(dev *os.File, wait time.Duration) (bool, error) {
	fd, err := sys.Fd(dev)
	if err != nil {
		return false, err
	}
	defer runtime.KeepAlive(dev)
	for end := time.Now().Add(wait); ; {
		p := []unix.PollFd{{Fd: int32(fd)}}
		n, err := unix.Poll(p, max(0, int(time.Until(end).Milliseconds())))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return n > 0 && p[0].Revents&(unix.POLLERR|unix.POLLHUP) != 0, err
	}
}
