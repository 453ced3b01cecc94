package lun_test

import (
	"bytes"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/lun"
)

func (m *machine) server() *lun.Server {
	m.r.t.Helper()
	s, err := m.owner.Server()
	must(m.r.t, err)
	return s
}

// What the server has answered survives it without a flush, whether it needed a place in a grain table, an extent of the store or
// nothing.
func TestAnsweredSurvives(t *testing.T) {
	r := newRig(t)
	first, second := r.start("mds-1"), r.start("mds-2")
	first.serve()
	specs := []host.DiskSpec{
		{Name: "thin"}, {Name: "thick", Format: host.EagerZeroedThick}, {Name: "sparse", Type: host.TwoGbMaxExtentSparse},
		{Name: "cowd", Type: host.VMFSSparse}, {Name: "delta"},
	}
	for _, spec := range specs {
		spec.Datastore, spec.Size = "lun", 8*mib
		d, err := first.Create(t.Context(), spec)
		must(t, err)
		if spec.Name == "delta" {
			_, err := first.CreateSnapshot(t.Context(), host.SnapshotSpec{Name: "s", Disk: d.ID})
			must(t, err)
		}
		o, err := first.server().Open(t.Context(), d.ID, "node", false)
		must(t, err)
		for i := range 40 {
			_, err := o.Export.Device.WriteAt(pattern(byte(i), 4096), int64(i)*200<<10)
			must(t, err)
		}
		must(t, o.Export.Device.WriteZeroes(200<<10, 4096))
	}
	go first.kill()
	second.serve()
	for _, spec := range specs {
		o, err := second.server().Open(t.Context(), host.DiskID(spec.Name), "node", false)
		must(t, err)
		p := make([]byte, 4096)
		for i := range 40 {
			want := pattern(byte(i), 4096)
			if i == 1 {
				want = make([]byte, 4096)
			}
			if _, err := o.Export.Device.ReadAt(p, int64(i)*200<<10); err != nil || !bytes.Equal(p, want) {
				t.Errorf("%s: write %d is lost: %x (%v)", spec.Name, i, p[:4], err)
			}
		}
		must(t, second.server().Close(t.Context(), host.DiskID(spec.Name), "node"))
	}
}

// Sessions outlive servers: who has a disk has it until it closes it.
func TestSessions(t *testing.T) {
	r := newRig(t)
	first, second := r.start("mds-1"), r.start("mds-2")
	first.serve()
	s := first.server()
	w, ro := first.create("w"), first.create("r")
	open := func(s *lun.Server, id, node string, readOnly bool, want fault.Kind) {
		t.Helper()
		_, err := s.Open(t.Context(), id, node, readOnly)
		kind(t, err, want, "open "+id+" for "+node)
	}
	again := func(s *lun.Server) {
		t.Helper()
		open(s, w.ID, "a", false, "")
		open(s, w.ID, "a", true, fault.Precondition)
		open(s, w.ID, "b", false, fault.InUse)
		open(s, w.ID, "b", true, fault.InUse)
		open(s, ro.ID, "a", true, "")
		open(s, ro.ID, "b", true, "")
		open(s, ro.ID, "c", false, fault.InUse)
		open(s, host.DiskID("nobody"), "a", false, fault.NotFound)
		open(s, "..", "a", false, fault.NotFound)
	}
	again(s)
	again(s)
	first.quit()
	second.serve()
	s = second.server()
	kind(t, s.Delete(t.Context(), w.ID), fault.InUse, "delete an open disk")
	again(s)
	must(t, s.Close(t.Context(), w.ID, "b"), s.Close(t.Context(), w.ID, "a"), s.Close(t.Context(), w.ID, "a"))
	open(s, w.ID, "b", false, "")
	must(t, s.Close(t.Context(), ro.ID, "a"))
	open(s, ro.ID, "c", false, fault.InUse)
	must(t, s.Close(t.Context(), ro.ID, "b"))
	open(s, ro.ID, "c", false, "")
	must(t, s.Close(t.Context(), ro.ID, "c"), s.Close(t.Context(), w.ID, "b"))
	must(t, s.Delete(t.Context(), w.ID), s.Delete(t.Context(), ro.ID))
}
