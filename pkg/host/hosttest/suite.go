package hosttest

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// Subject is a port to be tested.
type Subject struct {
	Host      host.Host
	Node      string // the node that Attacher is of
	Datastore string // on which disks are made
	// OtherDatastore, if set, is another one that the same node reaches.
	OtherDatastore string
	// Transports are those that an attachment may have; nil: hotadd.
	Transports []string
	// Session makes the kernel's end of a disk; nil: the attach part is left to the adapter's own test.
	Session func(t *testing.T, id string) Session
}

// Session is the kernel's end of a disk.
type Session interface {
	Device() host.Device
	// Open makes the kernel use the disk, after the attach.
	Open(t *testing.T)
	// Release makes the kernel let the device go.
	Release(t *testing.T)
}

// Run checks the port but its snapshots, which are RunSnapshots'. open makes a new one for each part.
func Run(t *testing.T, open func(t *testing.T) Subject) {
	runParts(t, open, []part{
		{"CreateIsIdempotent", createIsIdempotent},
		{"CreateOtherSpec", createOtherSpec},
		{"CreateRefuses", createRefuses},
		{"CreateConcurrently", createConcurrently},
		{"Names", names},
		{"DeleteIsIdempotent", deleteIsIdempotent},
		{"GetAndList", getAndList},
		{"Expand", expand},
		{"Claims", claimsPart},
		{"Datastores", datastores},
		{"Canceled", canceled},
		{"Attach", attach},
		{"AttachReadOnly", attachReadOnly},
		{"ExpandAttached", expandAttached},
		{"Keeper", keeper},
	})
}

// part of the suite; each is a subtest, so that one can be run alone.
type part struct {
	name string
	run  func(*testing.T, Subject)
}

func runParts(t *testing.T, open func(t *testing.T) Subject, parts []part) {
	for _, p := range parts {
		t.Run(p.name, func(t *testing.T) { p.run(t, open(t)) })
	}
}

const mib = 1 << 20

func (s Subject) spec(name string) host.DiskSpec {
	return host.DiskSpec{Name: name, Datastore: s.Datastore, Size: 4 * mib, Format: host.Thin, Type: host.MonolithicFlat}
}

func (s Subject) make(t *testing.T, name string) host.Disk {
	t.Helper()
	d, err := s.Host.Create(t.Context(), s.spec(name))
	if err != nil {
		t.Fatalf("create %q: %v", name, err)
	}
	return d
}

func wantKind(t *testing.T, err error, want fault.Kind, what string) {
	t.Helper()
	if got := fault.KindOf(err); got != want {
		t.Fatalf("%s: %v: kind %q, want %q", what, err, got, want)
	}
	if err != nil && err.Error() == "" {
		t.Fatalf("%s: the fault says nothing", what)
	}
}

