package remote_test

import (
	"errors"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/remote"
)

// A disk is reached by SAN; a snapshot turns its head to NBD and consolidation turns it back, while it is used.
func TestSnapshotTurnsToNBDAndBack(t *testing.T) {
	r := newRig(t)
	id := r.create("v", host.EagerZeroedThick)
	c, told := r.config(id, "node1")
	d := r.open(c)
	if s := d.State(); s.Transport != remote.SAN || len(s.Skipped) > 0 || s.Size != diskSize {
		t.Fatalf("it begins with %+v", s)
	}
	l := startLoad(t, d)
	api := r.api("mds")
	for range 3 {
		l.more(300)
		begin := time.Now()
		snap, err := api.CreateSnapshot(ctx, host.SnapshotSpec{Name: "s", Disk: id})
		must(t, err)
		if took := time.Since(begin); took > time.Second {
			t.Errorf("the map came back and the snapshot was taken after %v", took)
		}
		r.becomes(d, remote.NBD)
		until(t, "the reason is told", func() bool {
			s := d.State().Skipped
			return len(s) == 1 && s[0].Transport == remote.SAN && s[0].Reason.Kind == fault.Precondition && s[0].Reason.Message == "the disk has snapshots"
		})
		l.more(300)
		must(t, api.DeleteSnapshot(ctx, snap.ID), r.mds.consolidate(ctx, id))
		r.becomes(d, remote.SAN)
	}
	l.more(300)
	l.finish(d)
	all := told.list()
	if all[0].Transport != remote.SAN || all[len(all)-1].Transport != remote.SAN || len(all) < 7 {
		t.Errorf("told: %+v", all)
	}
	must(t, d.Close(), d.Close(), api.CloseVolume(ctx, id), r.api("node1").CloseVolume(ctx, id))
	if out := r.mds.maps.Outstanding(); len(out) > 0 {
		t.Errorf("maps are out: %+v", out)
	}
	r.stored(id, l.want)
	if _, err := d.ReadAt(make([]byte, 1), 0); !errors.Is(err, fault.Unavailable) {
		t.Errorf("a closed disk: %v", err)
	}
}
