package reserve

import (
	"context"
	"errors"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// The ioctls of linux/pr.h: _IOW('p', n, struct).
const (
	iocRegister     = 0x401870c8
	iocReserve      = 0x401070c9
	iocRelease      = 0x401070ca
	iocPreempt      = 0x401870cb
	iocPreemptAbort = 0x401870cc
	iocClear        = 0x401070cd
	iocReadKeys     = 0xc01070ce // Linux 6.3
	iocReadHeld     = 0x801070cf

	prExclusiveAccessRegistrantsOnly = 4 // PR_EXCLUSIVE_ACCESS_REG_ONLY
	prIgnoreKey                      = 1 // PR_FL_IGNORE_KEY
)

// Kernel keeps reservations through the kernel's SCSI or NVMe driver, on an open block device. The kernel registers every path of a
// multipath device.
type Kernel struct{ dev *os.File }

// NewKernel uses dev, which stays the caller's and must be open for writing.
func NewKernel(dev *os.File) *Kernel { return &Kernel{dev} }

var _ Unit = (*Kernel)(nil)

type prRegistration struct {
	old, new   uint64
	flags, pad uint32
}

type prReservation struct {
	key         uint64
	kind, flags uint32
}

type prPreempt struct {
	old, new    uint64
	kind, flags uint32
}

type prClear struct {
	key        uint64
	flags, pad uint32
}

type prKeys struct {
	generation, n uint32
	keys          uint64
}

type prHeld struct {
	key              uint64
	generation, kind uint32
}

// Register is IOC_PR_REGISTER; the kernel always asks the unit to keep registrations through a power loss (sd_pr_register).
func (k *Kernel) Register(_ context.Context, key Key, _ bool) error {
	a := prRegistration{new: uint64(key), flags: prIgnoreKey}
	return k.ioctl("register", iocRegister, unsafe.Pointer(&a))
}

// Reserve is IOC_PR_RESERVE.
func (k *Kernel) Reserve(_ context.Context, key Key) error {
	a := prReservation{key: uint64(key), kind: prExclusiveAccessRegistrantsOnly}
	return k.ioctl("reserve", iocReserve, unsafe.Pointer(&a))
}

// Release is IOC_PR_RELEASE.
func (k *Kernel) Release(_ context.Context, key Key) error {
	a := prReservation{key: uint64(key), kind: prExclusiveAccessRegistrantsOnly}
	return k.ioctl("release", iocRelease, unsafe.Pointer(&a))
}

// Preempt is IOC_PR_PREEMPT_ABORT, and IOC_PR_PREEMPT where the unit refuses that.
func (k *Kernel) Preempt(_ context.Context, key, victim Key) (aborted bool, err error) {
	// drivers/scsi/sd.c, sd_pr_preempt: old_key goes out as the reservation key, which is this path's own, new_key as the service action
	// key, which names the victim (SPC-4 table 236).
	a := prPreempt{old: uint64(key), new: uint64(victim), kind: prExclusiveAccessRegistrantsOnly}
	err = k.ioctl("preempt and abort", iocPreemptAbort, unsafe.Pointer(&a))
	if err == nil || errors.Is(err, fault.Fenced) {
		return err == nil, err
	}
	return false, k.ioctl("preempt", iocPreempt, unsafe.Pointer(&a))
}

// Clear is IOC_PR_CLEAR.
func (k *Kernel) Clear(_ context.Context, key Key) error {
	a := prClear{key: uint64(key)}
	return k.ioctl("clear", iocClear, unsafe.Pointer(&a))
}

// State is IOC_PR_READ_KEYS and IOC_PR_READ_RESERVATION. Kind: Unsupported (Linux before 6.3).
func (k *Kernel) State(_ context.Context) (State, error) {
	buf := make([]uint64, 1024)
	keys := prKeys{n: uint32(len(buf)), keys: uint64(uintptr(unsafe.Pointer(&buf[0])))}
	err := k.ioctl("read the keys", iocReadKeys, unsafe.Pointer(&keys))
	runtime.KeepAlive(buf)
	if err != nil {
		return State{}, err
	}
	s := State{Generation: keys.generation}
	for _, key := range buf[:min(int(keys.n), len(buf))] {
		s.Keys = append(s.Keys, Key(key))
	}
	var held prHeld
	if err := k.ioctl("read the reservation", iocReadHeld, unsafe.Pointer(&held)); err != nil {
		return State{}, err
	}
	if held.key != 0 {
		s.Held, s.Holder, s.RegistrantsOnly = true, Key(held.key), held.kind == prExclusiveAccessRegistrantsOnly
	}
	return s, nil
}

// errBadExchange is what the kernel's drivers give for a reservation conflict (BLK_STS_RESV_CONFLICT).
const errBadExchange = unix.EBADE

func (k *Kernel) ioctl(what string, request uintptr, arg unsafe.Pointer) error {
	raw, err := k.dev.SyscallConn()
	if err != nil {
		return err
	}
	var errno unix.Errno
	err = raw.Control(func(fd uintptr) {
		for {
			if _, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, request, uintptr(arg)); errno != unix.EINTR {
				return
			}
		}
	})
	switch {
	case err != nil:
		return err
	case errno == 0:
		return nil
	case errno == unix.ENOTTY, errno == unix.EOPNOTSUPP, errno == unix.EINVAL:
		return fault.New(fault.Unsupported, "Without reservations a store needs `fencing: lease-only`.",
			"persistent reservations, %s: %s has none: %w", what, k.dev.Name(), errno)
	case errno == errBadExchange:
		return fault.New(fault.Fenced, "Another host owns this logical unit's reservation; ask for a new grant.",
			"persistent reservations, %s: reservation conflict on %s: %w", what, k.dev.Name(), errno)
	}
	return fault.New(fault.KindOf(errno), "", "persistent reservations, %s: %s: %w", what, k.dev.Name(), errno)
}
