package hosttest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// from is a specification like spec's with a source.
func (s Subject) from(name string, source host.Source, mode host.CloneMode) host.DiskSpec {
	spec := s.spec(name)
	spec.Source, spec.CloneMode = &source, mode
	return spec
}

func (s Subject) makeFrom(t *testing.T, spec host.DiskSpec) host.Disk {
	t.Helper()
	d, err := s.Host.Create(t.Context(), spec)
	if err != nil {
		t.Fatalf("create %q from %s: %v", spec.Name, spec.Source, err)
	}
	if d.ID != host.DiskID(spec.Name) || d.Size != spec.Size || d.Phase != host.Ready || d.Spec.Source == nil || *d.Spec.Source != *spec.Source {
		t.Fatalf("created %+v", d)
	}
	again, err := s.Host.Create(t.Context(), spec)
	if err != nil || again.UUID != d.UUID {
		t.Fatalf("repeated: %+v %v", again, err)
	}
	return d
}

func restore(t *testing.T, s Subject) {
	d := s.make(t, "x")
	snap := s.snapshot(t, "s", d.ID)
	uuids := []string{d.UUID}
	for _, c := range []struct {
		name  string
		mode  host.CloneMode
		typ   host.DiskType
		size  int64
		links int
	}{
		{"linked", host.CloneLinked, host.MonolithicFlat, d.Size, 2},
		{"by default", "", host.MonolithicFlat, d.Size, 2},
		{"larger", host.CloneLinked, host.TwoGbMaxExtentSparse, 2 * d.Size, 2},
		{"full", host.CloneFull, host.MonolithicFlat, d.Size, 1},
		{"full and larger", host.CloneFull, host.TwoGbMaxExtentSparse, 2 * d.Size, 1},
	} {
		spec := s.from(c.name, host.Source{Snapshot: snap.ID}, c.mode)
		spec.Type, spec.Size = c.typ, c.size
		r := s.makeFrom(t, spec)
		if slices.Contains(uuids, r.UUID) || len(r.UUID) != 32 {
			t.Fatalf("%s: uuid %s, taken are %v", c.name, r.UUID, uuids)
		}
		uuids = append(uuids, r.UUID)
		head := r.Links[len(r.Links)-1]
		if len(r.Links) != c.links || head.Size != c.size || r.Links[0].ParentCID != "ffffffff" {
			t.Fatalf("%s: links %+v", c.name, r.Links)
		}
		if c.links == 1 && head.Type != string(c.typ) || c.links > 1 && head.ParentCID != snap.CID {
			t.Fatalf("%s: links %+v, the snapshot's CID is %s", c.name, r.Links, snap.CID)
		}
		if len(r.Snapshots) != 0 {
			t.Fatalf("%s: a restored disk has the snapshots %v", c.name, r.Snapshots)
		}
		a, k := s.attach(t, r.ID, false)
		if a.Size != c.size || a.UUID != r.UUID {
			t.Fatalf("%s: attachment %+v", c.name, a)
		}
		s.detach(t, r.ID, k)
	}
	s.snapshot(t, "of a restored disk", host.DiskID("linked"))
}

// A restored disk is whole without what it was made from.
func restoreAfterItsSource(t *testing.T, s Subject) {
	d := s.make(t, "x")
	snap := s.snapshot(t, "s", d.ID)
	r := s.makeFrom(t, s.from("r", host.Source{Snapshot: snap.ID}, host.CloneLinked))
	c := s.makeFrom(t, s.from("c", host.Source{Disk: d.ID}, host.CloneLinked))
	s.delete(t, d.ID)
	s.deleteSnapshot(t, snap.ID)
	_, err := s.Host.Get(t.Context(), d.ID)
	wantKind(t, err, fault.NotFound, "a disk without its last snapshot")
	for _, id := range []string{r.ID, c.ID} {
		got, err := s.Host.Get(t.Context(), id)
		if err != nil || got.Phase != host.Ready {
			t.Fatalf("%+v %v", got, err)
		}
		_, k := s.attach(t, id, false)
		s.detach(t, id, k)
	}
	// The request may be repeated when its source is gone: the disk is there.
	if again, err := s.Host.Create(t.Context(), s.from("r", host.Source{Snapshot: snap.ID}, host.CloneLinked)); err != nil || again.UUID != r.UUID {
		t.Fatalf("repeated: %+v %v", again, err)
	}
	s.delete(t, r.ID)
	s.delete(t, c.ID)
	s.empty(t)
}

