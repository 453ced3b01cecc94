package volume_test

import (
	"context"
	"strings"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/datastore"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/volume"
)

// dying grows the files and dies before its caller can commit what came of it.
type dying struct{ volume.VMDK }

func (d dying) Grow(ctx context.Context, dir fsx.Dir, l []datastore.Link, size int64, f host.DiskFormat) error {
	if err := d.VMDK.Grow(ctx, dir, l, size, f); err != nil {
		return err
	}
	return fault.New(fault.Poisoned, "", "died here")
}

// A growth into a new extent dies between the descriptor, which names the extent, and the manifest, which does not yet:
// the extent is no garbage.
func TestInterruptedGrowthKeepsItsExtents(t *testing.T) {
	p := place{t.TempDir()}
	v := p.host(t, "a", "1")
	s := spec("split")
	s.Type, s.Size = host.TwoGbMaxExtentSparse, vmdk.MaxSparseExtent
	d, err := v.Create(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	want := s.Size + 10<<30
	_, err = p.engine(t, dying{}).Expand(t.Context(), d.ID, want, nil)
	wantKind(t, err, fault.Poisoned, "the expansion that dies")
	if files := p.files(t); !strings.Contains(files, "disk-s002.vmdk") {
		t.Fatalf("the growth made no second extent: %s", files)
	}
	o, err := v.OpenForAttach(t.Context(), d.ID, false)
	if err != nil {
		t.Fatalf("attach after it: %v\n%s", err, p.files(t))
	}
	o.Dir.Close()
	if head := o.Links[0]; o.Size != want || len(head.Extents) != 2 || head.Size != want {
		t.Fatalf("%+v", o)
	}
	if err := v.Release(t.Context(), d.ID, o.Epoch, false); err != nil {
		t.Fatal(err)
	}
}
