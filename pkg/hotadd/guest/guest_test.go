package guest

import (
	"context"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

const (
	one = "6000c2971122334455667788990000aa"
	two = "6000c2971122334455667788990000bb"
)

// machine is a made-up sysfs and the disks behind it.
type machine struct {
	t    *testing.T
	sys  string
	says map[string]string // what disks say when they are asked, by name; "" does not answer
}

func newMachine(t *testing.T) *machine {
	return &machine{t: t, sys: t.TempDir(), says: map[string]string{}}
}

func (m *machine) kernel() Kernel {
	return Kernel{Sys: m.sys, Dev: "/dev", Ask: func(path string) (string, error) {
		if s := m.says[filepath.Base(path)]; s != "" {
			return s, nil
		}
		return "", errors.New("no answer")
	}}
}

func (m *machine) write(name, text string) {
	m.t.Helper()
	path := filepath.Join(m.sys, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) read(name string) string {
	m.t.Helper()
	b, err := os.ReadFile(filepath.Join(m.sys, name))
	if err != nil {
		m.t.Fatal(err)
	}
	return string(b)
}

func page80(serial string) string { return string([]byte{0, 0x80, 0, byte(len(serial))}) + serial }

// add is a disk as the kernel shows it, which says the same when it is asked.
func (m *machine) add(name, place, serial string, sectors int64) {
	m.t.Helper()
	dir := "class/scsi_device/" + place + "/device/"
	m.write(dir+"block/"+name+"/size", strconv.FormatInt(sectors, 10)+"\n")
	m.write(dir+"block/"+name+"/ro", "0\n")
	m.write(dir+"vpd_pg80", page80(serial))
	m.write(dir+"rescan", "")
	m.write("class/scsi_host/host"+place[:1]+"/scan", "")
	m.says[name] = serial
}

func TestFind(t *testing.T) {
	m := newMachine(t)
	m.add("sda", "0:0:0:0", "root", 2048)
	m.add("sdb", "1:0:3:0", strings.ToUpper(one)+"    ", 4096)
	m.says["sdb"] = one
	d, found, err := m.kernel().Find(one)
	if err != nil || !found || d.Path != "/dev/sdb" || d.Unit != 3 || d.Size != 2<<20 || d.ReadOnly {
		t.Fatalf("%+v %v %v", d, found, err)
	}
	if d, found, err := m.kernel().Find(two); found || err != nil {
		t.Fatalf("a disk that is not there: %v %v", d, err)
	}
	// The kernel was not told that the disk is gone.
	m.says["sdb"] = ""
	if d, found, err := m.kernel().Find(one); found || err != nil {
		t.Fatalf("a disk that does not answer: %v %v", d, err)
	}
	if all, err := m.kernel().Known(one); err != nil || len(all) != 1 {
		t.Fatalf("known: %v %v", all, err)
	}
	// It came back in another slot.
	m.add("sdc", "1:0:4:0", one, 4096)
	if d, found, err := m.kernel().Find(one); !found || err != nil || d.Name != "sdc" {
		t.Fatalf("%v %v %v", d, found, err)
	}
	m.says["sdb"] = one
	if _, _, err := m.kernel().Find(one); !errors.Is(err, fault.Precondition) {
		t.Fatalf("two disks with one identity: %v", err)
	}
}

// VMware's disks have their uuid as a name of 128 bits.
func TestFindByName(t *testing.T) {
	m := newMachine(t)
	m.add("sdb", "0:0:1:0", "", 2048)
	name, err := hex.DecodeString(one)
	if err != nil {
		t.Fatal(err)
	}
	text := append([]byte{2, 1, 0, 4}, "T10 "...) // ASCII, vendor's
	text = append(append(text, 1, 3, 0, 8), 0x50, 0x00, 0xc2, 0x91, 0, 0, 0, 0)
	text = append(append(text, 1, 3, 0, 16), name...)
	m.write("class/scsi_device/0:0:1:0/device/vpd_pg83", string([]byte{0, 0x83, 0, byte(len(text))})+string(text))
	m.says["sdb"] = one
	if d, found, err := m.kernel().Find(one); !found || err != nil || d.WWN != one {
		t.Fatalf("%+v %v %v", d, found, err)
	}
}

func TestHostilePages(t *testing.T) {
	for _, page := range []string{"", "\x00\x80", "\x00\x80\xff\xff", "\x00\x80\x00\x20abc", "\x00\x83\x00\x40\x01\x03\x00\x10abc", "\x00\x83\x00\x04\x01\x03\x00\xff", "\x00\x83\xff\xff\x01"} {
		if n := nameOf([]byte(page)); n != "" {
			t.Errorf("%q has the name %s", page, n)
		}
		if s := serialOf([]byte(page)); s != "" && s != "abc" {
			t.Errorf("%q has the serial number %s", page, s)
		}
	}
}

func (m *machine) wait(want Want) (Disk, error) {
	ctx, cancel := context.WithTimeout(m.t.Context(), rescanFirst+3*lookEvery)
	defer cancel()
	return m.kernel().Wait(ctx, want)
}

func TestWait(t *testing.T) {
	m := newMachine(t)
	m.add("sda", "0:0:0:0", "root", 2048)
	_, err := m.wait(Want{Serial: one, Unit: 3})
	if f := fault.From(err); !errors.Is(err, fault.Timeout) || f.Remedy == "" || !strings.Contains(err.Error(), "sda") {
		t.Fatalf("it did not appear: %v", err)
	}
	if what := m.read("class/scsi_host/host0/scan"); what != "- 3 -" {
		t.Errorf("rescan %q", what)
	}
	m.add("sdb", "0:0:3:0", one, 2048)
	if d, err := m.wait(Want{Serial: one, Size: 1 << 20, Unit: 3}); err != nil || d.Name != "sdb" {
		t.Fatalf("%v %v", d, err)
	}
	if _, err := m.wait(Want{Serial: one, Size: 2 << 20, Unit: -1}); !errors.Is(err, fault.Precondition) {
		t.Fatalf("it has another size: %v", err)
	}
	if m.read("class/scsi_device/0:0:3:0/device/rescan") != "1" {
		t.Error("the disk was not asked for its size")
	}
	// The kernel takes it for the disk that was in the slot.
	m.says["sdb"] = two
	start := time.Now()
	_, err = m.kernel().Wait(t.Context(), Want{Serial: two, Unit: 3})
	if f := fault.From(err); !errors.Is(err, fault.InUse) || !strings.Contains(f.Remedy, "sdb") || time.Since(start) > time.Minute {
		t.Fatalf("the slot is taken: %v", err)
	}
	if _, err := m.wait(Want{Serial: two, Unit: 4}); !errors.Is(err, fault.Timeout) {
		t.Fatalf("the slot of another disk: %v", err)
	}
}

func TestForget(t *testing.T) {
	m := newMachine(t)
	if err := m.kernel().Rescan(-1); !errors.Is(err, fault.NotFound) {
		t.Errorf("rescan without hosts: %v", err)
	}
	m.write("class/scsi_host/host0/scan", "")
	m.write("class/scsi_host/host2/scan", "")
	m.write("block/sdb/device/delete", "")
	if err := errors.Join(m.kernel().Rescan(-1), m.kernel().Forget("sdb"), m.kernel().Forget("sdc")); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"class/scsi_host/host0/scan": "- - -", "class/scsi_host/host2/scan": "- - -", "block/sdb/device/delete": "1"} {
		if got := m.read(name); got != want {
			t.Errorf("%s: %q", name, got)
		}
	}
	if err := m.kernel().Forget("../x"); !errors.Is(err, fault.Invalid) {
		t.Errorf("a path: %v", err)
	}
}