func restoreRefuses(t *testing.T, s Subject) {
	d := s.make(t, "x")
	snap := s.snapshot(t, "s", d.ID)
	for _, c := range []struct {
		what   string
		change func(*host.DiskSpec)
		kind   fault.Kind
	}{
		{"no source in the source", func(d *host.DiskSpec) { d.Source = &host.Source{} }, fault.Invalid},
		{"two sources", func(p *host.DiskSpec) { p.Source.Disk = d.ID }, fault.Invalid},
		{"a mode", func(p *host.DiskSpec) { p.CloneMode = "thorough" }, fault.Invalid},
		{"a snapshot that never was", func(p *host.DiskSpec) { p.Source.Snapshot = host.SnapshotID("nobody") }, fault.NotFound},
		{"a snapshot like a path", func(p *host.DiskSpec) { p.Source.Snapshot = "../.." }, fault.NotFound},
		{"a disk that never was", func(p *host.DiskSpec) { p.Source = &host.Source{Disk: host.DiskID("nobody")} }, fault.NotFound},
		{"a disk like a path", func(p *host.DiskSpec) { p.Source = &host.Source{Disk: "../.."} }, fault.NotFound},
		{"a disk's id as a snapshot's", func(p *host.DiskSpec) { p.Source.Snapshot = d.ID }, fault.NotFound},
		{"smaller than its snapshot", func(p *host.DiskSpec) { p.Size = d.Size - mib }, fault.OutOfRange},
		{"smaller than its disk", func(p *host.DiskSpec) { p.Source, p.Size = &host.Source{Disk: d.ID}, d.Size-mib }, fault.OutOfRange},
		{"another datastore", func(p *host.DiskSpec) { p.Datastore = s.OtherDatastore }, fault.Invalid},
		{"another datastore than the disk's", func(p *host.DiskSpec) { p.Source, p.Datastore = &host.Source{Disk: d.ID}, s.OtherDatastore }, fault.Invalid},
	} {
		spec := s.from("refused", host.Source{Snapshot: snap.ID}, host.CloneLinked)
		if c.change(&spec); spec.Datastore == "" {
			continue
		}
		_, err := s.Host.Create(t.Context(), spec)
		wantKind(t, err, c.kind, c.what)
	}
	disks, _, err := s.Host.List(t.Context(), 0, "")
	if err != nil || len(disks) != 1 {
		t.Fatalf("refused restores left %v (%v)", disks, err)
	}
}

func cloneDisk(t *testing.T, s Subject) {
	d := s.make(t, "x")
	linked := s.makeFrom(t, s.from("linked", host.Source{Disk: d.ID}, host.CloneLinked))
	if len(linked.Links) != 2 || linked.Links[1].ParentCID != linked.Links[0].CID {
		t.Fatalf("linked: %+v", linked.Links)
	}
	full := s.makeFrom(t, s.from("full", host.Source{Disk: d.ID}, host.CloneFull))
	if len(full.Links) != 1 {
		t.Fatalf("full: %+v", full.Links)
	}
	if list := s.listSnapshots(t, "", 0); len(list) != 0 {
		t.Fatalf("a clone left the snapshots %+v", list)
	}
	again := s.makeFrom(t, s.from("of the clone", host.Source{Disk: linked.ID}, host.CloneLinked))
	for _, id := range []string{d.ID, linked.ID, full.ID, again.ID} {
		_, k := s.attach(t, id, false)
		s.detach(t, id, k)
	}
	for _, id := range []string{linked.ID, d.ID, again.ID, full.ID} {
		s.delete(t, id)
	}
	s.empty(t)
}

func cloneAttached(t *testing.T, s Subject) {
	d := s.make(t, "x")
	_, k := s.attach(t, d.ID, false)
	c := s.makeFrom(t, s.from("c", host.Source{Disk: d.ID}, host.CloneLinked))
	snap := s.snapshot(t, "s", d.ID)
	r := s.makeFrom(t, s.from("r", host.Source{Snapshot: snap.ID}, host.CloneLinked))
	if list, err := s.Host.Attachments(t.Context()); err != nil || len(list) != 1 || list[0].ID != d.ID {
		t.Fatalf("attachments %+v %v", list, err)
	}
	_, kc := s.attach(t, c.ID, false)
	_, kr := s.attach(t, r.ID, true)
	s.detach(t, d.ID, k)
	s.detach(t, c.ID, kc)
	s.detach(t, r.ID, kr)
}

