package datastore_test

import (
	"slices"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/datastore"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// hooked is a directory in which others work between two steps of this process.
type hooked struct {
	fsx.Dir
	h *hooks
}

type hooks struct{ beforeLink, afterList func() }

func (d hooked) Sub(name string) (fsx.Dir, error) {
	s, err := d.Dir.Sub(name)
	if err != nil {
		return nil, err
	}
	return hooked{s, d.h}, nil
}

func (d hooked) LinkFrom(src fsx.Dir, srcName, name string) error {
	run(&d.h.beforeLink)
	return d.Dir.LinkFrom(src.(hooked).Dir, srcName, name)
}

func (d hooked) List() ([]string, error) {
	names, err := d.Dir.List()
	run(&d.h.afterList)
	return names, err
}

// run calls a hook, which may set itself again.
func run(hook *func()) {
	if f := *hook; f != nil {
		*hook = nil
		f()
	}
}

// beside is one volume as two hosts have it open; the hooks run in the first one's steps.
func beside(t *testing.T) (root string, slow, other *datastore.Volume, h *hooks) {
	t.Helper()
	root, h = t.TempDir(), &hooks{}
	other = volume(t, open(t, root), "x")
	commit(t, other, manifest(1, 1))
	d, err := fsx.OpenRoot(root)
	if err != nil {
		t.Fatal(err)
	}
	s, err := datastore.Open(hooked{d, h}, datastore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	if slow, err = s.OpenVolume("x"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(slow.Close)
	return root, slow, other, h
}

// A reader without the lock, whose manifest is removed between its list and its open, reads the one that came after; if
// that happens without end it says so, and never that the disk is not there.
func TestReadBesideCommits(t *testing.T) {
	_, slow, other, h := beside(t)
	next := int64(2)
	pass := func() {
		for range 2 {
			commit(t, other, manifest(next, 1))
			next++
		}
	}
	h.afterList = pass
	if m, ok, err := slow.Latest(); err != nil || !ok || m.Epoch != 3 {
		t.Fatalf("beside two commits: %+v %v %v", m, ok, err)
	}
	var always func()
	always = func() {
		pass()
		h.afterList = always
	}
	h.afterList = always
	_, _, err := slow.Latest()
	wantKind(t, err, fault.Unavailable, "beside commits without end")
	h.afterList = nil
	if m, ok, err := slow.Latest(); err != nil || !ok || m.Epoch != next-1 {
		t.Fatalf("afterwards: %+v %v %v", m, ok, err)
	}
}

// A committer stalls before its link until its number was taken, superseded and removed: the free name is no victory.
func TestLateCommitLoses(t *testing.T) {
	root, slow, other, h := beside(t)
	h.beforeLink = func() {
		for _, m := range []datastore.Manifest{manifest(2, 1), manifest(2, 2), manifest(3, 1)} {
			commit(t, other, m)
		}
		if names := list(t, root, "volumes", "x"); slices.Contains(names, "manifest-2-1.json") {
			t.Fatalf("the number is not free again: %v", names)
		}
	}
	wantKind(t, slow.Commit(manifest(2, 1)), fault.Exists, "a commit of a number that was passed")
	if m, ok, err := slow.Latest(); err != nil || !ok || m.Epoch != 3 {
		t.Fatalf("afterwards %+v %v %v", m, ok, err)
	}
	if names := list(t, root, "volumes", "x"); slices.Contains(names, "manifest-2-1.json") {
		t.Fatalf("it left its manifest: %v", names)
	}
	commit(t, slow, manifest(4, 1))
}
