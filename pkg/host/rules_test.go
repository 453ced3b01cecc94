package host_test

import (
	"strings"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

const mib = 1 << 20

func spec(change ...func(*host.DiskSpec)) host.DiskSpec {
	s := host.DiskSpec{Name: "x", Datastore: "a", Size: 4 * mib}
	for _, c := range change {
		c(&s)
	}
	return s
}

func source(snapshot, disk string) func(*host.DiskSpec) {
	return func(s *host.DiskSpec) { s.Source = &host.Source{Snapshot: snapshot, Disk: disk} }
}

// Each refusal has its kind, and says what was wrong.
func TestDiskSpec(t *testing.T) {
	snapshot, disk := host.SnapshotID("s"), host.DiskID("d")
	for _, tc := range []struct {
		spec host.DiskSpec
		kind fault.Kind // "": fine
		says string
	}{
		{spec(), "", ""},
		{spec(source(snapshot, "")), "", ""},
		{spec(source("", disk)), "", ""},
		{spec(func(s *host.DiskSpec) { s.Name = "" }), fault.Invalid, "1 to 1024 bytes"},
		{spec(func(s *host.DiskSpec) { s.Format = "fat" }), fault.Invalid, `"fat"`},
		{spec(func(s *host.DiskSpec) { s.Type = "streamOptimized" }), fault.Invalid, `"streamOptimized"`},
		{spec(func(s *host.DiskSpec) { s.Size = 0 }), fault.OutOfRange, "1 MiB"},
		{spec(func(s *host.DiskSpec) { s.Size++ }), fault.Invalid, "multiples"},
		{spec(func(s *host.DiskSpec) { s.CloneMode = "half" }), fault.Invalid, `"half"`},
		{spec(source("", "")), fault.Invalid, "one snapshot or one disk"},
		{spec(source(snapshot, disk)), fault.Invalid, "one snapshot or one disk"},
		{spec(source(disk, "")), fault.NotFound, disk},
		{spec(source("", snapshot)), fault.NotFound, snapshot},
		{spec(source("../../etc", "")), fault.NotFound, "../../etc"},
	} {
		got, err := tc.spec.Normalize()
		if fault.KindOf(err) != tc.kind || err != nil && !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%+v: %v, want %q that says %q", tc.spec, err, tc.kind, tc.says)
		}
		if want := (tc.spec.Source != nil); err == nil && (got.CloneMode == host.CloneLinked) != want {
			t.Errorf("%+v: cloneMode %q", tc.spec, got.CloneMode)
		}
	}
	if got, err := spec(func(s *host.DiskSpec) { s.CloneMode = host.CloneFull }).Normalize(); err != nil || got.CloneMode != "" {
		t.Errorf("cloneMode without a source: %+v, %v", got, err)
	}
}

func TestMatches(t *testing.T) {
	have := spec(source(host.SnapshotID("s"), ""), func(s *host.DiskSpec) { s.CloneMode = host.CloneLinked })
	for field, change := range map[string]func(*host.DiskSpec){
		"":           func(s *host.DiskSpec) { s.Host = "elsewhere" },
		"datastore":  func(s *host.DiskSpec) { s.Datastore = "b" },
		"size":       func(s *host.DiskSpec) { s.Size *= 2 },
		"diskFormat": func(s *host.DiskSpec) { s.Format = host.ZeroedThick },
		"diskType":   func(s *host.DiskSpec) { s.Type = host.TwoGbMaxExtentSparse },
		"source":     source(host.SnapshotID("another"), ""),
		"no source":  func(s *host.DiskSpec) { s.Source = nil },
		"cloneMode":  func(s *host.DiskSpec) { s.CloneMode = host.CloneFull },
	} {
		ask := have
		ask.Source = &host.Source{Snapshot: have.Source.Snapshot} // equal, not the same
		change(&ask)
		err := have.Matches(ask)
		if field == "" && err != nil || field != "" && (fault.KindOf(err) != fault.Exists || !strings.Contains(err.Error(), field)) {
			t.Errorf("another %s: %v", field, err)
		}
	}
	if err := have.CheckSource("a", have.Size); err != nil {
		t.Error(err)
	}
	if err := have.CheckSource("b", have.Size); fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), "Use datastore b") {
		t.Errorf("another datastore: %v", err)
	}
	if err := have.CheckSource("a", have.Size+1); fault.KindOf(err) != fault.OutOfRange || fault.From(err).Remedy == "" {
		t.Errorf("a larger source: %v", err)
	}
}

func TestSnapshotSpec(t *testing.T) {
	for _, tc := range []struct {
		spec host.SnapshotSpec
		says string // "": fine
	}{
		{host.SnapshotSpec{Name: "s"}, ""},
		{host.SnapshotSpec{Name: "s", Freeze: host.FreezeFilesystem, FreezeDeadline: time.Minute, Frozen: time.Minute}, ""},
		{host.SnapshotSpec{}, "1 to 1024 bytes"},
		{host.SnapshotSpec{Name: strings.Repeat("n", 1025)}, "1025"},
		{host.SnapshotSpec{Name: "s", Freeze: "solid"}, `"solid"`},
		{host.SnapshotSpec{Name: "s", FreezeDeadline: -1}, "0 to 1m0s"},
		{host.SnapshotSpec{Name: "s", FreezeDeadline: time.Minute + 1}, "0 to 1m0s"},
		{host.SnapshotSpec{Name: "s", Frozen: -1}, "0 to 1m0s"},
	} {
		got, err := tc.spec.Normalize()
		if tc.says == "" && (err != nil || got.Freeze == "") || tc.says != "" && (fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), tc.says)) {
			t.Errorf("%+v: %+v, %v, want %q", tc.spec, got, err, tc.says)
		}
	}
	have := host.SnapshotSpec{Name: "s", Disk: host.DiskID("a")}
	if err := have.Matches(host.SnapshotSpec{Name: "s", Disk: have.Disk, Freeze: host.FreezeFilesystem}); err != nil {
		t.Error(err)
	}
	if err := have.Matches(host.SnapshotSpec{Name: "s", Disk: host.DiskID("b")}); fault.KindOf(err) != fault.Exists {
		t.Errorf("of another disk: %v", err)
	}
}
