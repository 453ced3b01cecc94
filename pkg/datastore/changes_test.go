package datastore_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/datastore"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// family is a manifest with three links, a snapshot at the first, and one at the frozen head.
func family() datastore.Manifest {
	m := manifest(1, 1)
	head := datastore.Link{Descriptor: "disk-000001.vmdk", Extents: []string{"disk-000001-s001.vmdk"},
		Type: "twoGbMaxExtentSparse", CID: "00000001", ParentCID: "fffffffe", Size: 1 << 20}
	top := head
	top.Descriptor, top.Extents, top.CID, top.ParentCID, top.Frozen = "disk-000002.vmdk", []string{"disk-000002-s001.vmdk"}, "00000002", "00000001", true
	m.Links = append(slices.Clone(m.Links), head, top)
	snap := func(id string, l datastore.Link) datastore.Snapshot {
		return datastore.Snapshot{ID: id, Name: "name of " + id, Link: l.Descriptor, Size: l.Size, CID: l.CID,
			Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Consistency: "crash"}
	}
	m.Snapshots = []datastore.Snapshot{snap("vs-a", m.Links[0]), snap("vs-b", top)}
	return m
}

func TestSnapshotsInAManifest(t *testing.T) {
	for what, change := range map[string]func(*datastore.Manifest){
		"fine":    func(*datastore.Manifest) {},
		"retired": func(m *datastore.Manifest) { m.Retired = true },
		"a merge": func(m *datastore.Manifest) {
			m.Merge = &datastore.Merge{Lower: "disk-000001.vmdk", Direction: datastore.Down}
		},
		"behind":                  func(m *datastore.Manifest) { m.Behind = "disk-000002.vmdk" },
		"two snapshots at a link": func(m *datastore.Manifest) { m.Snapshots[1].Link, m.Snapshots[1].CID = "disk.vmdk", m.Links[0].CID },
	} {
		v := volume(t, open(t, t.TempDir()), "x")
		m := family()
		change(&m)
		commit(t, v, m)
		if got, ok, err := v.Latest(); err != nil || !ok || len(got.Snapshots) != 2 || !got.Snapshots[0].Created.Equal(m.Snapshots[0].Created) {
			t.Errorf("%s: %+v %v %v", what, got, ok, err)
		}
	}
	for what, change := range map[string]func(*datastore.Manifest){
		"a frozen parent":      func(m *datastore.Manifest) { m.Links[1].Frozen = true },
		"a live head with one": func(m *datastore.Manifest) { m.Links[2].Frozen = false },
		"a frozen head grows":  func(m *datastore.Manifest) { m.Growing = 4 << 20 },
		"at no link":           func(m *datastore.Manifest) { m.Snapshots[0].Link = "disk-000009.vmdk" },
		"another size":         func(m *datastore.Manifest) { m.Snapshots[0].Size *= 2 },
		"another content":      func(m *datastore.Manifest) { m.Snapshots[0].CID = "12345678" },
		"twice":                func(m *datastore.Manifest) { m.Snapshots[1].ID = m.Snapshots[0].ID },
		"an id that is a path": func(m *datastore.Manifest) { m.Snapshots[0].ID = "../x" },
		"no name":              func(m *datastore.Manifest) { m.Snapshots[0].Name = "" },
		"a long name":          func(m *datastore.Manifest) { m.Snapshots[0].Name = strings.Repeat("n", 1025) },
		"too many":             func(m *datastore.Manifest) { m.Snapshots = make([]datastore.Snapshot, datastore.MaxSnapshots+1) },
		"a merge sideways":     func(m *datastore.Manifest) { m.Merge = &datastore.Merge{Lower: "disk-000001.vmdk", Direction: "left"} },
		"a merge of the head": func(m *datastore.Manifest) {
			m.Merge = &datastore.Merge{Lower: "disk-000002.vmdk", Direction: datastore.Up}
		},
		"a merge of nothing":      func(m *datastore.Manifest) { m.Merge = &datastore.Merge{Direction: datastore.Up} },
		"a merge at a snapshot":   func(m *datastore.Manifest) { m.Merge = &datastore.Merge{Lower: "disk.vmdk", Direction: datastore.Up} },
		"behind of no link":       func(m *datastore.Manifest) { m.Behind = "disk-000009.vmdk" },
		"retired without any":     func(m *datastore.Manifest) { m.Retired, m.Snapshots = true, nil },
		"retired with more above": func(m *datastore.Manifest) { m.Retired, m.Snapshots = true, m.Snapshots[:1] },
	} {
		m := family()
		change(&m)
		wantKind(t, volume(t, open(t, t.TempDir()), "x").Commit(m), fault.Invalid, what)
	}
}

func snapshotRecord(id string) datastore.SnapshotRecord {
	return datastore.SnapshotRecord{ID: id, Key: "key-" + id, Name: "name of " + id, Disk: "vd-x", DiskUUID: strings.Repeat("0a", 16)}
}

