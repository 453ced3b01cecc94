package fuse

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/sys"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// notify writes a message with unique 0, whose error field is the notification's code.
func notify(dev *os.File, code int32, body []byte) error {
	b := make([]byte, outHeader, outHeader+len(body))
	native.PutUint32(b[0:], uint32(outHeader+len(body)))
	native.PutUint32(b[4:], uint32(code))
	b = append(b, body...)
	fd, err := sys.Fd(dev)
	if err != nil {
		return err
	}
	_, err = unix.Write(fd, b)
	return os.NewSyscallError("write /dev/fuse", err)
}

// NotifyInvalInode makes the kernel ask for the disk's size again. Call it after the size changed and before the block
// device is told (LOOP_SET_CAPACITY).
func NotifyInvalInode(dev *os.File) error {
	body := make([]byte, 24) // struct fuse_notify_inval_inode_out
	native.PutUint64(body[0:], diskNode)
	native.PutUint64(body[8:], ^uint64(0)) // off < 0: attributes only
	err := notify(dev, notifyInvalInode, body)
	if errors.Is(err, unix.ENOENT) { // the kernel has not looked the file up: it knows no size
		return nil
	}
	return err
}

// Resend makes the kernel send again every request that was read and not answered. Only for a server whose predecessor
// is certainly dead, before it reads its first request. Kinds: Unsupported (Linux before 6.9).
func Resend(dev *os.File) error {
	err := notify(dev, notifyResend, nil)
	if errors.Is(err, unix.EINVAL) {
		return noResend()
	}
	return err
}

// wakeReader makes one blocked reader return: the kernel answers FUSE_NOTIFY_RETRIEVE (here: no bytes of the
// disk's page cache) with a NOTIFY_REPLY message, which wants no answer and which a successor that finds it skips. A signal
// would not do, the Go runtime installs its handlers with SA_RESTART; neither would O_NONBLOCK, which belongs to the
// description and so to every holder. Before INIT is answered the kernel lets it wait; before the file was looked up it is
// ENOENT.
func wakeReader(dev *os.File) error {
	body := make([]byte, 40) // struct fuse_notify_retrieve_out: unique, node, offset, size
	native.PutUint64(body[8:], diskNode)
	return notify(dev, notifyRetrieve, body[:retrieveOut])
}

func noResend() error {
	return fault.New(fault.Unsupported, "use Linux 6.9 or newer", "this kernel's FUSE cannot resend requests "+
		"(FUSE_HAS_RESEND), so a disk would hang when its worker dies")
}
