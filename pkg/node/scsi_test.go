package node

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/hotadd/guest"
)

// sysfs is a made-up machine with SCSI disks, whose nodes are files.
type sysfs struct {
	t    *testing.T
	dir  string
	dead map[string]bool // disks that do not answer, by path
}

const scsiSerial = "6000c2971122334455667788990000aa"

func (f *sysfs) devices() SCSIDevices {
	return SCSIDevices{
		Kernel: guest.Kernel{Sys: f.dir, Dev: f.dir, Ask: func(path string) (string, error) {
			if f.dead[path] {
				return "", errors.New("no answer")
			}
			return scsiSerial, nil
		}},
		Identify: func(_ context.Context, id string) (guest.Want, error) {
			if id != "d" {
				return guest.Want{}, fault.New(fault.NotFound, "", "no disk %s", id)
			}
			return guest.Want{Serial: scsiSerial, Size: mib, Unit: -1}, nil
		},
	}
}

func (f *sysfs) write(name, text string) {
	f.t.Helper()
	path := filepath.Join(f.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

func (f *sysfs) add(name, place string) {
	f.t.Helper()
	dir := "class/scsi_device/" + place + "/device/"
	f.write(dir+"block/"+name+"/size", strconv.Itoa(mib/512))
	f.write(dir+"block/"+name+"/ro", "1")
	f.write(dir+"vpd_pg80", string([]byte{0, 0x80, 0, 32})+scsiSerial)
	f.write(dir+"rescan", "")
	f.write("block/"+name+"/device/delete", "")
	f.write(name, "")
}

// forgets is the kernel: it drops each disk whose delete attribute is written, until the test ends.
func (f *sysfs) forgets(name, place string) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for f.t.Context().Err() == nil {
			if b, err := os.ReadFile(filepath.Join(f.dir, "block", name, "device/delete")); err == nil && string(b) == "1" {
				_ = os.RemoveAll(filepath.Join(f.dir, "class/scsi_device", place))
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	f.t.Cleanup(func() { <-done })
}

func TestSCSIDevices(t *testing.T) {
	f := &sysfs{t: t, dir: t.TempDir(), dead: map[string]bool{}}
	v := f.devices()
	for _, id := range []string{"d", "other"} {
		if d, found, err := v.Find(id); found || err != nil {
			t.Fatalf("before the attach: %v %v", d, err)
		}
		if err := v.Release(t.Context(), id); err != nil {
			t.Fatalf("nothing to release: %v", err)
		}
	}
	f.add("sdb", "0:0:2:0")
	s, err := v.NewSession("d")
	if err != nil || s.Device().Fuse != nil {
		t.Fatal(err)
	}
	d, err := s.Export(t.Context(), ExportOptions{ReadOnly: true})
	if err != nil || d.Path != filepath.Join(f.dir, "sdb") || d.Size != mib || !d.ReadOnly || d.Hold == nil {
		t.Fatalf("%+v %v", d, err)
	}
	d.Close()
	if err := v.Resize(d); err != nil {
		t.Error(err)
	}
	if err := v.Resize(Device{Path: "/dev/sdz"}); !errors.Is(err, fault.NotFound) {
		t.Errorf("resize of a disk that is gone: %v", err)
	}
	found, ok, err := v.Find("d")
	if !ok || err != nil || found.Path != d.Path {
		t.Fatalf("%+v %v", found, err)
	}
	found.Close()
	short, cancel := context.WithTimeout(t.Context(), 3*releaseLookEvery)
	defer cancel()
	if err := v.Release(short, "d"); !errors.Is(err, fault.InUse) {
		t.Fatalf("the kernel does not let it go: %v", err)
	}
	f.forgets("sdb", "0:0:2:0")
	if err := v.Release(t.Context(), "d"); err != nil {
		t.Fatal(err)
	}
}

// A disk that was pulled out of a controller without events is not found, and is forgotten.
func TestSCSIDeviceThatIsGone(t *testing.T) {
	f := &sysfs{t: t, dir: t.TempDir(), dead: map[string]bool{}}
	v := f.devices()
	f.add("sdb", "0:0:2:0")
	f.dead[filepath.Join(f.dir, "sdb")] = true
	if d, found, err := v.Find("d"); found || err != nil {
		t.Fatalf("%v %v", d, err)
	}
	f.forgets("sdb", "0:0:2:0")
	if err := v.Release(t.Context(), "d"); err != nil {
		t.Fatal(err)
	}
}
