package vsphere

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi/session"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/hotadd"
	"github.com/vmdk-csi/vmdk-csi/pkg/hotadd/hotaddtest"
)

func TestConforms(t *testing.T) {
	hotaddtest.Run(t, func(t *testing.T) (hotadd.Bus, func() hotadd.Bus) {
		r := newRig(t)
		return r.open(), func() hotadd.Bus { return r.open() }
	})
}

func TestDetachKeepsTheFile(t *testing.T) {
	r := newRig(t)
	b := r.open()
	if _, err := b.Attach(t.Context(), hotadd.Disk{ID: "a"}); err != nil {
		t.Fatal(err)
	}
	if err := b.Detach(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(r.dir, "disks/a.vmdk")); err != nil {
		t.Fatal(err)
	}
	for _, spec := range r.machine.calls() {
		for _, d := range spec.DeviceChange {
			if op := d.GetVirtualDeviceConfigSpec().FileOperation; op != "" {
				t.Errorf("a file operation was sent: %s", op)
			}
		}
	}
	for _, o := range r.machine.Config.ExtraConfig {
		if v := o.GetOptionValue(); strings.HasPrefix(v.Key, recordPrefix) {
			t.Errorf("a record is left: %s=%s", v.Key, v.Value)
		}
	}
}

func TestForeignDisksKeepTheirSlots(t *testing.T) {
	r := newRig(t)
	b := r.open()
	for _, id := range []string{"system", "a"} {
		if _, err := b.Attach(t.Context(), hotadd.Disk{ID: id}); err != nil {
			t.Fatal(err)
		}
	}
	// Without its record the first disk is somebody else's.
	for _, o := range r.machine.Config.ExtraConfig {
		if v := o.GetOptionValue(); v.Key == recordKey(hotadd.Slot{}) {
			v.Value = "file=%5Bother%5D+x.vmdk&id=system&uuid="
		}
	}
	if list, err := b.List(t.Context()); err != nil || len(list) != 1 || list[0].Disk.ID != "a" {
		t.Fatalf("list: %v %v", list, err)
	}
	if err := b.Detach(t.Context(), "system"); err != nil {
		t.Fatal(err)
	}
	if s, err := b.Attach(t.Context(), hotadd.Disk{ID: "b"}); err != nil || s != (hotadd.Slot{Unit: 2}) {
		t.Fatalf("slot %v (%v): the foreign disk was in 0:0, disk a in 0:1", s, err)
	}
}

func TestLocateUUID(t *testing.T) {
	b := newRig(t).open()
	ctx := t.Context()
	const blanks = "60 00 C2 97 11 22 33 44-55 66 77 88 99 aa bb cc"
	want, err := b.Attach(ctx, hotadd.Disk{ID: "a", UUID: blanks})
	if err != nil {
		t.Fatal(err)
	}
	for _, uuid := range []string{blanks, "6000c297-1122-3344-5566-778899aabbcc", "6000C2971122334455667788 99AABBCC"} {
		if s, err := b.LocateUUID(ctx, uuid); err != nil || s != want {
			t.Errorf("%s: %v %v", uuid, s, err)
		}
	}
	if _, err := b.LocateUUID(ctx, "6000c297-1122-3344-5566-778899aabbcd"); !errors.Is(err, fault.NotFound) {
		t.Errorf("another uuid: %v", err)
	}
	if _, err := b.LocateUUID(ctx, "wwn"); !errors.Is(err, fault.Invalid) {
		t.Errorf("no uuid: %v", err)
	}
}

func TestWithoutEnableUUID(t *testing.T) {
	r := newRig(t)
	for _, o := range r.machine.Config.ExtraConfig {
		if v := o.GetOptionValue(); v.Key == "disk.EnableUUID" {
			v.Value = "FALSE"
		}
	}
	_, err := r.open().Attach(t.Context(), hotadd.Disk{ID: "a"})
	if f := fault.From(err); !errors.Is(err, fault.Precondition) || !strings.Contains(f.Remedy, "disk.EnableUUID") {
		t.Fatalf("%v", err)
	}
	if n := len(r.machine.calls()); n != 0 {
		t.Fatalf("%d changes", n)
	}
}

