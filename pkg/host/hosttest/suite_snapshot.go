package hosttest

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// RunSnapshots checks snapshots, restores, clones and what becomes of their disks. open makes a new port for each part.
func RunSnapshots(t *testing.T, open func(t *testing.T) Subject) {
	runParts(t, open, []part{
		{"CreateIsIdempotent", snapshotIsIdempotent},
		{"Refuses", snapshotRefuses},
		{"Concurrently", snapshotConcurrently},
		{"Names", snapshotNames},
		{"DeleteIsIdempotent", snapshotDeleteIsIdempotent},
		{"GetAndList", snapshotGetAndList},
		{"Attached", snapshotAttached},
		{"Depth", snapshotDepth},
		{"Restore", restore},
		{"RestoreAfterItsSource", restoreAfterItsSource},
		{"RestoreRefuses", restoreRefuses},
		{"Clone", cloneDisk},
		{"CloneAttached", cloneAttached},
		{"CloneOtherSource", cloneOtherSource},
		{"Retired", retired},
		{"RetiredName", retiredName},
		{"AnyOrder", anyOrder},
		{"ExpandWithSnapshots", expandWithSnapshots},
		{"ExpandAttachedWithSnapshots", expandAttachedWithSnapshots},
		{"Canceled", snapshotCanceled},
	})
}

func (s Subject) snapshot(t *testing.T, name, disk string) host.Snapshot {
	t.Helper()
	snap, err := s.Host.CreateSnapshot(t.Context(), host.SnapshotSpec{Name: name, Disk: disk})
	if err != nil {
		t.Fatalf("snapshot %q: %v", name, err)
	}
	return snap
}

func (s Subject) deleteSnapshot(t *testing.T, id string) {
	t.Helper()
	if err := s.Host.DeleteSnapshot(t.Context(), id); err != nil {
		t.Fatalf("delete snapshot %s: %v", id, err)
	}
}

func (s Subject) delete(t *testing.T, id string) {
	t.Helper()
	if err := s.Host.Delete(t.Context(), id); err != nil {
		t.Fatalf("delete disk %s: %v", id, err)
	}
}

// eventually waits for what an adapter learns a little later than the call that made it so.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond) // a poll with a deadline
	}
}

// empty: no disk and no snapshot is left.
func (s Subject) empty(t *testing.T) {
	t.Helper()
	disks, _, err := s.Host.List(t.Context(), 0, "")
	if err != nil || len(disks) != 0 {
		t.Fatalf("disks are left: %+v %v", disks, err)
	}
	list, _, err := s.Host.ListSnapshots(t.Context(), "", 0, "")
	if err != nil || len(list) != 0 {
		t.Fatalf("snapshots are left: %+v %v", list, err)
	}
}

func snapshotIsIdempotent(t *testing.T, s Subject) {
	d := s.make(t, "x")
	snap := s.snapshot(t, "s", d.ID)
	if snap.ID != host.SnapshotID("s") || snap.Name != "s" || snap.Disk != d.ID || snap.DiskUUID != d.UUID || snap.Datastore != s.Datastore ||
		snap.Size != d.Size || len(snap.CID) != 8 || snap.Created.IsZero() || !snap.Ready {
		t.Fatalf("snapshot %+v of %+v", snap, d)
	}
	if snap.Consistency != host.FilesystemConsistent {
		t.Fatalf("a disk that nobody uses gave a snapshot that is %q", snap.Consistency)
	}
	if strings.Join(snap.Hosts, " ") != strings.Join(d.Hosts, " ") {
		t.Fatalf("the snapshot is on %v, its disk on %v", snap.Hosts, d.Hosts)
	}
	for range 2 {
		again := s.snapshot(t, "s", d.ID)
		if again.ID != snap.ID || again.CID != snap.CID || !again.Created.Equal(snap.Created) {
			t.Fatalf("repeated: %+v, was %+v", again, snap)
		}
	}
	got, err := s.Host.Get(t.Context(), d.ID)
	if err != nil || len(got.Snapshots) != 1 || got.Snapshots[0] != snap.ID {
		t.Fatalf("the disk has the snapshots %v (%v)", got.Snapshots, err)
	}
	other := s.make(t, "y")
	_, err = s.Host.CreateSnapshot(t.Context(), host.SnapshotSpec{Name: "s", Disk: other.ID})
	wantKind(t, err, fault.Exists, "the name of another disk's snapshot")
	if same := s.make(t, "s"); same.ID == snap.ID {
		t.Fatal("a volume and a snapshot share an id")
	}
}