func TestSnapshotNames(t *testing.T) {
	path := t.TempDir()
	s := open(t, path)
	r, made, err := s.ReserveSnapshot(snapshotRecord("vs-a"))
	if err != nil || !made {
		t.Fatalf("%+v %v %v", r, made, err)
	}
	other := snapshotRecord("vs-a")
	other.Disk = "vd-y"
	if again, made, err := s.ReserveSnapshot(other); err != nil || made || again != r {
		t.Fatalf("the name was given away: %+v %v %v", again, made, err)
	}
	for what, change := range map[string]func(*datastore.SnapshotRecord){
		"no id": func(r *datastore.SnapshotRecord) { r.ID = "" }, "a path": func(r *datastore.SnapshotRecord) { r.Disk = "../x" },
		"no name": func(r *datastore.SnapshotRecord) { r.Name = "" }, "uuid": func(r *datastore.SnapshotRecord) { r.DiskUUID = "0a" },
	} {
		bad := snapshotRecord("vs-b")
		change(&bad)
		_, _, err := s.ReserveSnapshot(bad)
		wantKind(t, err, fault.Invalid, what)
	}
	// A record of a volume is none of a snapshot.
	vol := record("x")
	vol.Key = "key-vs-c"
	if _, _, err := s.Reserve(vol); err != nil {
		t.Fatal(err)
	}
	_, err = s.ReservedSnapshot("key-vs-c")
	wantKind(t, err, fault.Damaged, "the record of a volume")
	if err := os.WriteFile(filepath.Join(path, "names", r.Key), []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = s.ReservedSnapshot(r.Key)
	wantKind(t, err, fault.Damaged, "a torn record")
	if err := s.Free(r.Key); err != nil {
		t.Fatal(err)
	}
	_, err = s.ReservedSnapshot(r.Key)
	wantKind(t, err, fault.NotFound, "a freed name")
}

func TestSourceOfARecord(t *testing.T) {
	for _, c := range []struct {
		src  datastore.Source
		want fault.Kind
	}{
		{datastore.Source{Snapshot: "vs-a"}, ""}, {datastore.Source{Disk: "vd-a"}, ""}, {datastore.Source{}, fault.Invalid},
		{datastore.Source{Snapshot: "vs-a", Disk: "vd-a"}, fault.Invalid}, {datastore.Source{Disk: "../x"}, fault.Invalid},
	} {
		r := record("x")
		r.Source = &c.src
		_, _, err := open(t, t.TempDir()).Reserve(r)
		wantKind(t, err, c.want, c.src.Snapshot+c.src.Disk)
	}
}

// While links are merged, or their descriptors are behind, nothing is surely unreferenced. Drop removes one link's files, and
// none that the manifest names.
func TestDropAndCollect(t *testing.T) {
	path := t.TempDir()
	v := volume(t, open(t, path), "x")
	m := family()
	for _, l := range m.Links {
		for _, n := range append([]string{l.Descriptor}, l.Extents...) {
			if err := os.WriteFile(filepath.Join(path, "volumes", "x", n), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	merging, behind := m, m
	merging.Merge = &datastore.Merge{Lower: "disk-000001.vmdk", Direction: datastore.Down}
	behind.Behind = "disk.vmdk"
	for what, m := range map[string]datastore.Manifest{"merging": merging, "behind": behind} {
		_, err := v.Collect(m)
		wantKind(t, err, fault.Precondition, what)
	}
	next := m
	next.Links = []datastore.Link{m.Links[0], m.Links[2]}
	for range 2 {
		if err := v.Drop(next, m.Links[1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.Drop(next, m.Links[0]); err != nil {
		t.Fatal(err)
	}
	want := "disk-000002-s001.vmdk disk-000002.vmdk disk-flat.vmdk disk.vmdk record.json"
	if got := strings.Join(list(t, path, "volumes", "x"), " "); got != want {
		t.Fatalf("left %s, want %s", got, want)
	}
}

// Without locks nobody excludes anybody; the commits decide.
func TestNoLocks(t *testing.T) {
	path := t.TempDir()
	with := func(no bool) *datastore.Datastore {
		s, err := datastore.OpenPath(path, datastore.Options{NoLocks: no})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		return s
	}
	for _, no := range []bool{false, true} {
		a, b := volume(t, with(no), "x"), volume(t, with(no), "x")
		if err := a.Lock(); err != nil {
			t.Fatal(err)
		}
		err := b.Lock()
		if no {
			wantKind(t, err, "", "a second lock without locks")
		} else {
			wantKind(t, err, fault.InProgress, "a second lock")
		}
		a.Unlock()
		b.Unlock()
		// A file of the volume that others lock is opened all the same.
		f, err := a.Dir().Open("record.json", fsx.ReadWrite)
		if err == nil {
			err = f.Lock(fsx.LockWrite)
			defer f.Close()
		}
		wantKind(t, err, "", "lock")
	}
	if s := with(true); !s.NoLocks() {
		t.Error("it does not say so")
	}
}
