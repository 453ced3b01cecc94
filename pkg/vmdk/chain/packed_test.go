package chain_test

import (
	"bytes"
	"io"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

type fileWriter struct {
	f   io.WriterAt
	off int64
}

func (w *fileWriter) Write(p []byte) (int, error) {
	n, err := w.f.WriteAt(p, w.off)
	w.off += int64(n)
	return n, err
}

// TestStreamBase: a streamOptimized disk is the base of a child that is written, has snapshots and is merged: up only, because
// nothing can be written below.
func TestStreamBase(t *testing.T) {
	d := newDisk(t, seeded(t), vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse, Capacity: 3*mib + 11*512})
	f, err := d.dir.Open("stream.vmdk", fsx.ReadWrite|fsx.Create)
	if err != nil {
		t.Fatal(err)
	}
	for i := range d.want {
		d.want[i] = byte(i>>10) * byte(d.r.IntN(2))
	}
	w, err := vmdk.NewStreamWriter(&fileWriter{f: f}, f, vmdk.StreamParams{Capacity: int64(len(d.want)), Name: "stream.vmdk"})
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{w.WriteGrains(d.want, 0), w.Close(), f.Close()} {
		if err != nil {
			t.Fatal(err)
		}
	}
	d.refs = []chain.Ref{{Name: "stream.vmdk"}}
	d.addChild(vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse})
	d.open()
	d.checkAll()
	d.steps(20)
	if err := d.c.Merge(t.Context(), chain.MergeParams{Lower: 0, Direction: chain.Down}); fault.KindOf(err) != fault.Unsupported {
		t.Errorf("a merge into compressed grains: %v", err)
	}
	d.checkAll()
	if err := d.c.Merge(t.Context(), chain.MergeParams{Lower: 0, Direction: chain.Up}); err != nil {
		t.Fatal(err)
	}
	d.checkAll()
	d.close()
	d.refs = d.refs[1:]
	d.open()
	got := make([]byte, len(d.want))
	if _, err := d.c.ReadAt(got, 0); err != nil || !bytes.Equal(got, d.want) {
		t.Errorf("without its base: other content (%v)", err)
	}
	d.close()
	d.sound()
	d.qemuReads()
}
