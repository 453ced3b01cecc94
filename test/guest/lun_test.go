package guest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/datastore"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/lease"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/store"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
	volumes "github.com/vmdk-csi/vmdk-csi/pkg/volume"
	"github.com/vmdk-csi/vmdk-csi/test/guest/call"
)

const lunDiskSize = 16 * mib

// makeLUN makes a LUN in a file with two disks: "flat" can be written by a map, "sparse" only read.
func (m *machine) makeLUN() error {
	f, err := os.Create(m.path("lun"))
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(128*mib), f.Close()); err != nil {
		return err
	}
	lun, err := fsx.OpenDevice(m.path("lun"), fsx.ReadWrite|fsx.Direct)
	if err != nil {
		return err
	}
	defer lun.Close()
	if _, err := store.Format(lun, store.FormatOptions{AreaSize: mib}); err != nil {
		return err
	}
	return onLUN(lun, func(v *volumes.Volumes, _ fsx.Dir) error {
		for name, typ := range map[string]host.DiskType{"flat": host.MonolithicFlat, "sparse": host.MonolithicSparse} {
			spec := host.DiskSpec{Name: name, Datastore: "lun", Size: lunDiskSize, Type: typ}
			if typ == host.MonolithicFlat {
				spec.Format = host.EagerZeroedThick
			}
			if _, err := v.Create(context.Background(), spec); err != nil {
				return err
			}
		}
		return nil
	})
}

// onLUN opens the store as its owner.
func onLUN(lun fsx.File, do func(v *volumes.Volumes, root fsx.Dir) error) (err error) {
	s, err := store.Open(lun, store.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	ds, err := datastore.Open(s.Root(), datastore.Options{})
	if err != nil {
		return err
	}
	defer ds.Close()
	return do(volumes.New(volumes.Config{Store: ds, Name: "lun", Engine: volumes.VMDK{}, Host: lease.Identity{Host: "outside", BootID: "1"}}), s.Root())
}

// deviceMapper: a disk on a LUN is a device of the guest's kernel, which no process serves; what is written to it is in the VMDK.
func deviceMapper(t *testing.T, m *machine) {
	begin := func(args ...string) (r call.Command) {
		t.Helper()
		if err := m.call("Begin", call.Command{Args: append([]string{"lun", "device", "/dev/vda"}, args...)}, &r); err != nil {
			t.Fatal(err)
		}
		return r
	}
	end := func() (r call.Command) {
		t.Helper()
		if err := m.call("End", call.Text{}, &r); err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := begin("sparse"); r.Code == 0 || !strings.Contains(r.Output, "--read-only") {
		t.Errorf("a sparse disk to write: %+v", r)
	}
	r := begin("flat")
	if r.Code != 0 || !strings.HasPrefix(r.Device, "/dev/dm-") || !strings.Contains(r.Output, "linear 254:") {
		t.Fatalf("%+v\n%s", r, m.console())
	}
	if again := begin("sparse", "--read-only"); again.Code == 0 || !strings.Contains(again.Output, "owned by") {
		t.Errorf("a second owner: %+v", again)
	}
	w := call.Write{Path: r.Device, Size: lunDiskSize, Seed: 7}
	m.must(t, "Write", w)
	if got := m.must(t, "Read", w); got != w.Digest() {
		t.Errorf("the guest reads %s", got)
	}
	if e := end(); e.Code != 0 {
		t.Errorf("%+v", e)
	}
	if r := begin("sparse", "--read-only"); r.Code != 0 || !strings.Contains(r.Output, "zero") {
		t.Errorf("read-only: %+v", r)
	} else {
		empty := call.Write{Path: r.Device, Size: lunDiskSize}
		if got, want := m.must(t, "Read", empty), fmt.Sprintf("%x", sha256.Sum256(make([]byte, lunDiskSize))); got != want {
			t.Errorf("an empty disk reads as %s", got)
		}
		if _, err := m.do(t, "Write", call.Write{Path: r.Device, Size: 4096}); err == nil {
			t.Error("a read-only device was written")
		}
		if e := end(); e.Code != 0 {
			t.Errorf("%+v", e)
		}
	}
	m.holds(t, "flat", w)
}

// holds: outside, the disk on the LUN holds what the guest wrote, and its store and its VMDK are whole.
func (m *machine) holds(t *testing.T, name string, w call.Write) {
	t.Helper()
	lun, err := fsx.OpenDevice(m.path("lun"), fsx.ReadWrite|fsx.Direct)
	if err != nil {
		t.Fatal(err)
	}
	defer lun.Close()
	if r, err := store.Check(lun); err != nil || len(r.Problems) > 0 {
		t.Errorf("the store: %v %v", r.Problems, err)
	}
	id := host.DiskID(name)
	err = onLUN(lun, func(v *volumes.Volumes, root fsx.Dir) error {
		links, err := v.Links(id)
		if err != nil {
			return err
		}
		dir, err := root.Sub("volumes")
		if err != nil {
			return err
		}
		if dir, err = dir.Sub(id); err != nil {
			return err
		}
		c, err := chain.Open(dir, volumes.Refs(links), chain.Options{ReadOnly: true})
		if err != nil {
			return err
		}
		defer c.Close()
		got := make([]byte, w.Size)
		if _, err := c.ReadAt(got, 0); err != nil {
			return err
		}
		if sum := fmt.Sprintf("%x", sha256.Sum256(got)); sum != w.Digest() {
			t.Errorf("the disk holds %s, written was %s", sum, w.Digest())
		}
		if rep, err := chain.Check(t.Context(), dir, volumes.Refs(links)); err != nil || len(rep.Problems) > 0 {
			t.Errorf("%v %v", rep.Problems, err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