// Another source, or another way of cloning, is another request.
func cloneOtherSource(t *testing.T, s Subject) {
	d := s.make(t, "x")
	snap := s.snapshot(t, "s", d.ID)
	s.makeFrom(t, s.from("c", host.Source{Disk: d.ID}, host.CloneLinked))
	for field, spec := range map[string]host.DiskSpec{
		"source":    s.from("c", host.Source{Snapshot: snap.ID}, host.CloneLinked),
		"no source": s.spec("c"),
		"cloneMode": s.from("c", host.Source{Disk: d.ID}, host.CloneFull),
	} {
		_, err := s.Host.Create(t.Context(), spec)
		wantKind(t, err, fault.Exists, field)
		if !strings.Contains(err.Error(), strings.TrimPrefix(field, "no ")) {
			t.Errorf("the fault does not name %s: %v", field, err)
		}
	}
	_, err := s.Host.Create(t.Context(), s.from("x", host.Source{Snapshot: snap.ID}, host.CloneLinked))
	wantKind(t, err, fault.Exists, "a disk without a source")
}

// A deleted disk that has snapshots is no volume any more, and its snapshots restore.
func retired(t *testing.T, s Subject) {
	d, ctx := s.make(t, "x"), t.Context()
	old := s.snapshot(t, "old", d.ID)
	_, k := s.attach(t, d.ID, false)
	young := s.snapshot(t, "young", d.ID)
	wantKind(t, s.Host.Delete(ctx, d.ID), fault.InUse, "delete an attached disk that has snapshots")
	s.detach(t, d.ID, k)
	for range 2 {
		s.delete(t, d.ID)
	}
	got, err := s.Host.Get(ctx, d.ID)
	if err != nil || got.Phase != host.Retired || len(got.Claims) != 0 || len(got.Snapshots) != 2 {
		t.Fatalf("the retired disk: %+v %v", got, err)
	}
	disks, _, err := s.Host.List(ctx, 0, "")
	if err != nil || len(disks) != 0 {
		t.Fatalf("a retired disk is listed: %+v %v", disks, err)
	}
	_, err = s.Host.Attach(ctx, host.AttachRequest{ID: d.ID}, s.session(t, d.ID).Device())
	wantKind(t, err, fault.NotFound, "attach")
	wantKind(t, s.Host.Claim(ctx, d.ID, host.Claim{Node: s.Node}), fault.NotFound, "claim")
	if err := s.Host.Unclaim(ctx, d.ID, s.Node); err != nil {
		t.Fatalf("unclaim: %v", err)
	}
	_, err = s.Host.Expand(ctx, d.ID, 2*d.Size)
	wantKind(t, err, fault.NotFound, "expand")
	_, err = s.Host.CreateSnapshot(ctx, host.SnapshotSpec{Name: "late", Disk: d.ID})
	wantKind(t, err, fault.NotFound, "snapshot")
	if again := s.snapshot(t, "young", d.ID); again.CID != young.CID {
		t.Fatalf("the request for a snapshot that exists, repeated: %+v", again)
	}
	_, err = s.Host.Create(ctx, s.from("c", host.Source{Disk: d.ID}, host.CloneLinked))
	wantKind(t, err, fault.NotFound, "clone")
	s.deleteSnapshot(t, young.ID)
	r := s.makeFrom(t, s.from("r", host.Source{Snapshot: old.ID}, host.CloneLinked))
	s.deleteSnapshot(t, old.ID)
	_, err = s.Host.Get(ctx, d.ID)
	wantKind(t, err, fault.NotFound, "a retired disk without its last snapshot")
	s.delete(t, r.ID)
	s.empty(t)
}

// The name of a retired disk is taken until its snapshots are gone.
func retiredName(t *testing.T, s Subject) {
	d := s.make(t, "x")
	snap := s.snapshot(t, "s", d.ID)
	s.delete(t, d.ID)
	_, err := s.Host.Create(t.Context(), s.spec("x"))
	wantKind(t, err, fault.Exists, "create again")
	if f := fault.From(err); !strings.Contains(f.Remedy, "snapshot") {
		t.Fatalf("the remedy does not name the snapshots: %v", err)
	}
	s.deleteSnapshot(t, snap.ID)
	if again := s.make(t, "x"); again.Phase != host.Ready || len(again.Snapshots) != 0 {
		t.Fatalf("made again: %+v", again)
	}
}

