package node

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/stage"
)

func TestJournal(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	j, err := openJournal(dir)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := j.load("vd-x"); r != nil || err != nil {
		t.Fatalf("no record: %v, %v", r, err)
	}
	want := &record{Volume: stage.Volume{ID: "vd-x", StagingPath: "/s", Mode: stage.Mount, FSType: "xfs", Options: []string{"noatime"}},
		Staged: true, UUID: "6000", Targets: []publication{{Target: "/t", ReadOnly: true}}}
	if err := j.save(want); err != nil {
		t.Fatal(err)
	}
	if got, err := j.load("vd-x"); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	// A temporary file that a crash left is no record, and in nobody's way.
	if err := os.WriteFile(j.path("vd-y")+tempSuffix, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if ids, err := j.ids(); err != nil || !reflect.DeepEqual(ids, []string{"vd-x"}) {
		t.Errorf("ids %v, %v", ids, err)
	}
	if err := j.save(&record{Volume: stage.Volume{ID: "vd-y"}}); err != nil {
		t.Error(err)
	}
	for _, damaged := range []string{"", "{", `{"version":2,"volume":{"ID":"vd-x"}}`, `{"version":1,"volume":{"ID":"vd-z"}}`} {
		if err := os.WriteFile(j.path("vd-x"), []byte(damaged), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := j.load("vd-x"); !errors.Is(err, fault.Damaged) {
			t.Errorf("%q: %v, want Damaged", damaged, err)
		}
	}
	for range 2 {
		if err := j.remove("vd-x"); err != nil {
			t.Error(err)
		}
	}
}
