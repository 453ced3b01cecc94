package vmdk

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx/sim"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// twoLinks is a base of the type and a child of it.
func twoLinks(t *testing.T, typ Type) (fsx.Dir, *sim.FS) {
	t.Helper()
	s := sim.New(sim.Options{})
	d := s.Root()
	if _, err := Create(context.Background(), d, "disk.vmdk", CreateParams{Type: typ, Capacity: 3 << 20, ExtentSize: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	l, err := Open(d, "disk.vmdk", Options{})
	if err != nil {
		t.Fatal(err)
	}
	p := CreateParams{Type: TwoGbMaxExtentSparse, Capacity: l.Size(), Parent: l.AsParent()}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(context.Background(), d, "disk-000001.vmdk", p); err != nil {
		t.Fatal(err)
	}
	return d, s
}

// TestDelete: nothing goes while a child needs it or in a dry run; else descriptor and extents, and nothing besides.
func TestDelete(t *testing.T) {
	for _, typ := range Creatable() {
		t.Run(string(typ), func(t *testing.T) {
			d, s := twoLinks(t, typ)
			before := s.Copy()
			if _, err := Delete(d, "disk.vmdk", false); fault.KindOf(err) != fault.Precondition {
				t.Errorf("the parent of a child: %v", err)
			}
			plan, err := Delete(d, "disk-000001.vmdk", true)
			if err != nil {
				t.Fatal(err)
			}
			if !s.Equal(before) {
				t.Error("a refusal or a dry run changed something")
			}
			files, err := Delete(d, "disk-000001.vmdk", false)
			if err != nil || !slices.Equal(files, plan) || len(files) != 2 {
				t.Errorf("deleted %v, planned %v (%v)", files, plan, err)
			}
			if _, err := Delete(d, "disk.vmdk", false); err != nil {
				t.Error(err)
			}
			if left, err := d.List(); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v (%v)", left, err)
			}
			if _, err := Delete(d, "disk.vmdk", false); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("what is not there: %v", err)
			}
		})
	}
}

// TestPlans: a plan says what is then done, and does nothing.
func TestPlans(t *testing.T) {
	d, s := twoLinks(t, TwoGbMaxExtentSparse)
	before := s.Copy()
	plan, err := PlanRename(d, "disk.vmdk", "other.vmdk")
	if err != nil {
		t.Fatal(err)
	}
	compact, err := PlanDefragment(context.Background(), d, "disk-000001.vmdk")
	if err != nil {
		t.Fatal(err)
	}
	if !s.Equal(before) {
		t.Error("a plan changed something")
	}
	if _, err := PlanRename(d, "disk.vmdk", "disk.vmdk"); fault.KindOf(err) != fault.Invalid {
		t.Errorf("to its own name: %v", err)
	}
	if _, err := PlanRename(d, "disk.vmdk", "disk-000001.vmdk"); err == nil {
		t.Error("to the name of another disk")
	}
	done, err := Defragment(context.Background(), d, "disk-000001.vmdk", nil)
	if err != nil || done != compact {
		t.Errorf("defragmented %+v, planned %+v (%v)", done, compact, err)
	}
	renamed, err := Rename(d, "disk.vmdk", "other.vmdk")
	if err != nil || !slices.Equal(renamed.Files, plan.Files) || !slices.Equal(renamed.Children, plan.Children) || len(plan.Children) != 1 {
		t.Errorf("renamed %+v, planned %+v (%v)", renamed, plan, err)
	}
}
