package dm

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/san"
)

// kernel is as much of the device mapper as the order and form of requests needs; test/guest has the real one.
type kernel struct {
	t       *testing.T
	devices map[string]*kernelDevice
	log     []string
	fail    map[string]error // by what log has
}

type kernelDevice struct {
	loaded, active []Target
	suspended      bool
}

func (k *kernel) ioctl(request uint, buf []byte) error {
	h := (*unix.DmIoctl)(unsafe.Pointer(&buf[0]))
	if int(h.Data_size) != len(buf) || int(h.Data_start) != headerSize {
		k.t.Errorf("%d bytes from %d in a buffer of %d", h.Data_size, h.Data_start, len(buf))
	}
	n, _, _ := bytes.Cut(h.Name[:], []byte{0})
	name := string(n)
	d := k.devices[name]
	note := func(what string) error { k.log = append(k.log, what); return k.fail[what] }
	if d == nil && request != unix.DM_DEV_CREATE {
		return unix.ENXIO
	}
	switch request {
	case unix.DM_DEV_CREATE:
		if d != nil {
			return unix.EBUSY
		}
		k.devices[name] = &kernelDevice{suspended: true}
		h.Dev = unix.Mkdev(253, 7)
		return note("create")
	case unix.DM_DEV_STATUS:
		h.Target_count = uint32(len(d.active))
	case unix.DM_DEV_REMOVE:
		delete(k.devices, name)
		return note("remove")
	case unix.DM_TABLE_LOAD:
		d.loaded = parse(k.t, buf)
		return note("load")
	case unix.DM_DEV_SUSPEND:
		if h.Flags&unix.DM_SUSPEND_FLAG != 0 {
			d.suspended = true
			if h.Flags&unix.DM_NOFLUSH_FLAG != 0 {
				return note("suspend at once")
			}
			return note("suspend")
		}
		if err := note("resume"); err != nil {
			return err
		}
		if d.loaded != nil {
			d.active, d.loaded = d.loaded, nil
		}
		d.suspended = false
	default:
		k.t.Errorf("request %#x", request)
	}
	return nil
}

// parse reads targets as the kernel does (dm-ioctl.c, next_target).
func parse(t *testing.T, buf []byte) (table []Target) {
	h := (*unix.DmIoctl)(unsafe.Pointer(&buf[0]))
	at := headerSize
	for range h.Target_count {
		if at%8 != 0 {
			t.Errorf("a target at %d", at)
		}
		s := (*unix.DmTargetSpec)(unsafe.Pointer(&buf[at]))
		kind, _, _ := bytes.Cut(s.Target_type[:], []byte{0})
		params, _, whole := bytes.Cut(buf[at+targetSize:at+int(s.Next)], []byte{0})
		if !whole {
			t.Error("parameters without an end")
		}
		table = append(table, Target{int64(s.Sector_start) * sector, int64(s.Length) * sector, string(kind), string(params)})
		at += int(s.Next)
	}
	return table
}

func newKernel(t *testing.T) (*kernel, *Control) {
	k := &kernel{t: t, devices: map[string]*kernelDevice{}, fail: map[string]error{}}
	return k, &Control{ioctl: k.ioctl}
}

func testMap(mode san.Mode) *san.Map {
	m := &san.Map{Mode: mode, Size: 3 << 20, Volume: "v", Node: "n", Lease: time.Minute, MaxIO: time.Second,
		LUNs:    []san.LUN{{Store: "00112233445566778899aabbccddeeff", Nonce: "00112233445566778899aabbccddeeff", Bytes: 64 << 20}},
		Extents: []san.Extent{{Off: 0, Len: 1 << 20, Place: 5 << 20}, {Off: 1 << 20, Len: 1 << 20, Zero: true}, {Off: 2 << 20, Len: 1 << 20, Place: 9 << 20}}}
	if mode == san.ReadWrite {
		m.Extents[1] = san.Extent{Off: 1 << 20, Len: 1 << 20, Place: 7 << 20}
	}
	m.Digest = m.Sum()
	return m
}

