package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/hotadd"
	"github.com/vmdk-csi/vmdk-csi/pkg/hotadd/hotaddtest"
)

func TestConforms(t *testing.T) {
	for _, controller := range []string{"virtio-scsi-pci", "pvscsi"} {
		t.Run(controller, func(t *testing.T) {
			hotaddtest.Run(t, func(t *testing.T) (hotadd.Bus, func() hotadd.Bus) {
				r := newRig(t, controller)
				return r.open(), func() hotadd.Bus { return r.open() }
			})
		})
	}
}

// lsi53c895a has 7 units, so that the bus is full earlier.
func TestSmallControllers(t *testing.T) {
	r := newRig(t, "lsi53c895a")
	if _, err := r.open().Attach(t.Context(), hotadd.Disk{ID: "a"}); err != nil {
		t.Fatal(err)
	}
	r.config.Targets = 7
	b := r.open()
	for n := 1; n < 4*7; n++ {
		if _, err := b.Attach(t.Context(), hotadd.Disk{ID: fmt.Sprint(n)}); err != nil {
			t.Fatalf("disk %d: %v", n, err)
		}
	}
	if _, err := b.Attach(t.Context(), hotadd.Disk{ID: "more"}); !errors.Is(err, fault.Exhausted) {
		t.Fatalf("%v, want Exhausted", err)
	}
}

func TestDetachFreesTheImage(t *testing.T) {
	r := newRig(t, "virtio-scsi-pci")
	b := r.open()
	if _, err := b.Attach(t.Context(), hotadd.Disk{ID: "a"}); err != nil {
		t.Fatal(err)
	}
	info := func() error { return exec.Command("qemu-img", "info", r.image("a")).Run() }
	if info() == nil {
		t.Fatal("a second opener was let in")
	}
	if err := b.Detach(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if err := info(); err != nil {
		t.Fatalf("the image is still locked: %v", err)
	}
}

// Another QEMU is another process that has the image open.
func TestLockedImage(t *testing.T) {
	r := newRig(t, "virtio-scsi-pci")
	other := newRig(t, "virtio-scsi-pci")
	if _, err := r.open().Attach(t.Context(), hotadd.Disk{ID: "a"}); err != nil {
		t.Fatal(err)
	}
	other.config.Files = r.file
	b := other.open()
	_, err := b.Attach(t.Context(), hotadd.Disk{ID: "a"})
	if f := fault.From(err); !errors.Is(err, fault.InUse) || f.Remedy == "" {
		t.Fatalf("%v, want InUse", err)
	}
	if list, err := b.List(t.Context()); err != nil || len(list) != 0 {
		t.Fatalf("list after the failure: %v %v", list, err)
	}
}

func TestRefusalsAreTyped(t *testing.T) {
	r := newRig(t, "virtio-scsi-pci")
	if err := os.WriteFile(r.image("broken"), []byte("no disk"), 0o600); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]fault.Kind{"missing": fault.NotFound, "broken": fault.Damaged} {
		_, err := r.open().Attach(t.Context(), hotadd.Disk{ID: id})
		if f := fault.From(err); !errors.Is(err, want) || f.Remedy == "" {
			t.Errorf("%s: %v, want %s", id, err, want)
		}
	}
	r.config.Buses = []string{"scsi9.0"}
	if _, err := r.open().Attach(t.Context(), hotadd.Disk{ID: "a"}); !errors.Is(err, fault.Precondition) {
		t.Errorf("no such bus: %v", err)
	}
	// What was opened before the refusal is closed: the image is free.
	if err := exec.Command("qemu-img", "info", r.image("a")).Run(); err != nil {
		t.Errorf("the refused disk's image: %v", err)
	}
}

func TestForeignDevicesKeepTheirSlots(t *testing.T) {
	r := newRig(t, "virtio-scsi-pci")
	b := r.open()
	for unit, node := range map[int]string{0: "x", 1: "y"} {
		r.do(b, "blockdev-add", map[string]any{"driver": "null-co", "node-name": node, "read-zeroes": true})
		r.do(b, "device_add", map[string]any{"driver": "scsi-hd", "id": "theirs" + node, "bus": "scsi0.0", "scsi-id": unit, "lun": 0, "drive": node})
	}
	if s, err := b.Attach(t.Context(), hotadd.Disk{ID: "a"}); err != nil || s != (hotadd.Slot{Unit: 2}) {
		t.Fatalf("%v %v", s, err)
	}
	if list, err := b.List(t.Context()); err != nil || len(list) != 1 {
		t.Fatalf("%v %v", list, err)
	}
}

