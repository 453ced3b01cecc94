package volume_test

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/datastore"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
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

// silent is a worker that does not answer, and grows on.
type silent struct{ kind fault.Kind }

func (s silent) Grow(context.Context, int64) error {
	return fault.New(s.kind, "", "the worker did not answer")
}

// The worker finishes a growth after its supervisor gave up: the manifest must not have settled on the old size.
func TestGrowthWithoutAnAnswer(t *testing.T) {
	for _, kind := range []fault.Kind{fault.Timeout, fault.Unavailable} {
		p := place{t.TempDir()}
		v := p.host(t, "a", "1")
		d := create(t, v, "x")
		o := acquire(t, v, d.ID)
		_, err := v.Expand(t.Context(), d.ID, 8*mib, silent{kind})
		wantKind(t, err, kind, "expand")
		dir, err := fsx.OpenRoot(filepath.Join(p.path, "volumes", d.ID))
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		if err := (volume.VMDK{}).Grow(t.Context(), dir, o.Links, 8*mib, host.Thin); err != nil {
			t.Fatal(err)
		}
		o = acquire(t, p.host(t, "a", "2"), d.ID) // the machine was restarted
		c, err := chain.Open(dir, volume.Refs(o.Links), chain.Options{})
		if err != nil {
			t.Fatalf("attached with %d bytes: %v", o.Size, err)
		}
		if err := c.Close(); err != nil || o.Size != 8*mib {
			t.Errorf("attached with %d bytes: %v", o.Size, err)
		}
	}
}
