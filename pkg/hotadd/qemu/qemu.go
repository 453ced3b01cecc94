package qemu

import (
	"context"
	"encoding/json"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/hotadd"
)

// File is where a disk lies, and how it is attached.
type File struct {
	Path     string // the VMDK descriptor, as QEMU's process sees it
	ReadOnly bool   // what the guest writes goes to a redo log that is thrown away
}

// Config says which machine's bus this is.
type Config struct {
	Socket string // of -qmp unix:PATH,server=on,wait=off
	// Buses names the SCSI buses in order of controller: the controller's id and ".0". Empty is scsi0.0 to scsi3.0.
	Buses []string
	// Targets is how many units a controller has. 0 is 16; lsi53c895a has 7.
	Targets int
	// Files finds a disk's file. It gives one disk the same answer while the disk is attached.
	Files func(context.Context, hotadd.Disk) (File, error)
	// Scratch is the directory of redo logs, which this process and QEMU's both see under this name; "" refuses read-only disks.
	Scratch string
	// Timeout bounds an operation, with the wait for the monitor and for the device's end. 0 is 30 seconds.
	Timeout time.Duration
}

// Bus is the SCSI bus of one virtual machine.
type Bus struct {
	config Config
	turn   chan struct{} // holds one token while this process talks to QEMU
}

var _ hotadd.Bus = (*Bus)(nil)

// Open checks the configuration and that QEMU answers. Nothing stays open. Kinds: Invalid, Unavailable, Timeout.
func Open(ctx context.Context, c Config) (*Bus, error) {
	if len(c.Buses) == 0 {
		c.Buses = []string{"scsi0.0", "scsi1.0", "scsi2.0", "scsi3.0"}
	}
	if c.Targets == 0 {
		c.Targets = hotadd.Units
	}
	if c.Timeout <= 0 {
		c.Timeout = 30 * time.Second
	}
	if c.Socket == "" || c.Files == nil || len(c.Buses) > hotadd.Controllers || c.Targets < 1 || c.Targets > hotadd.Units {
		return nil, fault.New(fault.Invalid, "", "the bus of a QEMU machine needs a QMP socket, the disks' files, 1 to %d buses and 1 to %d units",
			hotadd.Controllers, hotadd.Units)
	}
	b := &Bus{config: c, turn: make(chan struct{}, 1)}
	err := b.with(ctx, func(context.Context, *monitor) error { return nil })
	return b, fault.Wrap(err, "connect to QEMU at %s", c.Socket)
}

