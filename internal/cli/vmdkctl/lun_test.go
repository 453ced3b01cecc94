package vmdkctl

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/datastore"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/lease"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/store"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
	"github.com/vmdk-csi/vmdk-csi/pkg/volume"
)

// lunDisks are disks of the engine on a LUN: of each kind one, with the same content below and above a snapshot.
func (r *rig) lunDisks(path string, kinds map[string]host.DiskSpec) map[string][]byte {
	r.t.Helper()
	must := func(errs ...error) {
		r.t.Helper()
		if err := errors.Join(errs...); err != nil {
			r.t.Fatal(err)
		}
	}
	lun, err := fsx.OpenDevice(path, fsx.ReadWrite|fsx.Direct)
	must(err)
	defer lun.Close()
	s, err := store.Open(lun, store.Options{})
	must(err)
	ds, err := datastore.Open(s.Root(), datastore.Options{})
	must(err)
	vols := volume.New(volume.Config{Store: ds, Name: "lun", Host: lease.Identity{Host: "a", BootID: "1"}, Engine: volume.VMDK{}})
	ctx, content := context.Background(), map[string][]byte{}
	for name, spec := range kinds {
		_, err := vols.Create(ctx, spec)
		must(err)
		want := make([]byte, spec.Size)
		for round := range 2 {
			o, err := vols.OpenForAttach(ctx, host.DiskID(name), false)
			must(err)
			must(o.Dir.Close())
			all, err := s.Root().Sub("volumes")
			must(err)
			dir, err := all.Sub(host.DiskID(name))
			must(err)
			c, err := chain.Open(dir, volume.Refs(o.Links), chain.Options{Pending: &chain.MemoryPending{}, Format: vmdk.Thin, Locks: true})
			must(err)
			p := bytes.Repeat([]byte(name[:1]+string(rune('0'+round))), 150<<10)
			off := int64(1<<20 + round*200<<10 + 512)
			copy(want[off:], p)
			_, err = c.WriteAt(p, off)
			must(err, c.Close(), vols.Release(ctx, host.DiskID(name), o.Epoch, false))
			if round == 0 {
				_, err = vols.Snapshot(ctx, host.SnapshotSpec{Name: "snap-" + name, Disk: host.DiskID(name)}, time.Time{}, nil)
				must(err)
			}
		}
		content[name] = want
	}
	ds.Close()
	must(s.Close())
	return content
}

// TestLUN: what the engine wrote on a LUN comes out as VMDK files that QEMU reads.
func TestLUN(t *testing.T) {
	r := newRig(t)
	if err := errors.Join(os.WriteFile(r.path("lun"), nil, 0o600), os.Truncate(r.path("lun"), 96<<20)); err != nil {
		t.Fatal(err)
	}
	r.fails(cli.ExitFailed, "no store", "lun", "info", "lun")
	r.ok("lun", "format", "lun", "--area-size", "1M")
	r.fails(cli.ExitFailed, "not empty", "lun", "format", "lun")
	kinds := map[string]host.DiskSpec{
		"thin":  {Name: "thin", Datastore: "lun", Size: 16 << 20, Format: host.Thin, Type: host.MonolithicSparse},
		"flat":  {Name: "flat", Datastore: "lun", Size: 16 << 20, Format: host.EagerZeroedThick, Type: host.MonolithicFlat},
		"split": {Name: "split", Datastore: "lun", Size: 16 << 20, Format: host.Thin, Type: host.TwoGbMaxExtentSparse},
	}
	content := r.lunDisks(r.path("lun"), kinds)
	var report store.Report
	r.json(&report, "lun", "check", "lun")
	if len(report.Problems)+len(report.Notes) > 0 || report.Info.Files < 12 {
		t.Errorf("%+v", report)
	}
	if out := r.ok("lun", "ls", "-R", "lun"); !strings.Contains(out, "disk-flat.vmdk") {
		t.Errorf("ls:\n%s", out)
	}
	for name, want := range content {
		r.ok("lun", "export", "lun", name, "out-"+name)
		if err := os.WriteFile(r.path(name+".raw"), want, 0o600); err != nil {
			t.Fatal(err)
		}
		head := "out-" + name + "/disk-000001.vmdk"
		r.peer("qemu-img", "compare", "-f", "vmdk", "-F", "raw", head, name+".raw")
		if err := os.Remove(r.path("out-" + name + "/record.json")); err != nil { // plain files, without a datastore around them
			t.Fatal(err)
		}
		r.ok("check", head)
	}
	r.fails(cli.ExitFailed, "exists", "lun", "export", "lun", "thin", "out-thin")
	r.fails(cli.ExitFailed, "no file", "lun", "export", "lun", "nobody", "out")
	r.lunBroken()
}

// lunBroken: a LUN in use, and one whose catalogue is damaged.
func (r *rig) lunBroken() {
	r.t.Helper()
	lun, err := fsx.OpenDevice(r.path("lun"), fsx.ReadWrite|fsx.Direct)
	if err != nil {
		r.t.Fatal(err)
	}
	defer lun.Close()
	if err := lun.Lock(fsx.LockWrite); err != nil {
		r.t.Fatal(err)
	}
	r.fails(cli.ExitInUse, "lock", "lun", "export", "lun", "thin", "out")
	r.fails(cli.ExitInUse, "lock", "lun", "format", "--force", "lun")
	r.ok("lun", "info", "lun")
	junk := bytes.Repeat([]byte("?"), 4096)
	for _, at := range []int64{1 << 20, 2 << 20} {
		if _, err := lun.WriteAt(junk, at); err != nil {
			r.t.Fatal(err)
		}
	}
	if res := r.run("lun", "check", "lun"); res.code != cli.ExitDamaged || !strings.Contains(res.out, "damaged: ") {
		r.t.Errorf("check of a damaged catalogue: %+v", res)
	}
	r.fails(cli.ExitDamaged, "magic", "lun", "ls", "lun")
}
