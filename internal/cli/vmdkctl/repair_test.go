package vmdkctl

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
)

type repairAnswer struct {
	Verdict string
	Undo    string
	DryRun  bool
	Done    []struct{ Code string }
	Lost    []struct{ Code string }
}

// TestRepair: qemu's disk is damaged, mended, and read by qemu as before; undo brings the damage back.
func TestRepair(t *testing.T) {
	base := newRig(t)
	rnd := seeded(t)
	base.qemuDisk(rnd, "disk.vmdk", "monolithicSparse", 8)
	base.ok("create", "flat.vmdk", "--size", "1M")
	for _, tc := range []struct {
		name, disk string
		harm       func(r *rig)
		code       string
		loss       bool
		clean      bool
	}{
		{"unclean", "disk.vmdk", func(r *rig) { r.patch("disk.vmdk", 72, 1) }, "unclean-shutdown", false, true},
		{"copies differ", "disk.vmdk", func(r *rig) { r.patch("disk.vmdk", 22*512+4*300, 5) }, "table-copies-differ", false, true},
		{"text transfer", "disk.vmdk", func(r *rig) { r.patch("disk.vmdk", 73, '\r') }, "text-mode-transfer", false, true},
		{"directory far away", "disk.vmdk", func(r *rig) { r.patch("disk.vmdk", 58, 0xff) }, "directory-beyond-end", false, true},
		{"no header", "disk.vmdk", func(r *rig) { r.patch("disk.vmdk", 0, 0) }, "extent-damaged", false, true},
		{"extent short", "flat.vmdk", func(r *rig) { _ = os.Truncate(r.path("flat-flat.vmdk"), 1000) }, "extent-short", true, true},
		{"version", "disk.vmdk", func(r *rig) { r.patch("disk.vmdk", 4, 9) }, "", false, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t)
			base.peer("cp", "--sparse=always", "-a", ".", r.dir)
			tc.harm(r)
			want := 0
			if !tc.clean {
				want = cli.ExitDamaged
			}
			args := []string{"repair", tc.disk, "-o", "json"}
			if tc.loss {
				args = append(args, "--accept-loss")
			}
			dry, done := r.run(args...), r.run(append(args, "--fix", "all")...)
			var a, b repairAnswer
			for _, x := range []struct {
				res  result
				into *repairAnswer
			}{{dry, &a}, {done, &b}} {
				if err := json.Unmarshal([]byte(x.res.out), x.into); err != nil || x.res.code != want {
					t.Fatalf("%v\n%+v", err, x.res)
				}
			}
			if !a.DryRun || a.Undo != "" || b.DryRun || len(a.Done) != len(b.Done) || a.Verdict != b.Verdict || (len(b.Lost) > 0) != tc.loss {
				t.Errorf("dry run %+v, repair %+v", a, b)
			}
			if tc.code == "" {
				if len(b.Done) > 0 || b.Undo != "" {
					t.Errorf("%+v", b)
				}
				return
			}
			if len(b.Done) != 1 || b.Done[0].Code != tc.code || b.Undo != tc.disk+".undo" {
				t.Errorf("%+v", b)
			}
			r.ok("check", tc.disk)
			if !tc.loss {
				r.peer("qemu-img", "compare", "-f", "vmdk", "-F", "vmdk", tc.disk, base.path(tc.disk))
			}
			r.ok("repair", tc.disk, "--undo")
			if res := r.run("check", tc.disk); res.code == 0 || !strings.Contains(strings.Join(r.files(), " "), tc.disk) {
				t.Errorf("after undo: %+v", res)
			}
			r.fails(cli.ExitFailed, "", "repair", tc.disk, "--undo")
		})
	}
}

func TestRepairCommandLine(t *testing.T) {
	r := newRig(t)
	r.ok("create", "disk.vmdk", "--size", "1M", "--type", "monolithicSparse")
	r.fails(cli.ExitUsage, "cannot be repaired", "repair", "disk.vmdk", "--fix", "bad-version")
	r.fails(cli.ExitUsage, "does not go together", "repair", "disk.vmdk", "--undo", "--fix", "all")
	r.fails(cli.ExitUsage, "neither copy", "repair", "disk.vmdk", "--prefer", "best")
	r.fails(cli.ExitUsage, "beside the disk", "repair", "disk.vmdk", "--undo-file", "a/b")
	if out := r.ok("repair", "disk.vmdk", "--fix", "all"); !strings.Contains(out, "disk.vmdk: clean") {
		t.Errorf("a clean disk: %q", out)
	}
	if files := r.files(); len(files) != 1 {
		t.Errorf("files %v", files)
	}
}

// TestRepairVolume: a volume of a datastore is repaired by its name, unless somebody has it.
func TestRepairVolume(t *testing.T) {
	r := newRig(t)
	if err := os.Mkdir(r.path("store"), 0o755); err != nil {
		t.Fatal(err)
	}
	on := func(args ...string) []string { return append(args, "--datastore", "store") }
	r.ok(on("create", "db", "--size", "64M", "--type", "twoGbMaxExtentSparse")...)
	extents, err := filepath.Glob(r.path("store/volumes/*/*-s001.vmdk"))
	if err != nil || len(extents) != 1 {
		t.Fatalf("%v %v", extents, err)
	}
	extent := strings.TrimPrefix(extents[0], r.dir+"/")
	r.patch(extent, 2*512+4*100, 5) // sector 2 is the first redundant table of an extent
	if res := r.run(on("check", "db")...); res.code != cli.ExitDamaged {
		t.Errorf("damaged: %+v", res)
	}
	r.ok(on("repair", "db", "--fix", "all")...)
	r.ok(on("check", "db")...)
	r.ok(on("repair", "db", "--undo")...)
	if res := r.run(on("check", "db")...); res.code != cli.ExitDamaged {
		t.Errorf("undone: %+v", res)
	}
}