// with runs op on a connection of its own: QEMU serves one client of a monitor at a time, and another process of ours
// (a successor, vmdkctl) must get its turn.
func (b *Bus) with(ctx context.Context, op func(context.Context, *monitor) error) error {
	ctx, cancel := context.WithTimeout(ctx, b.config.Timeout)
	defer cancel()
	select {
	case b.turn <- struct{}{}:
		defer func() { <-b.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	m, err := dial(ctx, b.config.Socket)
	if err != nil {
		return typed(err)
	}
	defer m.close()
	return typed(op(ctx, m))
}

// Attach implements hotadd.Bus. Further kinds: NotFound (the file), InUse (another process has the image open), Damaged,
// Denied, Precondition (the disk is attached with another file or mode, a bus is missing), Unavailable, Timeout.
//
// The protocol, in which a machine that is killed loses all of it:
//
//  1. What an earlier attach left: a block node without a device is removed.
//  2. blockdev-add: the disk's node; the image is locked. [killed here: step 1 of the next attach, or Detach, removes it]
//  3. device_add in the lowest free slot; taken by somebody else meanwhile: the next one. [killed here: it is attached]
//
// An error in 2 or 3 undoes 2.
func (b *Bus) Attach(ctx context.Context, want hotadd.Disk) (hotadd.Slot, error) {
	if want.ID == "" {
		return hotadd.Slot{}, fault.New(fault.Invalid, "", "a disk without an id cannot be attached")
	}
	f, err := b.config.Files(ctx, want)
	if err != nil {
		return hotadd.Slot{}, fault.Wrap(err, "file of disk %s", want.ID)
	}
	var got hotadd.Slot
	err = b.with(ctx, func(ctx context.Context, m *monitor) error {
		v, err := b.look(ctx, m)
		if err != nil {
			return err
		}
		if o, ok := v.find(want.ID); ok {
			got = o.Slot
			return agrees(ctx, m, o, f)
		}
		if len(b.free(v)) == 0 { // before the image is opened
			return full()
		}
		if err := b.removeNodes(ctx, m, want.ID); err != nil {
			return err
		}
		err = b.addNodes(ctx, m, want.ID, f)
		if err == nil {
			got, err = b.addDevice(ctx, m, v, want)
		}
		if err != nil {
			// The error that counts is the first; a node that stays is removed by the next attach or detach.
			_ = b.removeNodes(ctx, m, want.ID)
		}
		return err
	})
	if err != nil {
		return hotadd.Slot{}, fault.Wrap(err, "attach disk %s (%s)", want.ID, f.Path)
	}
	return got, nil
}

func full() error {
	return fault.New(fault.Exhausted, "Detach a disk from this machine, or use another one.", "all slots of the machine's bus are taken")
}

// free is the slots that nothing was seen in, the lowest first.
func (b *Bus) free(v *inventory) (list []hotadd.Slot) {
	for c := range b.config.Buses {
		for u := range b.config.Targets {
			if s := (hotadd.Slot{Controller: c, Unit: u}); u != hotadd.ReservedUnit && !v.taken[s] {
				list = append(list, s)
			}
		}
	}
	return list
}

func (b *Bus) addDevice(ctx context.Context, m *monitor, v *inventory, d hotadd.Disk) (hotadd.Slot, error) {
	serial, wwn := Identity(d)
	for _, s := range b.free(v) {
		_, err := m.call(ctx, "device_add", map[string]any{
			"driver": "scsi-hd", "id": deviceID(d), "drive": nodeName(d.ID),
			"bus": b.config.Buses[s.Controller], "scsi-id": s.Unit, "lun": 0,
			"serial": serial, "wwn": wwn, "vendor": "VMware", "product": "Virtual disk",
		})
		if !says(err, "lun already used by") { // by a device that look did not see
			return s, err
		}
	}
	return hotadd.Slot{}, full()
}

func (b *Bus) addNodes(ctx context.Context, m *monitor, id string, f File) error {
	name := nodeName(id)
	if f.ReadOnly {
		return b.addRedo(ctx, m, name, f)
	}
	_, err := m.call(ctx, "blockdev-add", map[string]any{"driver": "vmdk", "node-name": name,
		"file": map[string]any{"driver": "file", "filename": f.Path}})
	return err
}

// A node of a device that is gone is in use for a moment: QEMU frees the device in a callback of its own (RCU).
const (
	nodePause = 10 * time.Millisecond
	nodeTries = 300
)

// removeNodes removes the disk's block nodes; one that is not there is removed already.
func (b *Bus) removeNodes(ctx context.Context, m *monitor, id string) error {
	for _, suffix := range []string{"", redoSuffix, baseSuffix} {
		for n := 1; ; n++ {
			_, err := m.call(ctx, "blockdev-del", map[string]any{"node-name": nodeName(id) + suffix})
			if err == nil || says(err, "Failed to find node") {
				break
			}
			if !says(err, "is in use") || n == nodeTries {
				return err
			}
			select {
			case <-time.After(nodePause):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	return nil
}

// Detach implements hotadd.Bus. It does not wait for the guest to unmount: the disk goes at once, as a disk that is
// pulled out. The caller unmounts first.
//
//  1. device_del and the wait for DEVICE_DELETED. [killed here: the next detach finds no device, or waits for its end]
//  2. blockdev-del: the image is closed and its lock is free. [killed before: the next attach or detach removes the node]
func (b *Bus) Detach(ctx context.Context, id string) error {
	err := b.with(ctx, func(ctx context.Context, m *monitor) error {
		v, err := b.look(ctx, m)
		if err != nil {
			return err
		}
		if o, ok := v.find(id); ok {
			if err := b.removeDevice(ctx, m, deviceID(o.Disk)); err != nil {
				return err
			}
		}
		return b.removeNodes(ctx, m, id)
	})
	return fault.Wrap(err, "detach disk %s", id)
}

func (b *Bus) removeDevice(ctx context.Context, m *monitor, device string) error {
	w := m.watch(func(name string, data json.RawMessage) bool {
		var d struct{ Device string }
		return (name == "DEVICE_DELETED" || name == "DEVICE_UNPLUG_GUEST_ERROR") && json.Unmarshal(data, &d) == nil && d.Device == device
	})
	_, err := m.call(ctx, "device_del", map[string]any{"id": device})
	if isClass(err, "DeviceNotFound") {
		return nil // it went meanwhile
	}
	if err != nil && !says(err, "is already in the process of unplug") {
		return err
	}
	x, err := m.wait(ctx, w)
	if err != nil {
		return fault.Wrap(err, "wait until the guest gives the device up")
	}
	if x.Event != "DEVICE_DELETED" {
		return fault.New(fault.InUse, "Look into the guest's kernel log.", "the guest does not give the device up")
	}
	return nil
}

// List implements hotadd.Bus. Disks that were not attached here are not listed.
func (b *Bus) List(ctx context.Context) (list []hotadd.Occupied, err error) {
	err = b.with(ctx, func(ctx context.Context, m *monitor) error {
		v, err := b.look(ctx, m)
		if err == nil {
			list = v.ours
		}
		return err
	})
	return list, fault.Wrap(err, "list the machine's disks")
}

// Locate implements hotadd.Bus.
func (b *Bus) Locate(ctx context.Context, id string) (hotadd.Slot, error) {
	list, err := b.List(ctx)
	if err != nil {
		return hotadd.Slot{}, err
	}
	if o, ok := (&inventory{ours: list}).find(id); ok {
		return o.Slot, nil
	}
	return hotadd.Slot{}, fault.New(fault.NotFound, "", "disk %s is not on this machine's bus", id)
}
