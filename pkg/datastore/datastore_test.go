package datastore_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/datastore"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/lease"
)

func open(t *testing.T, path string) *datastore.Datastore {
	t.Helper()
	s, err := datastore.OpenPath(path, datastore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func record(id string) datastore.Record {
	return datastore.Record{ID: id, Key: "key-" + id, Name: "name of " + id, UUID: strings.Repeat("0a", 16), Size: 1 << 20, Format: "thin", Type: "monolithicFlat"}
}

func manifest(epoch, seq int64) datastore.Manifest {
	return datastore.Manifest{
		UUID: strings.Repeat("0a", 16), Size: 1 << 20,
		State: lease.State{Epoch: epoch, Seq: seq, Owner: lease.Identity{Host: "a", BootID: "1"}, Released: true},
		Links: []datastore.Link{{Descriptor: "disk.vmdk", Extents: []string{"disk-flat.vmdk"}, Type: "monolithicFlat",
			CID: "fffffffe", ParentCID: "ffffffff", Size: 1 << 20}},
	}
}

func volume(t *testing.T, s *datastore.Datastore, id string) *datastore.Volume {
	t.Helper()
	v, err := s.MakeVolume(record(id))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Close)
	return v
}

func commit(t *testing.T, v *datastore.Volume, m datastore.Manifest) {
	t.Helper()
	if err := v.Commit(m); err != nil {
		t.Fatal(err)
	}
}

func list(t *testing.T, path ...string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func put(t *testing.T, text string, path ...string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(path...), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func wantKind(t *testing.T, err error, want fault.Kind, what string) {
	t.Helper()
	if got := fault.KindOf(err); got != want {
		t.Fatalf("%s: %v: kind %q, want %q", what, err, got, want)
	}
}

func TestRootIsNeverMade(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gone")
	_, err := datastore.OpenPath(path, datastore.Options{})
	wantKind(t, err, fault.NotFound, "open")
	var f *fault.Fault
	if !errors.As(err, &f) || f.Remedy == "" {
		t.Fatalf("no remedy: %v", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal("the root was made")
	}
	file := filepath.Join(t.TempDir(), "file")
	put(t, "", file)
	if _, err := datastore.OpenPath(file, datastore.Options{}); err == nil {
		t.Fatal("a file was opened as a datastore")
	}
}

func TestIdentity(t *testing.T) {
	root := t.TempDir()
	uuid := open(t, root).UUID()
	if again := open(t, root).UUID(); again != uuid {
		t.Fatalf("identity %s became %s", uuid, again)
	}
	_, err := datastore.OpenPath(root, datastore.Options{UUID: strings.Repeat("0", 32)})
	wantKind(t, err, fault.Precondition, "another identity")
	empty := t.TempDir()
	_, err = datastore.OpenPath(empty, datastore.Options{UUID: uuid})
	wantKind(t, err, fault.Precondition, "an empty directory in its place")
	if left := list(t, empty); len(left) != 0 {
		t.Fatalf("%v was made", left)
	}
	put(t, "{}", root, ".vmdk-csi", "datastore.json")
	_, err = datastore.OpenPath(root, datastore.Options{})
	wantKind(t, err, fault.Damaged, "a damaged identity")
}

func TestNames(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	if _, made, err := s.Reserve(record("x")); err != nil || !made {
		t.Fatalf("reserve: %v %v", made, err)
	}
	other := record("x")
	other.UUID = strings.Repeat("0b", 16)
	if owner, made, err := s.Reserve(other); err != nil || made || owner.UUID != record("x").UUID {
		t.Fatalf("reserve a taken name: %+v %v %v", owner, made, err)
	}
	for _, key := range []string{"", ".", "..", "../x", "a/b", ".hidden", strings.Repeat("k", 1000)} {
		bad := record("x")
		bad.Key = key
		_, _, err := s.Reserve(bad)
		wantKind(t, err, fault.Invalid, "key "+key)
		_, err = s.OpenVolume(key)
		wantKind(t, err, fault.Invalid, "id "+key)
	}
	text, err := os.ReadFile(filepath.Join(root, "names", "key-x"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range text {
		flipped := slices.Clone(text)
		flipped[i] ^= 1
		put(t, string(flipped), root, "names", "key-x")
		if _, err := s.Reserved("key-x"); fault.KindOf(err) != fault.Damaged {
			t.Fatalf("byte %d flipped: %v", i, err)
		}
	}
	for range 2 {
		if err := s.Free("key-x"); err != nil {
			t.Fatal(err)
		}
	}
	_, err = s.Reserved("key-x")
	wantKind(t, err, fault.NotFound, "a free name")
}

// The highest manifest is the truth or nothing is: one that cannot be read is never skipped for an older one.
func TestDamagedManifest(t *testing.T) {
	root := t.TempDir()
	v := volume(t, open(t, root), "x")
	commit(t, v, manifest(1, 1))
	commit(t, v, manifest(2, 1))
	path := filepath.Join(root, "volumes", "x", "manifest-2-1.json")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	damage := map[string]string{
		"empty": "", "cut": string(text[:len(text)/2]), "without its sum": string(text[:len(text)-73]),
		"longer": string(text) + "\n", "huge": strings.Repeat(" ", 5<<20),
	}
	for i := range text {
		flipped := slices.Clone(text)
		flipped[i] ^= 1
		damage["byte "+string(rune('0'+i%10))+" flipped at "+string(text[:min(i, 1)])+strings.Repeat("x", i)] = string(flipped)
	}
	for what, bad := range damage {
		put(t, bad, path)
		if m, _, err := v.Latest(); fault.KindOf(err) != fault.Damaged {
			t.Fatalf("%.40s: manifest %d-%d, %v", what, m.Epoch, m.Seq, err)
		}
	}
	put(t, string(text), path)
	for _, name := range []string{"manifest-3.json", "manifest-03-1.json", "manifest--1.json", "manifest-3-1.json.bak", "manifest-9999999999999999999-1.json"} {
		put(t, "junk", root, "volumes", "x", name)
	}
	if m, ok, err := v.Latest(); err != nil || !ok || m.Epoch != 2 {
		t.Fatalf("files that are no manifests are in the way: %+v %v %v", m, ok, err)
	}
}

// A manifest with a right sum and wrong content is refused, when it is written and when it is read.
func TestManifestRules(t *testing.T) {
	for what, change := range map[string]func(*datastore.Manifest){
		"epoch 0":            func(m *datastore.Manifest) { m.Epoch = 0 },
		"no links":           func(m *datastore.Manifest) { m.Links = nil },
		"no extents":         func(m *datastore.Manifest) { m.Links[0].Extents = nil },
		"a path":             func(m *datastore.Manifest) { m.Links[0].Extents[0] = "../disk-flat.vmdk" },
		"a foreign name":     func(m *datastore.Manifest) { m.Links[0].Descriptor = "record.json" },
		"a name twice":       func(m *datastore.Manifest) { m.Links[0].Extents[0] = m.Links[0].Descriptor },
		"another size":       func(m *datastore.Manifest) { m.Size *= 2 },
		"half a sector":      func(m *datastore.Manifest) { m.Size, m.Links[0].Size = 1000, 1000 },
		"growing smaller":    func(m *datastore.Manifest) { m.Growing = 512 },
		"an unrecorded step": func(m *datastore.Manifest) { grow(m); m.Steps = nil },
		"a step that is not": func(m *datastore.Manifest) { m.Steps = []datastore.Step{{Link: 1, From: 1, To: 2}} },
		"a child that is smaller": func(m *datastore.Manifest) {
			grow(m)
			m.Links[0].Size, m.Steps = 4<<20, []datastore.Step{{Link: 1, From: 4 << 20, To: 2 << 20}}
		},
	} {
		m := manifest(1, 1)
		m.Links = slices.Clone(m.Links)
		m.Links[0].Extents = slices.Clone(m.Links[0].Extents)
		change(&m)
		wantKind(t, volume(t, open(t, t.TempDir()), "x").Commit(m), fault.Invalid, what)
	}
	m := manifest(1, 1)
	grow(&m)
	v := volume(t, open(t, t.TempDir()), "x")
	commit(t, v, m)
	if got, ok, err := v.Latest(); err != nil || !ok || len(got.Steps) != 1 {
		t.Fatalf("a recorded step: %+v %v %v", got, ok, err)
	}
}

// grow adds a larger child, and records the step.
func grow(m *datastore.Manifest) {
	m.Links = append(slices.Clone(m.Links), datastore.Link{Descriptor: "disk-000001.vmdk", Extents: []string{"disk-000001-s001.vmdk"},
		Type: "twoGbMaxExtentSparse", CID: "1", ParentCID: "fffffffe", Size: 2 << 20})
	m.Size, m.Steps = 2<<20, []datastore.Step{{Link: 1, From: 1 << 20, To: 2 << 20}}
}

func TestCommitIsWonOnce(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	v := volume(t, s, "x")
	for seq := range int64(5) {
		commit(t, v, manifest(1, seq+1))
	}
	rival, err := s.OpenVolume("x")
	if err != nil {
		t.Fatal(err)
	}
	defer rival.Close()
	wantKind(t, rival.Commit(manifest(1, 5)), fault.Exists, "a commit that somebody else won")
	want := []string{"manifest-1-4.json", "manifest-1-5.json", "record.json"}
	if got := list(t, root, "volumes", "x"); !slices.Equal(got, want) {
		t.Fatalf("files %v, want %v: the last two manifests and no temporary file", got, want)
	}
}

func TestLockExcludes(t *testing.T) {
	s := open(t, t.TempDir())
	v := volume(t, s, "x")
	if err := v.Lock(); err != nil {
		t.Fatal(err)
	}
	other, err := s.OpenVolume("x")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	wantKind(t, other.Lock(), fault.InProgress, "a locked volume")
	v.Unlock()
	if err := other.Lock(); err != nil {
		t.Fatal(err)
	}
}

func TestCollect(t *testing.T) {
	root := t.TempDir()
	v := volume(t, open(t, root), "x")
	m := manifest(1, 1)
	commit(t, v, m)
	for _, n := range []string{"disk.vmdk", "disk-flat.vmdk", "disk-000001.vmdk", ".tmp-dead", "notes.txt", ".nfs0001"} {
		put(t, "", root, "volumes", "x", n)
	}
	if err := errors.Join(os.Mkdir(filepath.Join(root, "volumes", "x", "disk.vmdk.lck"), 0o755),
		os.Symlink("/etc/passwd", filepath.Join(root, "volumes", "x", "disk-link.vmdk"))); err != nil {
		t.Fatal(err)
	}
	growing := m
	growing.Growing = 2 << 20
	_, err := v.Collect(growing)
	wantKind(t, err, fault.Precondition, "collect for a manifest that does not know all extents yet")
	for _, want := range [][]string{{".tmp-dead", "disk-000001.vmdk", "notes.txt"}, nil} {
		got, err := v.Collect(m)
		slices.Sort(got)
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("collected %v %v, want %v", got, err, want)
		}
	}
}

func TestDiscardAndSweep(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	v := volume(t, s, "x")
	commit(t, v, manifest(1, 1))
	put(t, "data", root, "volumes", "x", "disk-flat.vmdk")
	if err := s.Discard(v); err != nil {
		t.Fatal(err)
	}
	if left := list(t, root, "volumes"); len(left) != 0 {
		t.Fatalf("left %v", left)
	}
	// What a crash in the middle leaves, the next open removes; a temporary file that is being written stays.
	if err := os.Mkdir(filepath.Join(root, "volumes", ".deleted-y-1"), 0o755); err != nil {
		t.Fatal(err)
	}
	put(t, "data", root, "volumes", ".deleted-y-1", "disk-flat.vmdk")
	put(t, "", root, "names", ".tmp-dead")
	put(t, "", root, "names", ".tmp-alive")
	d, err := fsx.OpenRoot(filepath.Join(root, "names"))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	f, err := d.Open(".tmp-alive", fsx.ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Lock(fsx.LockWrite); err != nil {
		t.Fatal(err)
	}
	open(t, root)
	if left := list(t, root, "volumes"); len(left) != 0 {
		t.Fatalf("left %v", left)
	}
	if left := list(t, root, "names"); !slices.Equal(left, []string{".tmp-alive"}) {
		t.Fatalf("names %v", left)
	}
}
