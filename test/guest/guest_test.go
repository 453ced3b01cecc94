package guest

import (
	"fmt"
	"strings"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/hotadd/guest"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/test/guest/call"
)

const mib = int64(1) << 20

// size of a disk: mkfs.xfs wants 300 MiB.
func (s shape) size() int64 {
	if s.as.FSType == "xfs" {
		return 320 * mib
	}
	return 48 * mib
}

// TestGuest runs everything in one machine, which takes some seconds to start.
func TestGuest(t *testing.T) {
	m := start(t)
	for c, name := range controllers {
		t.Run(name, func(t *testing.T) {
			t.Run("Life", func(t *testing.T) { lives(t, m, c) })
			t.Run("PulledOut", func(t *testing.T) { pulledOut(t, m, c) })
			t.Run("ReadOnly", func(t *testing.T) { readOnly(t, m, c) })
		})
	}
	t.Run("DeviceMapper", func(t *testing.T) { deviceMapper(t, m) })
	t.Run("Faults", func(t *testing.T) { faults(t, m) })
}

// shape is a kind of disk and of its use.
type shape struct {
	name  string
	kind  vmdk.Type
	child bool // the head is a delta of a base
	as    call.Volume
}

var shapes = []shape{
	{"ext4", vmdk.MonolithicSparse, true, call.Volume{FSType: "ext4"}},
	{"xfs-gpt", vmdk.MonolithicFlat, false, call.Volume{FSType: "xfs", Partition: "gpt"}},
	{"block", vmdk.TwoGbMaxExtentSparse, false, call.Volume{}},
}

// volume is a disk with its use in the guest.
type volume struct {
	*disk
	call.Volume
	file call.Write // what is written in it
}

func (m *machine) volume(t *testing.T, controller int, s shape) *volume {
	t.Helper()
	name := strings.ToLower(strings.NewReplacer("/", "-", "TestGuest", "d").Replace(t.Name()))
	d, err := m.hostd.make(t.Context(), name, controller, s.kind, s.size(), s.child)
	if err != nil {
		t.Fatal(err)
	}
	v := &volume{disk: d, Volume: s.as}
	v.Volume.ID = d.id
	v.file = call.Write{Path: v.Target() + "/file", Size: 3*mib + 4096, Seed: uint64(len(t.Name()))*1000 + uint64(controller)}
	if v.FSType == "" {
		v.file.Path = v.Target()
	}
	return v
}

func (m *machine) disks(t *testing.T) []guest.Disk {
	t.Helper()
	var r call.Disks
	if err := m.call("Disks", call.Text{}, &r); err != nil {
		t.Fatal(err)
	}
	return r.Disks
}

// up stages and publishes, each twice, as every call may be repeated.
func (m *machine) up(t *testing.T, v *volume) {
	t.Helper()
	for _, method := range []string{"Stage", "Stage", "Publish", "Publish"} {
		m.must(t, method, v.Volume)
	}
}

func (m *machine) down(t *testing.T, v *volume) {
	t.Helper()
	for _, method := range []string{"Unpublish", "Unpublish", "Unstage", "Unstage"} {
		m.must(t, method, v.Volume)
	}
	m.gone(t, v)
}

// gone: neither the guest nor the hypervisor has the disk.
func (m *machine) gone(t *testing.T, v *volume) {
	t.Helper()
	for _, d := range m.disks(t) {
		if d.Serial == v.added().Serial() {
			t.Errorf("the guest still has disk %s", d)
		}
	}
	var a call.Answer
	if err := m.hostd.Attachments(call.Text{}, &a); err != nil || a.Fault != nil {
		t.Fatal(err, a.Fault)
	}
	for _, x := range a.Attachments {
		if x.ID == v.disk.id {
			t.Errorf("the hypervisor still has disk %s", x.ID)
		}
	}
}

// reads: the guest reads what was written, from the disk.
func (m *machine) reads(t *testing.T, v *volume) {
	t.Helper()
	if got := m.must(t, "Read", v.file); got != v.file.Digest() {
		t.Fatalf("%s reads as %s", v.file.Path, got)
	}
}

func lives(t *testing.T, m *machine, controller int) {
	for i, s := range shapes {
		if i > 0 && i != controller && controller > 0 { // the controller makes no difference to a file system
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			v := m.volume(t, controller, s)
			m.up(t, v)
			d := m.identified(t, v)
			if link := m.must(t, "Link", call.Text{Text: v.uuid}); link != d.Path {
				t.Errorf("the link by the disk's uuid leads to %s, the disk is %s", link, d.Path)
			}
			m.must(t, "Write", v.file)
			m.down(t, v)
			m.sound(t, v)
			// Another disk takes the place that it had; it is found in its new one.
			other := m.other(t, controller)
			m.up(t, v)
			m.reads(t, v)
			m.down(t, v)
			m.down(t, other)
		})
	}
}

// other is another disk, attached.
func (m *machine) other(t *testing.T, controller int) *volume {
	t.Helper()
	d, err := m.hostd.make(t.Context(), fmt.Sprintf("other%d", len(m.hostd.disks)), controller, vmdk.MonolithicSparse, mib, false)
	if err != nil {
		t.Fatal(err)
	}
	v := &volume{disk: d, Volume: call.Volume{ID: d.id}}
	m.up(t, v)
	return v
}

