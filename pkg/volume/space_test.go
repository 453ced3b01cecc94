package volume_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

func TestFullDatastore(t *testing.T) {
	p, _ := tmpfs(t, 8*mib)
	v := p.host(t, "a", "1")
	for _, format := range []host.DiskFormat{host.ZeroedThick, host.EagerZeroedThick} {
		big := spec("big")
		big.Size, big.Format = 16*mib, format
		_, err := v.Create(t.Context(), big)
		wantKind(t, err, fault.NoSpace, string(format)+" beyond the free space")
		if left := p.files(t); left != "" {
			t.Fatalf("left %s", left)
		}
	}
	kept := create(t, v, "kept")
	before := p.files(t)
	p.fill(t)
	for _, typ := range host.DiskTypes() {
		s := spec("x")
		s.Type = typ
		_, err := v.Create(t.Context(), s)
		wantKind(t, err, fault.NoSpace, "create "+string(typ)+" on a full datastore")
		if left := p.files(t); left != before {
			t.Fatalf("left %s, before %s", left, before)
		}
	}
	if _, err := v.Get(t.Context(), kept.ID); err != nil {
		t.Fatal(err)
	}
	if err := v.Delete(t.Context(), kept.ID); err == nil {
		t.Log("a delete needed no room")
	} else {
		wantKind(t, err, fault.NoSpace, "delete on a full datastore")
	}
	if err := os.Remove(filepath.Join(p.path, "filler")); err != nil {
		t.Fatal(err)
	}
	create(t, v, "x")
	if err := v.Delete(t.Context(), kept.ID); err != nil {
		t.Fatal(err)
	}
}

// Reserved space runs out while it is being taken: the free space was there when it was looked at.
func TestSpaceRunsOutInTheMiddle(t *testing.T) {
	p, _ := tmpfs(t, 8*mib)
	v := p.host(t, "a", "1")
	d := create(t, v, "thin")
	s := spec("thick")
	s.Format, s.Size = host.ZeroedThick, 4*mib
	thick, err := v.Create(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	_, err = v.Expand(t.Context(), thick.ID, 64*mib, nil)
	wantKind(t, err, fault.NoSpace, "expand beyond the free space")
	got, err := v.Get(t.Context(), thick.ID)
	if err != nil || got.Size != thick.Size {
		t.Fatalf("after a failed expansion: %+v %v", got, err)
	}
	o := acquire(t, v, thick.ID)
	if o.Size != thick.Size {
		t.Fatalf("attached with %d bytes", o.Size)
	}
	if err := v.Release(t.Context(), thick.ID, o.Epoch, false); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Expand(t.Context(), d.ID, 64*mib, nil); err != nil {
		t.Fatalf("a thin disk needs no room to grow: %v", err)
	}
}

// A guest has filled the datastore: its disk can be detached all the same.
func TestDetachFromAFullDatastore(t *testing.T) {
	p, _ := tmpfs(t, 8*mib)
	v := p.host(t, "a", "1")
	d := create(t, v, "x")
	o := acquire(t, v, d.ID)
	p.fill(t)
	if err := v.Release(t.Context(), d.ID, o.Epoch, false); err != nil {
		t.Fatal(err)
	}
	acquire(t, p.host(t, "b", "1"), d.ID)
}

func TestReadOnlyFileSystem(t *testing.T) {
	p, m := tmpfs(t, 8*mib)
	d := create(t, p.host(t, "a", "1"), "x")
	before := p.files(t)
	readOnly(t, m, true)
	v := p.host(t, "a", "1")
	if _, err := v.Get(t.Context(), d.ID); err != nil {
		t.Fatal(err)
	}
	if again, err := v.Create(t.Context(), spec("x")); fault.KindOf(err) != fault.ReadOnly && (err != nil || again.UUID != d.UUID) {
		t.Fatalf("repeated create: %v", err)
	}
	_, err := v.Create(t.Context(), spec("y"))
	wantKind(t, err, fault.ReadOnly, "create")
	wantKind(t, v.Delete(t.Context(), d.ID), fault.ReadOnly, "delete")
	_, err = v.Expand(t.Context(), d.ID, 8*mib, nil)
	wantKind(t, err, fault.ReadOnly, "expand")
	_, err = v.OpenForAttach(t.Context(), d.ID, false)
	wantKind(t, err, fault.ReadOnly, "attach for writing")
	o, err := v.OpenForAttach(t.Context(), d.ID, true)
	if err != nil {
		t.Fatalf("attach for reading: %v", err)
	}
	o.Dir.Close()
	if left := p.files(t); left != before {
		t.Fatalf("left %s, before %s", left, before)
	}
	readOnly(t, m, false)
	acquire(t, p.host(t, "a", "1"), d.ID)
}