func createIsIdempotent(t *testing.T, s Subject) {
	for _, typ := range host.DiskTypes() {
		spec := s.spec("disk " + string(typ))
		spec.Type = typ
		d, err := s.Host.Create(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		if d.ID != host.DiskID(spec.Name) || d.Size != spec.Size || d.Phase != host.Ready || len(d.UUID) != 32 {
			t.Fatalf("created %+v", d)
		}
		if len(d.Links) != 1 || d.Links[0].Type != string(typ) || d.Links[0].Size != spec.Size || d.Links[0].ParentCID != "ffffffff" {
			t.Fatalf("links %+v", d.Links)
		}
		again, err := s.Host.Create(t.Context(), spec)
		if err != nil || again.ID != d.ID || again.UUID != d.UUID {
			t.Fatalf("repeated: %+v %v, want uuid %s", again, err, d.UUID)
		}
		placed := spec
		placed.Host = s.Node
		if again, err := s.Host.Create(t.Context(), placed); err != nil || again.UUID != d.UUID {
			t.Fatalf("with a placement wish: %v", err)
		}
	}
}

func createOtherSpec(t *testing.T, s Subject) {
	s.make(t, "x")
	for field, change := range map[string]func(*host.DiskSpec){
		"size":       func(d *host.DiskSpec) { d.Size *= 2 },
		"diskFormat": func(d *host.DiskSpec) { d.Format = host.ZeroedThick },
		"diskType":   func(d *host.DiskSpec) { d.Type = host.TwoGbMaxExtentSparse },
		"datastore":  func(d *host.DiskSpec) { d.Datastore = s.OtherDatastore },
	} {
		spec := s.spec("x")
		if change(&spec); spec.Datastore == "" {
			continue
		}
		_, err := s.Host.Create(t.Context(), spec)
		wantKind(t, err, fault.Exists, field)
		if !strings.Contains(err.Error(), field) {
			t.Errorf("the fault does not name %s: %v", field, err)
		}
	}
}

func createRefuses(t *testing.T, s Subject) {
	for _, c := range []struct {
		what   string
		change func(*host.DiskSpec)
		kind   fault.Kind
	}{
		{"no name", func(d *host.DiskSpec) { d.Name = "" }, fault.Invalid},
		{"a name too long", func(d *host.DiskSpec) { d.Name = strings.Repeat("n", host.MaxNameLength+1) }, fault.Invalid},
		{"size 0", func(d *host.DiskSpec) { d.Size = 0 }, fault.OutOfRange},
		{"a negative size", func(d *host.DiskSpec) { d.Size = -mib }, fault.OutOfRange},
		{"a size too large", func(d *host.DiskSpec) { d.Size = host.MaxCapacity + mib }, fault.OutOfRange},
		{"half a MiB more", func(d *host.DiskSpec) { d.Size += mib / 2 }, fault.Invalid},
		{"a format", func(d *host.DiskSpec) { d.Format = "chubby" }, fault.Invalid},
		{"a type", func(d *host.DiskSpec) { d.Type = "streamOptimized" }, fault.Invalid},
		{"a size of too many files", func(d *host.DiskSpec) { d.Type, d.Size = host.TwoGbMaxExtentFlat, host.MaxSplitFlat+mib }, fault.OutOfRange},
		{"a size too large for one sparse file", func(d *host.DiskSpec) { d.Type, d.Size = host.VMFSSparse, host.MaxSingleSparse+mib }, fault.OutOfRange},
		{"sparse and thick", func(d *host.DiskSpec) { d.Type, d.Format = host.TwoGbMaxExtentSparse, host.ZeroedThick }, fault.Invalid},
		{"a datastore", func(d *host.DiskSpec) { d.Datastore = "nowhere" }, fault.NotFound},
		{"a datastore like a path", func(d *host.DiskSpec) { d.Datastore = "../.." }, fault.NotFound},
		{"a host", func(d *host.DiskSpec) { d.Host = "nobody" }, fault.NotFound},
	} {
		spec := s.spec("refused")
		c.change(&spec)
		_, err := s.Host.Create(t.Context(), spec)
		wantKind(t, err, c.kind, c.what)
	}
	disks, _, err := s.Host.List(t.Context(), 0, "")
	if err != nil || len(disks) != 0 {
		t.Fatalf("refused creations left %v (%v)", disks, err)
	}
}

func createConcurrently(t *testing.T, s Subject) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	uuids := map[string]bool{}
	for range 8 {
		wg.Go(func() {
			for {
				d, err := s.Host.Create(t.Context(), s.spec("contended"))
				if errors.Is(err, fault.InProgress) {
					continue
				}
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					t.Errorf("create: %v", err)
				}
				uuids[d.UUID] = true
				return
			}
		})
	}
	wg.Wait()
	if len(uuids) != 1 {
		t.Fatalf("one name got the disks %v", uuids)
	}
}

func names(t *testing.T, s Subject) {
	seen := map[string]bool{}
	for _, name := range []string{
		"a", "A", " ", "../../etc/passwd", "a/b", ".", "..", "new\nline", "nul\x00", "\xff\xfe", "pvc-ü-日本",
		strings.Repeat("x", host.MaxNameLength),
	} {
		d := s.make(t, name)
		if seen[d.ID] || !host.ValidDiskID(d.ID) {
			t.Fatalf("name %q has the id %s", name, d.ID)
		}
		seen[d.ID] = true
	}
	for _, id := range []string{"", "..", "../names", "vd-", "vd-" + strings.Repeat("A", 32), "/etc/passwd"} {
		_, err := s.Host.Get(t.Context(), id)
		wantKind(t, err, fault.NotFound, fmt.Sprintf("get %q", id))
		if err := s.Host.Delete(t.Context(), id); err != nil {
			t.Fatalf("delete %q, which cannot be: %v", id, err)
		}
	}
}

func deleteIsIdempotent(t *testing.T, s Subject) {
	d := s.make(t, "x")
	for range 2 {
		if err := s.Host.Delete(t.Context(), d.ID); err != nil {
			t.Fatal(err)
		}
	}
	_, err := s.Host.Get(t.Context(), d.ID)
	wantKind(t, err, fault.NotFound, "get a deleted disk")
	if again := s.make(t, "x"); again.ID != d.ID {
		t.Fatalf("made again: %+v", again)
	}
}