func snapshotRefuses(t *testing.T, s Subject) {
	d := s.make(t, "x")
	for _, c := range []struct {
		what   string
		change func(*host.SnapshotSpec)
		kind   fault.Kind
	}{
		{"no name", func(p *host.SnapshotSpec) { p.Name = "" }, fault.Invalid},
		{"a name too long", func(p *host.SnapshotSpec) { p.Name = strings.Repeat("n", host.MaxNameLength+1) }, fault.Invalid},
		{"a freeze", func(p *host.SnapshotSpec) { p.Freeze = "solid" }, fault.Invalid},
		{"a negative deadline", func(p *host.SnapshotSpec) { p.FreezeDeadline = -1 }, fault.Invalid},
		{"a long deadline", func(p *host.SnapshotSpec) { p.FreezeDeadline = host.MaxFreezeDeadline + 1 }, fault.Invalid},
		{"a disk that never was", func(p *host.SnapshotSpec) { p.Disk = host.DiskID("nobody") }, fault.NotFound},
		{"no disk", func(p *host.SnapshotSpec) { p.Disk = "" }, fault.NotFound},
		{"a disk like a path", func(p *host.SnapshotSpec) { p.Disk = "../.." }, fault.NotFound},
	} {
		spec := host.SnapshotSpec{Name: "refused", Disk: d.ID}
		c.change(&spec)
		_, err := s.Host.CreateSnapshot(t.Context(), spec)
		wantKind(t, err, c.kind, c.what)
	}
	s.delete(t, d.ID)
	_, err := s.Host.CreateSnapshot(t.Context(), host.SnapshotSpec{Name: "refused", Disk: d.ID})
	wantKind(t, err, fault.NotFound, "a disk that was deleted")
	s.empty(t)
}

func snapshotConcurrently(t *testing.T, s Subject) {
	d := s.make(t, "x")
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := map[string]bool{}
	for range 8 {
		wg.Go(func() {
			for {
				snap, err := s.Host.CreateSnapshot(t.Context(), host.SnapshotSpec{Name: "contended", Disk: d.ID})
				if errors.Is(err, fault.InProgress) {
					continue
				}
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					t.Errorf("snapshot: %v", err)
				}
				seen[snap.CID+snap.Created.String()] = true
				return
			}
		})
	}
	wg.Wait()
	if got, err := s.Host.Get(t.Context(), d.ID); err != nil || len(seen) != 1 || len(got.Snapshots) != 1 {
		t.Fatalf("one name got the snapshots %v, the disk has %v (%v)", seen, got.Snapshots, err)
	}
}

func snapshotNames(t *testing.T, s Subject) {
	d := s.make(t, "x")
	seen := map[string]bool{}
	for _, name := range []string{"x", "../../etc/passwd", "new\nline", "nul\x00", "\xff\xfe", "日本", strings.Repeat("x", host.MaxNameLength)} {
		snap := s.snapshot(t, name, d.ID)
		if seen[snap.ID] || !host.ValidSnapshotID(snap.ID) || utf8.ValidString(name) && snap.Name != name {
			t.Fatalf("name %q: %+v", name, snap)
		}
		seen[snap.ID] = true
	}
	for _, id := range []string{"", "..", "../names", "vs-", d.ID, "vs-" + strings.Repeat("A", 32), "/etc/passwd"} {
		_, err := s.Host.GetSnapshot(t.Context(), id)
		wantKind(t, err, fault.NotFound, fmt.Sprintf("get %q", id))
		if err := s.Host.DeleteSnapshot(t.Context(), id); err != nil {
			t.Fatalf("delete %q, which cannot be: %v", id, err)
		}
	}
}

func snapshotDeleteIsIdempotent(t *testing.T, s Subject) {
	d := s.make(t, "x")
	snap := s.snapshot(t, "s", d.ID)
	for range 2 {
		s.deleteSnapshot(t, snap.ID)
	}
	_, err := s.Host.GetSnapshot(t.Context(), snap.ID)
	wantKind(t, err, fault.NotFound, "get a deleted snapshot")
	if got, err := s.Host.Get(t.Context(), d.ID); err != nil || len(got.Snapshots) != 0 || got.Phase != host.Ready {
		t.Fatalf("its disk: %+v %v", got, err)
	}
	other := s.make(t, "y")
	if again := s.snapshot(t, "s", other.ID); again.Disk != other.ID {
		t.Fatalf("the name is free again, and gave %+v", again)
	}
}

