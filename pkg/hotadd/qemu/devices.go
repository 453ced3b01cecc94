package qemu

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/vmdk-csi/vmdk-csi/pkg/hotadd"
)

// Identity is what the guest reads from the disk: the serial number (VPD page 0x80) and the world-wide name (page 0x83).
// QEMU's name has 64 bits and VMware's has 128, so that this one is made of the serial number's digest: NAA 5 (which udev
// makes a link of), VMware's company id 000c29, 36 bits.
func Identity(d hotadd.Disk) (serial string, wwn uint64) {
	serial = d.Serial()
	sum := sha256.Sum256([]byte(serial))
	return serial, 0x5_000c29<<36 | binary.BigEndian.Uint64(sum[:])&(1<<36-1)
}

const devicePrefix = "vmdkcsi."

// deviceID names the disk's device. It holds what List must know: QEMU keeps nothing else for us. Its alphabet is
// letters, digits, '-', '.' and '_' (util/id.c), so that other bytes are written as _XX.
func deviceID(d hotadd.Disk) string { return devicePrefix + escape(d.ID) + "." + escape(d.UUID) }

// nodeName names the disk's block node, which takes 31 bytes only.
func nodeName(id string) string {
	sum := sha256.Sum256([]byte(id))
	return "vmdkcsi-" + hex.EncodeToString(sum[:10])
}

func parseDeviceID(s string) (hotadd.Disk, bool) {
	rest, ours := strings.CutPrefix(s, devicePrefix)
	id, uuid, two := strings.Cut(rest, ".")
	d := hotadd.Disk{ID: unescape(id), UUID: unescape(uuid)}
	return d, ours && two && d.ID != "" && deviceID(d) == s
}

func escape(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if c == '-' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "_%02x", c)
		}
	}
	return b.String()
}

func unescape(s string) string {
	head, rest, more := strings.Cut(s, "_")
	for more {
		c := byte('?')
		if len(rest) >= 2 {
			if x, err := hex.DecodeString(rest[:2]); err == nil {
				c = x[0]
			}
			rest = rest[2:]
		}
		var part string
		part, rest, more = strings.Cut(rest, "_")
		head += string([]byte{c}) + part
	}
	return head
}

// inventory is what is on the buses.
type inventory struct {
	ours  []hotadd.Occupied // in order of slot
	taken map[hotadd.Slot]bool
}

func (v *inventory) find(id string) (hotadd.Occupied, bool) {
	i := slices.IndexFunc(v.ours, func(o hotadd.Occupied) bool { return o.Disk.ID == id })
	if i < 0 {
		return hotadd.Occupied{}, false
	}
	return v.ours[i], true
}

// look asks QEMU for its SCSI devices.
func (b *Bus) look(ctx context.Context, m *monitor) (*inventory, error) {
	v := &inventory{taken: map[hotadd.Slot]bool{}}
	for _, place := range []string{"/machine/peripheral", "/machine/peripheral-anon"} {
		var children []struct{ Name, Type string }
		if err := get(ctx, m, "qom-list", map[string]any{"path": place}, &children); err != nil {
			return nil, err
		}
		for _, c := range children {
			if !strings.HasPrefix(c.Type, "child<scsi-") {
				continue
			}
			s, ok, err := b.slotOf(ctx, m, path.Join(place, c.Name))
			if isClass(err, "DeviceNotFound") || !ok && err == nil {
				continue // it went meanwhile, or is on another bus
			}
			if err != nil {
				return nil, err
			}
			v.taken[s] = true
			if d, ours := parseDeviceID(c.Name); ours {
				v.ours = append(v.ours, hotadd.Occupied{Slot: s, Disk: d})
			}
		}
	}
	slices.SortFunc(v.ours, func(x, y hotadd.Occupied) int {
		return (x.Slot.Controller-y.Slot.Controller)*hotadd.Units + x.Slot.Unit - y.Slot.Unit
	})
	return v, nil
}

func (b *Bus) slotOf(ctx context.Context, m *monitor, device string) (s hotadd.Slot, ok bool, err error) {
	var bus string // the path of the bus, whose last part is its name
	err = get(ctx, m, "qom-get", map[string]any{"path": device, "property": "parent_bus"}, &bus)
	if err != nil {
		return s, false, err
	}
	err = get(ctx, m, "qom-get", map[string]any{"path": device, "property": "scsi-id"}, &s.Unit)
	s.Controller = slices.Index(b.config.Buses, path.Base(bus))
	return s, s.Controller >= 0, err
}

func get(ctx context.Context, m *monitor, command string, arguments, into any) error {
	text, err := m.call(ctx, command, arguments)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, into)
}
