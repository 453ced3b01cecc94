package vsphere

import (
	"net/url"
	"slices"
	"strings"

	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmdk-csi/vmdk-csi/pkg/hotadd"
)

// occupant is a disk of ours with its device.
type occupant struct {
	slot   hotadd.Slot
	disk   hotadd.Disk
	file   string // as it was attached
	mode   string // the device's disk mode
	uuid   string // the device's ddb.uuid
	device types.BaseVirtualDevice
}

// hardware is what one reading of the machine's configuration says.
type hardware struct {
	version     string // changeVersion
	enableUUID  bool
	controllers map[int]int32 // bus number to device key
	taken       map[hotadd.Slot]bool
	ours        []occupant // in order of slot
	records     map[string]url.Values
}

const recordPrefix = "vmdkcsi.scsi"

func recordKey(s hotadd.Slot) string { return recordPrefix + s.String() }

// record is form-encoded because the value lies between quotes in the machine's .vmx file.
func record(d hotadd.Disk, file string) string {
	return url.Values{"id": {d.ID}, "uuid": {d.UUID}, "file": {file}}.Encode()
}

func parseHardware(c *types.VirtualMachineConfigInfo) *hardware {
	h := &hardware{version: c.ChangeVersion, controllers: map[int]int32{}, taken: map[hotadd.Slot]bool{}, records: map[string]url.Values{}}
	for _, o := range c.ExtraConfig {
		v := o.GetOptionValue()
		text, _ := v.Value.(string)
		switch {
		case strings.EqualFold(v.Key, "disk.EnableUUID"):
			h.enableUUID = strings.EqualFold(text, "TRUE") || text == "1"
		case strings.HasPrefix(v.Key, recordPrefix):
			if r, err := url.ParseQuery(text); err == nil {
				h.records[v.Key] = r
			}
		}
	}
	buses := map[int32]int{}
	for _, d := range c.Hardware.Device {
		if s, ok := d.(types.BaseVirtualSCSIController); ok {
			x := s.GetVirtualSCSIController()
			h.controllers[int(x.BusNumber)] = x.Key
			buses[x.Key] = int(x.BusNumber)
		}
	}
	for _, d := range c.Hardware.Device {
		x := d.GetVirtualDevice()
		bus, ok := buses[x.ControllerKey]
		if !ok || x.UnitNumber == nil {
			continue
		}
		s := hotadd.Slot{Controller: bus, Unit: int(*x.UnitNumber)}
		h.taken[s] = true // whatever it is: a disk, a tape, a passed-through device
		if o, ok := h.own(s, d); ok {
			h.ours = append(h.ours, o)
		}
	}
	slices.SortFunc(h.ours, func(x, y occupant) int {
		return (x.slot.Controller-y.slot.Controller)*hotadd.Units + x.slot.Unit - y.slot.Unit
	})
	return h
}

// own says whether the device in the slot is the one that the slot's record tells of.
func (h *hardware) own(s hotadd.Slot, d types.BaseVirtualDevice) (occupant, bool) {
	disk, isDisk := d.(*types.VirtualDisk)
	r := h.records[recordKey(s)]
	if !isDisk || r.Get("id") == "" {
		return occupant{}, false
	}
	o := occupant{slot: s, disk: hotadd.Disk{ID: r.Get("id"), UUID: r.Get("uuid")}, file: r.Get("file"), device: d}
	valid := false
	b, _ := disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
	if b != nil {
		o.mode = b.DiskMode
	}
	// A snapshot of the machine or a redo log stands over the file that was attached.
	for ; b != nil; b = b.Parent {
		valid = valid || b.FileName == o.file || (canonical(o.disk.UUID) != "" && canonical(b.Uuid) == canonical(o.disk.UUID))
		o.uuid = b.Uuid
	}
	return o, valid
}

func (h *hardware) find(id string) (occupant, bool) {
	i := slices.IndexFunc(h.ours, func(o occupant) bool { return o.disk.ID == id })
	if i < 0 {
		return occupant{}, false
	}
	return h.ours[i], true
}

// free is the lowest free slot: on the controllers that are there, or else on one that must be added.
func (h *hardware) free() (s hotadd.Slot, added, ok bool) {
	for _, there := range []bool{true, false} {
		for c := range hotadd.Controllers {
			if _, has := h.controllers[c]; has != there {
				continue
			}
			for u := range hotadd.Units {
				s := hotadd.Slot{Controller: c, Unit: u}
				if u != hotadd.ReservedUnit && !h.taken[s] {
					return s, !there, true
				}
			}
		}
	}
	return hotadd.Slot{}, false, false
}

// Keys of devices that do not exist yet are negative; vSphere gives them others.
const (
	newDisk       = -1
	newController = -2
)

// addSpec is the change that puts the disk into the slot.
func (h *hardware) addSpec(s hotadd.Slot, addController bool, d hotadd.Disk, f File) types.VirtualMachineConfigSpec {
	spec := types.VirtualMachineConfigSpec{ChangeVersion: h.version}
	key := h.controllers[s.Controller]
	if addController {
		key = newController
		c := &types.ParaVirtualSCSIController{}
		c.Key, c.BusNumber, c.SharedBus = key, int32(s.Controller), types.VirtualSCSISharingNoSharing
		spec.DeviceChange = append(spec.DeviceChange, &types.VirtualDeviceConfigSpec{
			Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: c})
	}
	b := &types.VirtualDiskFlatVer2BackingInfo{DiskMode: f.mode()}
	b.FileName = f.Path
	unit := int32(s.Unit)
	spec.DeviceChange = append(spec.DeviceChange, &types.VirtualDeviceConfigSpec{
		Operation: types.VirtualDeviceConfigSpecOperationAdd,
		Device: &types.VirtualDisk{VirtualDevice: types.VirtualDevice{
			Key: newDisk, ControllerKey: key, UnitNumber: &unit, Backing: b}},
	})
	spec.ExtraConfig = []types.BaseOptionValue{&types.OptionValue{Key: recordKey(s), Value: record(d, f.Path)}}
	return spec
}

// removeSpec is the change that takes the disk's device and every record of it away; ok is false where there is nothing to change. There
// is no FileOperation: the files stay.
func (h *hardware) removeSpec(id string) (spec types.VirtualMachineConfigSpec, ok bool) {
	spec.ChangeVersion = h.version
	if o, found := h.find(id); found {
		spec.DeviceChange = []types.BaseVirtualDeviceConfigSpec{&types.VirtualDeviceConfigSpec{
			Operation: types.VirtualDeviceConfigSpecOperationRemove, Device: o.device}}
	}
	for key, r := range h.records {
		if r.Get("id") == id { // also a record whose device somebody else removed
			spec.ExtraConfig = append(spec.ExtraConfig, &types.OptionValue{Key: key, Value: ""})
		}
	}
	return spec, len(spec.DeviceChange)+len(spec.ExtraConfig) > 0
}

// canonical makes uuids comparable: 6000C297-1234-..., "60 00 C2 97 ..." and 6000c2971234... are one. "" is no uuid.
func canonical(uuid string) string {
	s := strings.ToLower(strings.NewReplacer("-", "", " ", "").Replace(uuid))
	if len(s) != 32 || strings.Trim(s, "0123456789abcdef") != "" {
		return ""
	}
	return s
}
