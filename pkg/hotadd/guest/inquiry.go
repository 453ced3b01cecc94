package guest

import (
	"encoding/hex"
	"errors"
	"os"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// serialOf reads a unit serial number page (SPC-4 section 7.8.15): four bytes of header with the length, then text.
func serialOf(page []byte) string {
	if len(page) < 4 || page[1] != 0x80 {
		return ""
	}
	n := int(page[2])<<8 | int(page[3])
	return strings.ToLower(strings.Trim(string(page[4:min(len(page), 4+n)]), " \x00"))
}

// nameOf reads the disk's 128-bit name from a device identification page (SPC-4 section 7.8.6): designators of binary
// code set and type NAA, 16 bytes long, of the logical unit.
func nameOf(page []byte) string {
	if len(page) < 4 || page[1] != 0x83 {
		return ""
	}
	rest := page[4:min(len(page), 4+int(page[2])<<8+int(page[3]))]
	for len(rest) >= 4 {
		n := 4 + int(rest[3])
		if n > len(rest) {
			break
		}
		const binary, naa = 1, 3
		if rest[0]&0xf == binary && rest[1]&0x3f == naa && n == 4+16 {
			return hex.EncodeToString(rest[4:n])
		}
		rest = rest[n:]
	}
	return ""
}

func (k Kernel) ask(path string) (string, error) {
	if k.Ask != nil {
		return k.Ask(path)
	}
	return inquire(path)
}

// include/scsi/sg.h
const (
	sgIO          = 0x2285
	sgFromDevice  = -3
	inquiryMillis = 10_000
)

type sgHeader struct {
	interfaceID    int32
	direction      int32
	commandLength  uint8
	senseLength    uint8
	iovecCount     uint16
	dataLength     uint32
	data           unsafe.Pointer
	command        unsafe.Pointer
	sense          unsafe.Pointer
	timeout        uint32 // milliseconds
	flags          uint32
	packID         int32
	user           unsafe.Pointer
	status         uint8
	maskedStatus   uint8
	messageStatus  uint8
	senseWritten   uint8
	hostStatus     uint16
	driverStatus   uint16
	residual       int32
	duration, info uint32
}

// inquire asks the disk for page 0x80.
func inquire(path string) (string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	page, sense := make([]byte, 252), make([]byte, 32)
	command := []byte{0x12, 1, 0x80, 0, byte(len(page)), 0} // INQUIRY, EVPD (SPC-4 section 6.6)
	h := &sgHeader{interfaceID: 'S', direction: sgFromDevice, commandLength: uint8(len(command)), senseLength: uint8(len(sense)),
		dataLength: uint32(len(page)), data: unsafe.Pointer(&page[0]), command: unsafe.Pointer(&command[0]),
		sense: unsafe.Pointer(&sense[0]), timeout: inquiryMillis}
	c, err := f.SyscallConn()
	if err != nil {
		return "", err
	}
	var errno unix.Errno
	err = c.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, sgIO, uintptr(unsafe.Pointer(h)))
	})
	runtime.KeepAlive(page)
	runtime.KeepAlive(command)
	runtime.KeepAlive(sense)
	switch {
	case err != nil:
		return "", err
	case errno != 0:
		return "", os.NewSyscallError("SG_IO", errno)
	case h.status != 0 || h.hostStatus != 0 || h.driverStatus&^8 != 0: // 8: there is sense data
		return "", fault.New(fault.Unavailable, "", "%s does not answer (status %#x, host %#x, driver %#x)", path, h.status, h.hostStatus, h.driverStatus)
	}
	return serialOf(page), nil
}

// The kernel says EINVAL of a host that has no such target.
func isInvalid(err error) bool { return errors.Is(err, unix.EINVAL) }

// The kernel says ENODEV of a device that is going (drivers/scsi/scsi_sysfs.c, sdev_store_delete).
func isGone(err error) bool { return errors.Is(err, unix.ENODEV) }