func TestTable(t *testing.T) {
	got, err := Table(testMap(san.ReadOnly), []Number{{8, 16}})
	want := []Target{{0, 1 << 20, "linear", "8:16 10240"}, {1 << 20, 1 << 20, "zero", ""}, {2 << 20, 1 << 20, "linear", "8:16 18432"}}
	if err != nil || !slices.Equal(got, want) {
		t.Fatalf("%v %v", got, err)
	}
	bad := testMap(san.ReadOnly)
	bad.Extents[2].Place++
	if _, err := Table(bad, []Number{{8, 16}}); !errors.Is(err, fault.Invalid) {
		t.Errorf("a map whose digest is wrong: %v", err)
	}
	if _, err := Table(testMap(san.ReadOnly), nil); !errors.Is(err, fault.Invalid) {
		t.Errorf("a LUN that is not there: %v", err)
	}
}

// TestLife: tables swap by load, suspend and resume; errors come without a flush; what a process left that died is replaced.
func TestLife(t *testing.T) {
	k, c := newKernel(t)
	k.devices["v"] = &kernelDevice{} // without a table
	table, err := Table(testMap(san.ReadWrite), []Number{{8, 16}})
	if err != nil {
		t.Fatal(err)
	}
	d, err := c.Create("v", "vmdk-csi-v", false, table)
	if err != nil {
		t.Fatal(err)
	}
	if d.Path() != "/dev/dm-7" || !slices.Equal(k.devices["v"].active, table) {
		t.Errorf("%s: %v", d.Path(), k.devices["v"].active)
	}
	if _, err := c.Create("v", "", false, table); !errors.Is(err, fault.Exists) {
		t.Errorf("the same again: %v", err)
	}
	next := []Target{{0, 3 << 20, "linear", "7:0 0"}}
	if err := d.Replace(next); err != nil || !slices.Equal(k.devices["v"].active, next) {
		t.Errorf("%v: %v", err, k.devices["v"].active)
	}
	if err := d.Replace(next[:0]); !errors.Is(err, fault.Invalid) {
		t.Errorf("another size: %v", err)
	}
	if err := d.Fail(); err != nil || k.devices["v"].active[0].Kind != "error" {
		t.Errorf("%v: %v", err, k.devices["v"].active)
	}
	if err := errors.Join(d.Remove(), d.Remove()); err != nil {
		t.Error(err)
	}
	want := []string{"remove", "create", "load", "resume", "load", "suspend", "resume", "load", "suspend at once", "resume", "remove"}
	if !slices.Equal(k.log, want) {
		t.Errorf("%v", k.log)
	}
}

// TestRefusedTable: a table that the kernel refuses leaves no device.
func TestRefusedTable(t *testing.T) {
	k, c := newKernel(t)
	k.fail["load"] = unix.EINVAL
	if _, err := c.Create("v", "", true, []Target{{0, 1 << 20, "linear", "99:99 0"}}); !errors.Is(err, fault.Invalid) || len(k.devices) > 0 {
		t.Errorf("%v, %d devices", err, len(k.devices))
	}
	if _, err := c.Create("v", "", true, nil); !errors.Is(err, fault.Invalid) {
		t.Errorf("an empty table: %v", err)
	}
}

func TestKernelWithout(t *testing.T) {
	if _, err := os.Stat(controlPath); err == nil {
		t.Skip("this kernel has a device mapper; test/guest uses it")
	}
	if _, err := Open(); !errors.Is(err, fault.Unsupported) {
		t.Errorf("%v, want Unsupported", err)
	}
}

func TestNumberOf(t *testing.T) {
	if _, err := NumberOf(t.TempDir()); !errors.Is(err, fault.Unsupported) {
		t.Errorf("a directory: %v", err)
	}
	if _, err := NumberOf("/nonexistent"); err == nil {
		t.Error("a path that leads nowhere")
	}
}