// A slot that the reading did not show as taken is refused by QEMU, and the next one is taken.
func TestTakenSlot(t *testing.T) {
	r := newRig(t, "virtio-scsi-pci")
	b := r.open()
	r.do(b, "blockdev-add", map[string]any{"driver": "null-co", "node-name": "x", "read-zeroes": true})
	r.do(b, "device_add", map[string]any{"driver": "scsi-hd", "id": "theirs", "bus": "scsi0.0", "scsi-id": 0, "lun": 0, "drive": "x"})
	d := hotadd.Disk{ID: "a"}
	f, err := r.file(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	var got hotadd.Slot
	err = b.with(t.Context(), func(ctx context.Context, m *monitor) error {
		if err := b.addNodes(ctx, m, d.ID, f); err != nil {
			return err
		}
		var err error
		got, err = b.addDevice(ctx, m, &inventory{}, d)
		return err
	})
	if err != nil || got != (hotadd.Slot{Unit: 1}) {
		t.Fatalf("%v %v", got, err)
	}
}

func TestSurpriseRemoval(t *testing.T) {
	r := newRig(t, "virtio-scsi-pci")
	b := r.open()
	d := hotadd.Disk{ID: "a", UUID: "u"}
	for _, next := range []func() error{
		func() error { return b.Detach(t.Context(), "a") },
		func() error { _, err := b.Attach(t.Context(), d); return err },
	} {
		if _, err := b.Attach(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		r.do(b, "device_del", map[string]any{"id": deviceID(d)})
		if _, err := b.Locate(t.Context(), "a"); !errors.Is(err, fault.NotFound) {
			t.Fatalf("locate of a disk that was pulled out: %v", err)
		}
		if err := next(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestReadOnlyGetsARedoLog(t *testing.T) {
	r := newRig(t, "virtio-scsi-pci")
	b := r.open()
	r.readOnly["a"] = true
	if _, err := b.Attach(t.Context(), hotadd.Disk{ID: "a"}); err != nil {
		t.Fatal(err)
	}
	r.readOnly["a"] = false
	if _, err := b.Attach(t.Context(), hotadd.Disk{ID: "a"}); !errors.Is(err, fault.Precondition) {
		t.Fatalf("attached again as writable: %v", err)
	}
	before, err := os.ReadFile(filepath.Join(r.dir, "a-flat.vmdk"))
	if err != nil {
		t.Fatal(err)
	}
	size := redoSize(t, b, "a")
	r.do(b, "human-monitor-command", map[string]any{
		"command-line": fmt.Sprintf(`qemu-io -d %s "write -P 7 0 64k"`, deviceID(hotadd.Disk{ID: "a"}))})
	if now := redoSize(t, b, "a"); now < size+64<<10 {
		t.Fatalf("the redo log was %d bytes and is %d after a write of 64 KiB", size, now)
	}
	if left, _ := filepath.Glob(filepath.Join(r.dir, "*.redo")); len(left) != 0 {
		t.Fatalf("the redo log has a name: %v", left)
	}
	if err := b.Detach(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile(filepath.Join(r.dir, "a-flat.vmdk"))
	if err != nil || string(after) != string(before) {
		t.Fatalf("the disk was written (%v)", err)
	}
	if _, err := b.Attach(t.Context(), hotadd.Disk{ID: "a"}); err != nil {
		t.Fatalf("writable after read-only: %v", err)
	}
}

// redoSize is the highest offset that was written in the disk's redo log.
func redoSize(t *testing.T, b *Bus, id string) (size int64) {
	t.Helper()
	var nodes []struct {
		Name  string `json:"node-name"`
		Stats struct {
			Highest int64 `json:"wr_highest_offset"`
		} `json:"stats"`
	}
	err := b.with(t.Context(), func(ctx context.Context, m *monitor) error {
		return get(ctx, m, "query-blockstats", map[string]any{"query-nodes": true}, &nodes)
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		if n.Name == nodeName(id)+redoSuffix {
			return n.Stats.Highest
		}
	}
	t.Fatal("there is no redo log")
	return 0
}

func TestIdentity(t *testing.T) {
	serial, wwn := Identity(hotadd.Disk{ID: "a", UUID: "60 00 C2 97 11 22 33 44-55 66 77 88 99 aa bb cc"})
	if serial != "6000c297112233445566778899aabbcc" {
		t.Errorf("serial %s", serial)
	}
	if wwn>>36 != 0x5000c29 {
		t.Errorf("wwn %x", wwn)
	}
	other, otherWWN := Identity(hotadd.Disk{ID: "b"})
	if len(other) != 32 || otherWWN == wwn {
		t.Errorf("a disk without a uuid: %s %x", other, otherWWN)
	}
	for _, d := range []hotadd.Disk{{ID: "a.b_c/d é", UUID: "60 00-1"}, {ID: "x"}, {ID: "_"}} {
		if got, ok := parseDeviceID(deviceID(d)); !ok || got != d {
			t.Errorf("%q comes back as %q", d, got)
		}
	}
	for _, s := range []string{"vmdkcsi.", "vmdkcsi.a", "vmdkcsi.a_.b", "vmdkcsi.a_zz.b", "disk0"} {
		if d, ok := parseDeviceID(s); ok {
			t.Errorf("%s is taken for %q", s, d)
		}
	}
}