func snapshotGetAndList(t *testing.T, s Subject) {
	const n = 5
	disks := []host.Disk{s.make(t, "x"), s.make(t, "y")}
	for i := range n {
		s.snapshot(t, fmt.Sprint("snapshot", i), disks[i%2].ID)
	}
	for _, tc := range []struct {
		disk string
		want int
	}{{"", n}, {disks[0].ID, 3}, {disks[1].ID, 2}, {host.DiskID("nobody"), 0}, {"no id", 0}} {
		for _, page := range []int{0, 1, 2, n, n + 1} {
			got := s.listSnapshots(t, tc.disk, page)
			if len(got) != tc.want {
				t.Fatalf("of %q by %d: %d snapshots, want %d", tc.disk, page, len(got), tc.want)
			}
			for i, snap := range got {
				if i > 0 && got[i-1].ID >= snap.ID {
					t.Fatalf("pages of %d: not in order of id", page)
				}
				one, err := s.Host.GetSnapshot(t.Context(), snap.ID)
				if err != nil || one.CID != snap.CID || one.Disk != snap.Disk || one.Name != snap.Name || !one.Created.Equal(snap.Created) {
					t.Fatalf("get %+v: %+v %v", snap, one, err)
				}
			}
		}
	}
	for what, token := range map[string]string{"a token that nobody gave": "no token", "a disk's id": disks[0].ID} {
		_, _, err := s.Host.ListSnapshots(t.Context(), "", 0, token)
		wantKind(t, err, fault.Invalid, what)
	}
	_, _, err := s.Host.ListSnapshots(t.Context(), "", -1, "")
	wantKind(t, err, fault.Invalid, "a negative page")
}

func (s Subject) listSnapshots(t *testing.T, disk string, page int) (got []host.Snapshot) {
	t.Helper()
	for token := ""; ; {
		list, next, err := s.Host.ListSnapshots(t.Context(), disk, page, token)
		if err != nil || page > 0 && len(list) > page {
			t.Fatalf("page of %d: %d snapshots, %v", page, len(list), err)
		}
		got = append(got, list...)
		if token = next; token == "" {
			return got
		}
	}
}

func snapshotAttached(t *testing.T, s Subject) {
	d := s.make(t, "x")
	a, k := s.attach(t, d.ID, false)
	snap := s.snapshot(t, "s", d.ID)
	if snap.Consistency != host.CrashConsistent {
		t.Fatalf("nothing stood still, and the snapshot is %q", snap.Consistency)
	}
	eventually(t, "the chain has a new head", func() error {
		got, err := s.Host.Get(t.Context(), d.ID)
		if err == nil && (len(got.Links) != 2 || got.Links[1].ParentCID != snap.CID || got.Links[0].CID != snap.CID) {
			err = fmt.Errorf("links %+v, the snapshot's CID is %s", got.Links, snap.CID)
		}
		return err
	})
	list, err := s.Host.Attachments(t.Context())
	if err != nil || len(list) != 1 || list[0].Epoch < a.Epoch {
		t.Fatalf("attachments %+v %v", list, err)
	}
	s.detach(t, d.ID, k)
	_, k = s.attach(t, d.ID, false)
	s.detach(t, d.ID, k)
	s.deleteSnapshot(t, snap.ID)
	s.delete(t, d.ID)
	s.empty(t)
}

// A chain does not get longer than VMware's; the refusal says what to do, and hurts nothing.
func snapshotDepth(t *testing.T, s Subject) {
	d := s.make(t, "x")
	_, k := s.attach(t, d.ID, false)
	made := 0
	for {
		snap, err := s.Host.CreateSnapshot(t.Context(), host.SnapshotSpec{Name: fmt.Sprint("s", made), Disk: d.ID})
		if errors.Is(err, fault.Exhausted) {
			if f := fault.From(err); f.Remedy == "" {
				t.Fatalf("no remedy: %v", err)
			}
			break
		}
		if err != nil || !snap.Ready || made >= host.MaxLinks {
			t.Fatalf("snapshot %d: %+v %v", made, snap, err)
		}
		made++
	}
	if made != host.MaxLinks-1 {
		t.Fatalf("a chain of %d links carries %d snapshots", host.MaxLinks, made)
	}
	eventually(t, "every snapshot is the disk's", func() error {
		got, err := s.Host.Get(t.Context(), d.ID)
		if err == nil && (len(got.Snapshots) != made || len(got.Links) != host.MaxLinks) {
			err = fmt.Errorf("%d snapshots, %d links", len(got.Snapshots), len(got.Links))
		}
		return err
	})
	if list := s.listSnapshots(t, d.ID, 0); len(list) != made {
		t.Fatalf("%d snapshots are listed", len(list))
	}
	s.detach(t, d.ID, k)
}

func snapshotCanceled(t *testing.T, s Subject) {
	d := s.make(t, "x")
	_, err := s.Host.CreateSnapshot(canceledContext(t), host.SnapshotSpec{Name: "s", Disk: d.ID})
	wantKind(t, err, fault.Timeout, "snapshot")
	if list := s.listSnapshots(t, "", 0); len(list) != 0 {
		t.Fatalf("a canceled request left %+v", list)
	}
}