func getAndList(t *testing.T, s Subject) {
	const n = 7
	for i := range n {
		s.make(t, fmt.Sprint("disk", i))
	}
	for _, page := range []int{0, 1, 3, n, n + 1} {
		var got []host.Disk
		token := ""
		for {
			disks, next, err := s.Host.List(t.Context(), page, token)
			if err != nil || page > 0 && len(disks) > page {
				t.Fatalf("page of %d: %d disks, %v", page, len(disks), err)
			}
			got = append(got, disks...)
			if token = next; token == "" {
				break
			}
		}
		if len(got) != n {
			t.Fatalf("pages of %d: %d disks", page, len(got))
		}
		for i, d := range got {
			if i > 0 && got[i-1].ID >= d.ID {
				t.Fatalf("pages of %d: not in order of id", page)
			}
			one, err := s.Host.Get(t.Context(), d.ID)
			if err != nil || one.UUID != d.UUID || one.Spec.Name != d.Spec.Name || one.Spec.Datastore != s.Datastore {
				t.Fatalf("get %+v: %+v %v", d, one, err)
			}
		}
	}
	_, _, err := s.Host.List(t.Context(), 0, "no token")
	wantKind(t, err, fault.Invalid, "a token that nobody gave")
	_, err = s.Host.Get(t.Context(), host.DiskID("nobody"))
	wantKind(t, err, fault.NotFound, "get a disk that never was")
}

func expand(t *testing.T, s Subject) {
	for _, typ := range host.DiskTypes() {
		spec := s.spec(string(typ))
		spec.Type = typ
		d, err := s.Host.Create(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		for _, size := range []int64{9 * mib, 9 * mib, 5 * mib} {
			got, err := s.Host.Expand(t.Context(), d.ID, size)
			if err != nil || got.Size != 9*mib || got.Links[0].Size != 9*mib {
				t.Fatalf("%s: expand to %d: %+v %v", typ, size, got, err)
			}
		}
		if got, err := s.Host.Create(t.Context(), spec); err != nil || got.Size != 9*mib {
			t.Fatalf("create repeated after an expansion: %+v %v", got, err)
		}
		for _, size := range []int64{0, -1, host.MaxCapacity + mib} {
			_, err = s.Host.Expand(t.Context(), d.ID, size)
			wantKind(t, err, fault.OutOfRange, fmt.Sprint("expand to ", size))
		}
	}
	_, err := s.Host.Expand(t.Context(), host.DiskID("nobody"), 8*mib)
	wantKind(t, err, fault.NotFound, "expand a disk that never was")
}

func claimsPart(t *testing.T, s Subject) {
	d := s.make(t, "x")
	ctx := t.Context()
	rw := host.Claim{Node: s.Node}
	for range 2 {
		if err := s.Host.Claim(ctx, d.ID, rw); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.Host.Get(ctx, d.ID)
	if err != nil || len(got.Claims) != 1 || got.Claims[0] != rw {
		t.Fatalf("claims %+v %v", got.Claims, err)
	}
	wantKind(t, s.Host.Claim(ctx, d.ID, host.Claim{Node: s.Node, ReadOnly: true}), fault.Exists, "claim in the other mode")
	wantKind(t, s.Host.Claim(ctx, d.ID, host.Claim{Node: "nobody"}), fault.NotFound, "claim for a node that is not")
	wantKind(t, s.Host.Claim(ctx, host.DiskID("nobody"), rw), fault.NotFound, "claim a disk that is not")
	wantKind(t, s.Host.Delete(ctx, d.ID), fault.InUse, "delete a claimed disk")
	for _, node := range []string{"nobody", s.Node, s.Node, ""} {
		if err := s.Host.Unclaim(ctx, d.ID, node); err != nil {
			t.Fatalf("unclaim %q: %v", node, err)
		}
	}
	if err := s.Host.Unclaim(ctx, host.DiskID("nobody"), ""); err != nil {
		t.Fatalf("unclaim a disk that is not: %v", err)
	}
	if err := s.Host.Claim(ctx, d.ID, host.Claim{Node: s.Node, ReadOnly: true}); err != nil {
		t.Fatalf("claim after unclaim: %v", err)
	}
	if err := s.Host.Unclaim(ctx, d.ID, ""); err != nil {
		t.Fatal(err)
	}
	if err := s.Host.Delete(ctx, d.ID); err != nil {
		t.Fatal(err)
	}
}

func datastores(t *testing.T, s Subject) {
	list, err := s.Host.Datastores(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for i, d := range list {
		if i > 0 && list[i-1].Name >= d.Name {
			t.Error("not in order of name")
		}
		if d.Name != s.Datastore {
			continue
		}
		found = true
		for _, h := range d.Hosts {
			if h.Host == s.Node && (!h.Ready || h.Total <= 0 || h.Free < 0 || h.Free > h.Total) {
				t.Errorf("datastore %+v", d)
			}
		}
	}
	if !found {
		t.Fatalf("%s is not in %+v", s.Datastore, list)
	}
}

func canceled(t *testing.T, s Subject) {
	ctx := canceledContext(t)
	_, err := s.Host.Create(ctx, s.spec("x"))
	wantKind(t, err, fault.Timeout, "create")
	_, err = s.Host.Datastores(ctx)
	wantKind(t, err, fault.Timeout, "datastores")
	disks, _, err := s.Host.List(t.Context(), 0, "")
	if err != nil || len(disks) != 0 {
		t.Fatalf("a canceled creation left %v (%v)", disks, err)
	}
}
