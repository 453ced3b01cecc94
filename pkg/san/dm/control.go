package dm

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// controlPath is where the kernel has the device mapper.
const controlPath = "/dev/mapper/control"

// Control is the kernel's device mapper.
type Control struct {
	f     *os.File
	ioctl func(request uint, buf []byte) error
}

// Open opens it. Kinds: Unsupported (the kernel has none), Denied (not root).
func Open() (*Control, error) {
	f, err := os.OpenFile(controlPath, os.O_RDWR, 0)
	switch {
	case errors.Is(err, os.ErrPermission):
		return nil, fault.New(fault.Denied, "Run it as root.", "device mapper: %w", err)
	case err != nil:
		return nil, fault.New(fault.Unsupported, "Load the module dm-mod, or do without: a disk is served by its worker then.",
			"this kernel has no device mapper: %w", err)
	}
	c := &Control{f: f}
	c.ioctl = c.system
	if err := c.do(unix.DM_VERSION, header{}, nil, nil); err != nil {
		return nil, errors.Join(fault.New(fault.Unsupported, "", "device mapper: %w", err), f.Close())
	}
	return c, nil
}

// Close closes the control device; devices stay.
func (c *Control) Close() error { return c.f.Close() }

func (c *Control) system(request uint, buf []byte) error {
	for {
		_, _, e := unix.Syscall(unix.SYS_IOCTL, c.f.Fd(), uintptr(request), uintptr(unsafe.Pointer(&buf[0]))) //nolint:gosec // ioctl(2)
		switch e {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return e
		}
	}
}

// header is what a request says besides its table.
type header struct {
	name, uuid string
	flags      uint32
}

const (
	headerSize = int(unsafe.Sizeof(unix.DmIoctl{}))
	targetSize = int(unsafe.Sizeof(unix.DmTargetSpec{}))
	// maxTable bounds a table in bytes: what the kernel would allocate for it.
	maxTable = 64 << 20
)

// do makes one request. reply, if not nil, gets the header that came back.
func (c *Control) do(request uint, h header, table []Target, reply *unix.DmIoctl) error {
	buf, err := encode(h, table)
	if err != nil {
		return err
	}
	err = c.ioctl(request, buf)
	if reply != nil {
		*reply = *(*unix.DmIoctl)(unsafe.Pointer(&buf[0])) //nolint:gosec // the kernel's struct, of which buf is one
	}
	return err
}

// encode makes the kernel's struct dm_ioctl with the targets behind it.
func encode(h header, table []Target) ([]byte, error) {
	size := headerSize
	for _, t := range table {
		size += targetLen(t)
	}
	if size > maxTable {
		return nil, fault.New(fault.Exhausted, "Use the worker's mapper.", "a table of %d bytes is too long for the kernel", size)
	}
	size = max(size, headerSize+1024) // room for what the kernel answers
	words := make([]uint64, (size+7)/8)
	buf := unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), 8*len(words)) //nolint:gosec // aligned bytes
	d := (*unix.DmIoctl)(unsafe.Pointer(&words[0]))                       //nolint:gosec // the kernel's struct
	d.Version = [3]uint32{4, 0, 0}
	d.Data_size, d.Data_start = uint32(len(buf)), uint32(headerSize) //nolint:gosec // bounded above
	d.Target_count = uint32(len(table))                              //nolint:gosec // bounded above
	d.Flags = h.flags
	if len(h.name) >= len(d.Name) || len(h.uuid) >= len(d.Uuid) {
		return nil, fault.New(fault.Invalid, "", "the name %q or uuid %q is too long for a device", h.name, h.uuid)
	}
	copy(d.Name[:], h.name)
	copy(d.Uuid[:], h.uuid)
	at := headerSize
	for _, t := range table {
		s := (*unix.DmTargetSpec)(unsafe.Pointer(&buf[at])) //nolint:gosec // 8-aligned: headerSize and targetLen are multiples of 8
		s.Sector_start, s.Length = uint64(t.Start/sector), uint64(t.Len/sector)
		s.Next = uint32(targetLen(t)) //nolint:gosec // bounded above
		copy(s.Target_type[:], t.Kind)
		copy(buf[at+targetSize:], t.Params)
		at += targetLen(t)
	}
	return buf, nil
}

// targetLen is that of a target with its parameters, which end with a zero byte, in whole words.
func targetLen(t Target) int { return targetSize + (len(t.Params)+1+7)/8*8 }

// Device is a device of the device mapper.
type Device struct {
	c        *Control
	name     string
	size     int64
	readOnly bool
	number   Number
}

// Create makes a device and starts it. Something of the same name that has no table, from a process that died, is removed first. Kinds:
// Exists (a device of that name), Invalid (the table, or the kernel refuses it), Exhausted.
func (c *Control) Create(name, uuid string, readOnly bool, table []Target) (*Device, error) {
	d := &Device{c: c, name: name, size: sizeOf(table), readOnly: readOnly}
	if d.size == 0 {
		return nil, fault.New(fault.Invalid, "", "device %s has an empty table", name)
	}
	if err := c.clear(name); err != nil {
		return nil, err
	}
	var made unix.DmIoctl
	if err := c.do(unix.DM_DEV_CREATE, header{name: name, uuid: uuid}, nil, &made); err != nil {
		if errors.Is(err, unix.EBUSY) {
			return nil, fault.New(fault.Exists, "Remove it, or use another name.", "device %s, or one with uuid %s, exists", name, uuid)
		}
		return nil, d.failed("create", err)
	}
	d.number = Number{unix.Major(made.Dev), unix.Minor(made.Dev)}
	if err := d.load(table, 0); err != nil {
		return nil, errors.Join(err, d.Remove())
	}
	return d, nil
}