// Whatever order things are deleted in, nothing is left.
func anyOrder(t *testing.T, s Subject) {
	const disk, snap, restored, clone = 0, 1, 2, 3
	for i, order := range permutations(4) {
		d := s.make(t, fmt.Sprint("disk", i))
		p := s.snapshot(t, fmt.Sprint("snapshot", i), d.ID)
		r := s.makeFrom(t, s.from(fmt.Sprint("restored", i), host.Source{Snapshot: p.ID}, host.CloneLinked))
		c := s.makeFrom(t, s.from(fmt.Sprint("clone", i), host.Source{Disk: d.ID}, host.CloneLinked))
		for _, what := range order {
			switch what {
			case disk:
				s.delete(t, d.ID)
			case snap:
				s.deleteSnapshot(t, p.ID)
			case restored:
				s.delete(t, r.ID)
			case clone:
				s.delete(t, c.ID)
			}
		}
		_, err := s.Host.Get(t.Context(), d.ID)
		wantKind(t, err, fault.NotFound, fmt.Sprint("deleted in the order ", order))
		s.empty(t)
		if testing.Short() && i > 0 {
			return
		}
	}
}

func permutations(n int) (all [][]int) {
	if n == 0 {
		return [][]int{nil}
	}
	for _, p := range permutations(n - 1) {
		for i := range n {
			all = append(all, slices.Insert(slices.Clone(p), i, n-1))
		}
	}
	return all
}

// grown says what is wrong with a disk whose base kept its size while the disk got another one.
func grown(d host.Disk, base, size int64) error {
	switch {
	case d.Size != size || d.Links[len(d.Links)-1].Size != size || d.Links[0].Size != base:
		return fmt.Errorf("size %d, links %+v", d.Size, d.Links)
	case d.VMwareProblem == "":
		return errors.New("VMware would refuse a chain whose links have different capacities, and nobody says so")
	}
	return nil
}

func expandWithSnapshots(t *testing.T, s Subject) {
	d := s.make(t, "x")
	snap := s.snapshot(t, "s", d.ID)
	for range 2 {
		if got, err := s.Host.Expand(t.Context(), d.ID, 2*d.Size); err != nil || got.Size != 2*d.Size {
			t.Fatalf("expand: %+v %v", got, err)
		}
	}
	eventually(t, "the disk has grown above its snapshot", func() error {
		got, err := s.Host.Get(t.Context(), d.ID)
		if err == nil {
			err = grown(got, d.Size, 2*d.Size)
		}
		return err
	})
	if again, err := s.Host.GetSnapshot(t.Context(), snap.ID); err != nil || again.Size != d.Size {
		t.Fatalf("the snapshot: %+v %v", again, err)
	}
	if r := s.makeFrom(t, s.from("r", host.Source{Snapshot: snap.ID}, host.CloneLinked)); r.Size != d.Size {
		t.Fatalf("restored: %+v", r)
	}
	a, k := s.attach(t, d.ID, false)
	if a.Size != 2*d.Size {
		t.Fatalf("attachment %+v", a)
	}
	s.detach(t, d.ID, k)
}

func expandAttachedWithSnapshots(t *testing.T, s Subject) {
	d := s.make(t, "x")
	_, k := s.attach(t, d.ID, false)
	s.snapshot(t, "s", d.ID)
	if got, err := s.Host.Expand(t.Context(), d.ID, 2*d.Size); err != nil || got.Size != 2*d.Size {
		t.Fatalf("expand: %+v %v", got, err)
	}
	if a, err := s.Host.Grown(t.Context(), d.ID); err != nil || a.Size != 2*d.Size {
		t.Fatalf("grown: %+v %v", a, err)
	}
	eventually(t, "the disk has grown above its snapshot", func() error {
		got, err := s.Host.Get(t.Context(), d.ID)
		if err == nil {
			err = grown(got, d.Size, 2*d.Size)
		}
		return err
	})
	s.detach(t, d.ID, k)
}
