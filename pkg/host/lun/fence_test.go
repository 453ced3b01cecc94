package lun_test

import (
	"bytes"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/remote"
	"github.com/vmdk-csi/vmdk-csi/pkg/san"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/iscsi/iscsitest"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/lunpath"
)

// With reservations a node that is silent is cut off before its disk goes elsewhere: what it sends later does not reach the LUN, whose
// next user, on another machine, is not disturbed. The reservation goes to the next server.
func TestFencing(t *testing.T) {
	r := newRigAt(t, iscsitest.New(t, 256*mib).URL())
	first, second, a := r.start("mds-1"), r.start("mds-2"), r.start("node-a")
	first.serve()
	d := a.create("x")
	s := first.server()
	_, err := s.Open(t.Context(), d.ID, "silent", false)
	must(t, err)
	m, err := s.Maps().Get(t.Context(), san.Request{Volume: d.ID, Node: "silent", Mode: san.ReadWrite})
	must(t, err)
	if m.LUNs[0].Key == 0 {
		t.Fatal("the map tells no key")
	}
	f, _, err := lunpath.Open(t.Context(), r.path, lunpath.Options{ReadWrite: true}.Want(m.LUNs[0]))
	must(t, err)
	defer f.Close()
	node, err := san.NewMapper(m, san.MapperConfig{LUNs: []fsx.File{f}, Sent: san.BootTime{}.Now()})
	must(t, err)
	_, err = node.WriteAt(pattern(1, 8192), 0)
	must(t, err)
	eventually(t, "the silent node's map has ended", func() bool { return len(s.Maps().Outstanding()) == 0 })
	must(t, s.Close(t.Context(), d.ID, "silent"))

	att, w := a.attach(d.ID)
	if att.Transport != remote.SAN {
		t.Fatalf("%+v", att)
	}
	check(t, w, 0, 1)
	write(t, w, 0, 2)
	at := m.Extents[0].Place
	if _, err := f.WriteAt(pattern(9, 8192), at); fault.KindOf(err) != fault.Fenced {
		t.Fatalf("the late write of a node that was cut off: %v", err)
	}
	check(t, w, 0, 2)

	first.quit()
	second.serve()
	write(t, w, 8192, 3)
	p := make([]byte, 8192)
	if _, err := w.ReadAt(p, 0); err != nil || !bytes.Equal(p, pattern(2, 8192)) {
		t.Fatalf("%x %v", p[:4], err)
	}
	a.detach(d.ID)
}