// identified is the guest's disk with v's identity.
func (m *machine) identified(t *testing.T, v *volume) guest.Disk {
	t.Helper()
	var found []guest.Disk
	for _, d := range m.disks(t) {
		if d.Serial == v.uuid {
			found = append(found, d)
		}
	}
	if len(found) != 1 || found[0].Size != v.size {
		t.Fatalf("disks with serial number %s: %v", v.uuid, found)
	}
	return found[0]
}

// pulledOut: the hypervisor removes a disk that the guest uses. Its user is told, and the volume works again afterwards.
func pulledOut(t *testing.T, m *machine, controller int) {
	for _, s := range []shape{
		{"ext4", vmdk.MonolithicSparse, false, call.Volume{FSType: "ext4"}},
		{"block", vmdk.MonolithicFlat, false, call.Volume{}},
	} {
		if controller > 0 && s.name != "ext4" {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			v := m.volume(t, controller, s)
			m.up(t, v)
			m.must(t, "Write", v.file)
			m.pullOut(t, v)
			m.tells(t, v)
			// The pod is deleted, and a new one comes before the volume was unstaged.
			m.must(t, "Unpublish", v.Volume)
			m.up(t, v)
			m.reads(t, v)
			m.pullOut(t, v)
			m.down(t, v)
			m.up(t, v)
			m.reads(t, v)
			m.down(t, v)
			m.sound(t, v)
		})
	}
}

// tells: the user of a disk that is gone gets an error that says so.
func (m *machine) tells(t *testing.T, v *volume) {
	t.Helper()
	late := v.file
	if v.FSType != "" {
		late.Path += ".late"
	}
	r, err := m.do(t, "Write", late)
	if err == nil {
		t.Fatalf("a disk that is gone was written: %v", r)
	}
	for _, text := range []string{"input/output error", "read-only file system", "no such device"} {
		if strings.Contains(err.Error(), text) {
			t.Logf("the user of the disk sees: %v", err)
			return
		}
	}
	t.Fatalf("a write to a disk that is gone: %v", err)
}

// readOnly: the journal of a disk that was pulled out is replayed, and the disk's files stay as they are.
func readOnly(t *testing.T, m *machine, controller int) {
	for _, s := range []shape{
		{"ext4", vmdk.MonolithicSparse, false, call.Volume{FSType: "ext4"}},
		{"xfs", vmdk.MonolithicFlat, false, call.Volume{FSType: "xfs"}},
	} {
		if controller > 0 && s.name != "ext4" {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			v := m.volume(t, controller, s)
			m.up(t, v)
			m.must(t, "Write", v.file)
			m.pullOut(t, v)
			m.down(t, v)
			before := m.digest(t, v)
			v.Volume.ReadOnly = true
			m.up(t, v)
			m.reads(t, v)
			if r, err := m.do(t, "Write", v.file); err == nil || !strings.Contains(err.Error(), "read-only file system") {
				t.Errorf("a write to a read-only volume: %v %v", r, err)
			}
			if n := m.written(t, v); n == 0 {
				t.Error("nothing was written to the redo log: the journal was not replayed")
			}
			m.down(t, v)
			if m.digest(t, v) != before {
				t.Error("a read-only volume's files were written")
			}
			if left := m.redoLogs(t); len(left) > 0 {
				t.Errorf("redo logs are left: %v", left)
			}
			v.Volume.ReadOnly = false
			m.up(t, v)
			m.reads(t, v)
			m.down(t, v)
			m.sound(t, v)
		})
	}
}

func faults(t *testing.T, m *machine) {
	block := shape{kind: vmdk.MonolithicSparse}
	refused := func(t *testing.T, v *volume, code string, words ...string) {
		t.Helper()
		_, err := m.do(t, "Stage", v.Volume)
		if err == nil {
			t.Fatal("it was staged")
		}
		for _, w := range append(words, code) {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("the error does not say %q: %v", w, err)
			}
		}
		m.must(t, "Unstage", v.Volume)
		m.gone(t, v)
	}
	t.Run("DoesNotAppear", func(t *testing.T) {
		v := m.volume(t, 0, block)
		v.hide, v.Seconds = true, 3
		refused(t, v, "DeadlineExceeded", "did not appear in time", v.uuid)
	})
	t.Run("WrongSize", func(t *testing.T) {
		v := m.volume(t, 0, block)
		v.lie = func(w *guest.Want) { w.Size += mib }
		refused(t, v, "FailedPrecondition", fmt.Sprintf("has %d bytes and should have %d", v.size, v.size+mib))
	})
	// A controller without events: the kernel takes a disk for the one that was in its slot before.
	t.Run("SlotTaken", func(t *testing.T) {
		const lsi = 2
		old, v := m.volume(t, lsi, block), (*volume)(nil)
		t.Run("New", func(t *testing.T) { v = m.volume(t, lsi, block) })
		m.up(t, old)
		m.pullOut(t, old)
		refused(t, v, "FailedPrecondition", "where the kernel still has another one")
		m.down(t, old)
		m.up(t, v)
		m.down(t, v)
	})
}