// clear removes what a Create that died left.
func (c *Control) clear(name string) error {
	var st unix.DmIoctl
	err := c.do(unix.DM_DEV_STATUS, header{name: name}, nil, &st)
	if errors.Is(err, unix.ENXIO) || err == nil && st.Target_count > 0 {
		return nil
	}
	if err == nil {
		err = c.do(unix.DM_DEV_REMOVE, header{name: name}, nil, nil)
	}
	return fault.Wrap(err, "device %s", name)
}

// load makes table the device's: requests are held meanwhile.
func (d *Device) load(table []Target, suspend uint32) error {
	var flags uint32
	if d.readOnly {
		flags = unix.DM_READONLY_FLAG
	}
	if err := d.c.do(unix.DM_TABLE_LOAD, header{name: d.name, flags: flags}, table, nil); err != nil {
		return d.failed("load the table of", err)
	}
	if suspend != 0 {
		if err := d.c.do(unix.DM_DEV_SUSPEND, header{name: d.name, flags: suspend}, nil, nil); err != nil {
			return d.failed("suspend", err)
		}
	}
	if err := d.c.do(unix.DM_DEV_SUSPEND, header{name: d.name}, nil, nil); err != nil {
		return d.failed("resume", err)
	}
	return nil
}

func (d *Device) failed(what string, err error) error {
	kind := fault.Internal
	switch {
	case errors.Is(err, unix.EINVAL):
		kind = fault.Invalid
	case errors.Is(err, unix.ENOMEM):
		kind = fault.Exhausted
	case errors.Is(err, unix.ENXIO):
		kind = fault.NotFound
	}
	return fault.New(kind, "Look into the kernel's log; a disk with holes needs the module dm-zero.", "%s device %s: %w", what, d.name, err)
}

// Replace changes the table. Requests wait meanwhile; those under way end first, and a file system on the device is flushed.
func (d *Device) Replace(table []Target) error {
	if sizeOf(table) != d.size {
		return fault.New(fault.Invalid, "", "device %s has %d bytes, the new table has %d", d.name, d.size, sizeOf(table))
	}
	return d.load(table, unix.DM_SUSPEND_FLAG)
}

// Fail makes every request fail from now on. It flushes nothing and does not wait for the file system.
func (d *Device) Fail() error {
	return d.load(errorTable(d.size), unix.DM_SUSPEND_FLAG|unix.DM_NOFLUSH_FLAG|unix.DM_SKIP_LOCKFS_FLAG)
}

// Remove removes the device. Kinds: InUse (somebody has it open).
func (d *Device) Remove() error {
	err := d.c.do(unix.DM_DEV_REMOVE, header{name: d.name}, nil, nil)
	switch {
	case errors.Is(err, unix.EBUSY):
		return fault.New(fault.InUse, "Unmount it first.", "device %s is open", d.name)
	case errors.Is(err, unix.ENXIO):
		return nil
	}
	return fault.Wrap(err, "remove device %s", d.name)
}

// Number is the device's.
func (d *Device) Number() Number { return d.number }

// Path is where the kernel's devtmpfs has it.
func (d *Device) Path() string { return filepath.Join("/dev", fmt.Sprintf("dm-%d", d.number.Minor)) }

// Table is what the kernel has loaded, a line for each target as dmsetup prints it.
func (d *Device) Table() ([]string, error) {
	buf, err := encode(header{name: d.name, flags: unix.DM_STATUS_TABLE_FLAG}, nil)
	if err != nil {
		return nil, err
	}
	big := make([]uint64, (1<<20)/8)
	room := unsafe.Slice((*byte)(unsafe.Pointer(&big[0])), 1<<20) //nolint:gosec // aligned bytes
	copy(room, buf[:headerSize])
	h := (*unix.DmIoctl)(unsafe.Pointer(&big[0])) //nolint:gosec // the kernel's struct
	h.Data_size = 1 << 20
	if err := d.c.ioctl(unix.DM_TABLE_STATUS, room); err != nil {
		return nil, d.failed("read the table of", err)
	}
	var lines []string
	at := int(h.Data_start)
	for range h.Target_count {
		if at < headerSize || at+targetSize > len(room) {
			return nil, fault.New(fault.Internal, "", "the kernel's answer about device %s is too long", d.name)
		}
		s := (*unix.DmTargetSpec)(unsafe.Pointer(&room[at])) //nolint:gosec // bounded above
		kind, _, _ := bytes.Cut(s.Target_type[:], []byte{0})
		params, _, _ := bytes.Cut(room[at+targetSize:], []byte{0})
		lines = append(lines, fmt.Sprintf("%d %d %s %s", s.Sector_start, s.Length, kind, params))
		at = int(h.Data_start) + int(s.Next)
	}
	return lines, nil
}