// Somebody takes the chosen slot between the reading and the change; the simulator refuses it as vSphere does.
func TestTakenSlotIsChosenAgain(t *testing.T) {
	r := newRig(t)
	b := r.open()
	if err := os.WriteFile(filepath.Join(r.dir, "other.vmdk"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r.machine.before = func(spec *types.VirtualMachineConfigSpec) {
		r.machine.before = nil
		mine := spec.DeviceChange[0].GetVirtualDeviceConfigSpec().Device.GetVirtualDevice()
		unit := *mine.UnitNumber
		c := r.machine.Config
		c.Hardware.Device = append(c.Hardware.Device, &types.VirtualDisk{VirtualDevice: types.VirtualDevice{
			Key: 2999, ControllerKey: mine.ControllerKey, UnitNumber: &unit,
			Backing: &types.VirtualDiskFlatVer2BackingInfo{VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{
				FileName: "[" + datastore + "] other.vmdk"}}}})
		c.ChangeVersion = "somebody was here"
	}
	s, err := b.Attach(t.Context(), hotadd.Disk{ID: "a"})
	if err != nil || s != (hotadd.Slot{Unit: 1}) {
		t.Fatalf("slot %v, %v; another disk is in 0:0", s, err)
	}
	if n := len(r.machine.calls()); n != 2 {
		t.Fatalf("%d changes, want 2", n)
	}
}

func TestConflictsAreRetried(t *testing.T) {
	r := newRig(t)
	b := r.open()
	r.machine.inject(&types.ConcurrentAccess{}, &types.TaskInProgress{}, nil)
	if _, err := b.Attach(t.Context(), hotadd.Disk{ID: "a"}); err != nil {
		t.Fatal(err)
	}
	for i, spec := range r.machine.calls() {
		if spec.ChangeVersion == "" {
			t.Errorf("change %d came without the version that was read", i)
		}
	}
}

func TestFaultsAreTyped(t *testing.T) {
	r := newRig(t)
	b := r.open()
	lock := &types.GenericVmConfigFault{Reason: "Failed to lock the file"}
	for name, c := range map[string]struct {
		fault types.BaseMethodFault
		want  fault.Kind
	}{
		"file locked":    {&types.FileLocked{FileFault: types.FileFault{File: "[ds] x.vmdk"}}, fault.InUse},
		"lock as text":   {lock, fault.InUse},
		"no permission":  {&types.NoPermission{PrivilegeId: "VirtualMachine.Config.AddExistingDisk"}, fault.Denied},
		"slot refused":   {&types.InvalidDeviceSpec{}, fault.Precondition},
		"too many":       {&types.TooManyDevices{}, fault.Exhausted},
		"no space":       {&types.NoDiskSpace{}, fault.NoSpace},
		"machine gone":   {&types.ManagedObjectNotFound{}, fault.NotFound},
		"power state":    {&types.InvalidPowerState{}, fault.Precondition},
		"host away":      {&types.HostNotConnected{}, fault.Unavailable},
		"something else": {&types.SystemError{}, fault.Internal},
	} {
		t.Run(name, func(t *testing.T) {
			r.machine.inject(c.fault)
			_, err := b.Attach(t.Context(), hotadd.Disk{ID: "a"})
			f := fault.From(err)
			if f == nil || f.Kind != c.want || (f.Remedy == "" && c.want != fault.Internal) {
				t.Fatalf("%+v, want %s with a remedy", f, c.want)
			}
			if list, err := b.List(t.Context()); err != nil || len(list) != 0 {
				t.Fatalf("list after the failure: %v %v", list, err)
			}
		})
	}
}

func TestMissingFile(t *testing.T) {
	_, err := newRig(t).open().Attach(t.Context(), hotadd.Disk{ID: "missing"})
	if !errors.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "missing.vmdk") {
		t.Fatalf("%v", err)
	}
}

func TestOpenRefusals(t *testing.T) {
	r := newRig(t)
	wrong := r.config
	wrong.VM = "00000000-0000-0000-0000-000000000000"
	if _, err := Open(t.Context(), wrong); !errors.Is(err, fault.NotFound) {
		t.Errorf("unknown machine: %v", err)
	}
	untrusted := r.config
	untrusted.CAFile = ""
	if _, err := Open(t.Context(), untrusted); !errors.Is(err, fault.Unavailable) {
		t.Errorf("untrusted certificate: %v", err)
	}
	nobody := r.config
	u := *r.config.URL
	u.User = nil
	nobody.URL = &u
	_, err := Open(t.Context(), nobody)
	if !errors.Is(err, fault.Denied) {
		t.Errorf("no password: %v", err)
	}
	if _, err := Open(t.Context(), Config{}); !errors.Is(err, fault.Invalid) {
		t.Errorf("empty configuration: %v", err)
	}
}

// expire ends the session of b from another one, as vCenter does when it is idle for too long.
func expire(t *testing.T, b, other *Bus) {
	t.Helper()
	s, err := session.NewManager(b.link.client).UserSession(t.Context())
	if err != nil || s == nil {
		t.Fatalf("session: %v %v", s, err)
	}
	if err := session.NewManager(other.link.client).TerminateSession(t.Context(), []string{s.Key}); err != nil {
		t.Fatal(err)
	}
}

func TestExpiredSessionIsLoggedInAgain(t *testing.T) {
	r := newRig(t)
	b, other := r.open(), r.open()
	for _, op := range []func() error{
		func() error { _, err := b.Attach(t.Context(), hotadd.Disk{ID: "a"}); return err },
		func() error { _, err := b.Locate(t.Context(), "a"); return err },
		func() error { return b.Detach(t.Context(), "a") },
	} {
		expire(t, b, other)
		if err := op(); err != nil {
			t.Fatal(err)
		}
	}
	if n := b.link.logins(); n != 4 {
		t.Errorf("%d logins, want 4", n)
	}
}

func TestKeepAliveLogsInAgain(t *testing.T) {
	r := newRig(t)
	other := r.open()
	r.config.KeepAlive = 10 * time.Millisecond
	b := r.open()
	expire(t, b, other)
	for end := time.Now().Add(10 * time.Second); b.link.logins() < 2; {
		if time.Now().After(end) {
			t.Fatal("the keep-alive did not log in again")
		}
	}
}
