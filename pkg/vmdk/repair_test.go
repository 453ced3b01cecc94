package vmdk

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// inConflict is an image whose table and copy name different places for grain 5, and each could be right.
func inConflict(t *testing.T) (im *image, x *sparseAt) {
	im = newImage(t, formats[0]).clone()
	x = im.at(0)
	at := roundUp(x.end(), 65536)
	x.put(at, bytes.Repeat([]byte{0x77}, 65536)...)
	x.put(x.rgte(5), u32(uint32(at/SectorSize))...)
	return im, x
}

// TestRepairPrefer: between two places that could both be right nobody but the caller decides, unless the extent was not closed:
// then the table's holds what was flushed.
func TestRepairPrefer(t *testing.T) {
	ctx := context.Background()
	for _, c := range []struct {
		prefer  string
		unclean bool
		left    bool
		same    bool
	}{{"", false, true, true}, {PreferPrimary, false, false, true}, {PreferRedundant, false, false, false}, {"", true, false, true}} {
		im, x := inConflict(t)
		if c.unclean {
			x.put(offUnclean, 1)
		}
		d := im.dir()
		before := im.read(d)
		r, err := Repair(ctx, d, imageName, RepairParams{Fix: Repairable, Loss: true, Prefer: c.prefer})
		if err != nil {
			t.Fatal(err)
		}
		after := im.read(d)
		if has(&r.After, TableCopiesDiffer) != c.left || (before[5].hash == after[5].hash) != c.same || (len(r.Lost) > 0) != (c.prefer != "") {
			t.Errorf("%+v: %+v", c, r)
		}
		if r.Content == c.same {
			t.Errorf("%+v: content changed: %v", c, r.Content)
		}
	}
	im, _ := inConflict(t)
	if _, err := Repair(ctx, im.dir(), imageName, RepairParams{Prefer: "best"}); !errors.Is(err, fault.Invalid) {
		t.Errorf("%v", err)
	}
}

// TestRepairOnlyWhatIsAsked: another code changes nothing; without Loss what is lost stays as it is.
func TestRepairOnlyWhatIsAsked(t *testing.T) {
	healthy := newImage(t, formats[2])
	for _, m := range sparseMutations {
		if !m.fixed {
			continue
		}
		im := healthy.clone()
		m.do(im.at(0))
		for _, p := range []RepairParams{{Fix: []Code{ContentIDsDiffer, GrainUnaligned}, Loss: true}, {Fix: Repairable}} {
			lossless := len(p.Fix) == len(Repairable)
			if slices.Contains(p.Fix[:2], m.code) || lossless && m.lossless || lossless && m.code == GrainShared {
				continue // asked for, and nothing is lost by it
			}
			d := im.dir()
			r, err := Repair(context.Background(), d, imageName, p)
			if err != nil || r.Undo != "" || !has(&r.After, m.code) {
				t.Errorf("%s, %v: %+v %v", m.name, p.Fix[:2], r, err)
			}
			im.unchanged(t, d, m.name)
		}
	}
}

// TestRepairOneDirectory: an extent whose directories are one and the same gets a second one.
func TestRepairOneDirectory(t *testing.T) {
	im := newImage(t, formats[0]).clone()
	x := im.at(0)
	x.put(48, u64(x.h.gdOff)...)
	rep, err := Check(context.Background(), im.dir(), imageName)
	if err != nil || !has(&rep, MetadataOverlaps) || !rep.Sound() {
		t.Fatalf("%v %v", rep.Problems, err)
	}
	want := im.content
	if after := tryRepair(t, im, want); len(after.Problems) > 1 || has(after, MetadataOverlaps) {
		t.Errorf("%v", after.Problems)
	}
	same(t, want, im.read(im.dir()), nil)
}

// TestRepairHeaderOfEmptyDisk: nothing tells the grain size of a disk without grains, and nothing depends on it.
func TestRepairHeaderOfEmptyDisk(t *testing.T) {
	s := newSimRoot()
	if _, err := Create(context.Background(), s, imageName, CreateParams{Type: MonolithicSparse, Capacity: 100 << 20}); err != nil {
		t.Fatal(err)
	}
	patch(t, s, imageName, 0, make([]byte, SectorSize)...)
	r, err := Repair(context.Background(), s, imageName, RepairParams{Fix: []Code{ExtentDamaged}})
	if err != nil || len(r.After.Problems) > 0 {
		t.Errorf("%+v %v", r, err)
	}
}

// TestOverlayRefuses: what has no place in a repair is no operation of its plan.
func TestOverlayRefuses(t *testing.T) {
	d := newSimRoot()
	if err := writeFile(d, "a", make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	o := newOverlay(d)
	defer o.Close()
	f, err := o.Open("a", fsx.ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	ro, err := o.Open("a", fsx.ReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	_, create := o.Open("b", fsx.ReadWrite|fsx.Create)
	_, write := ro.WriteAt([]byte{1}, 0)
	for i, err := range []error{create, write, o.Rename("a", "b"), o.Remove("a"), o.Mkdir("b"), o.LinkFrom(d, "a", "b"), f.Truncate(10),
		f.Allocate(0, 1), f.Punch(0, 1), f.Zero(0, 1), f.Clone(f, 0, 10, 10)} {
		if !errors.Is(err, fault.Unsupported) {
			t.Errorf("operation %d: %v", i, err)
		}
	}
	if err := f.Lock(fsx.LockWrite); err != nil || len(o.log) > 0 {
		t.Errorf("%v, %d changes", err, len(o.log))
	}
	if _, err := f.WriteAt([]byte{7}, 999); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Clone(f, 990, 1024, 20), o.replace("a", []byte("text"))); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4)
	if n, err := f.ReadAt(b, 0); n != 4 || err != nil || string(b) != "text" {
		t.Errorf("%q %d %v", b, n, err)
	}
}
