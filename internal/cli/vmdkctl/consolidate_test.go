package vmdkctl

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// Snapshots makes a volume with a snapshot after each of n rounds of 8 writes, and returns their contents; the last one is what
// the disk has now.
func (r *storeRig) snapshots(name, diskType string, n int) [][]byte {
	r.t.Helper()
	r.ok(r.on("create", name, "--size", "8M", "--type", diskType)...)
	content := make([]byte, smallSize)
	var all [][]byte
	for i := range n {
		r.write(name, content, 8)
		r.ok(r.on("snapshot", name, snapshotName(i))...)
		all = append(all, bytes.Clone(content))
	}
	r.write(name, content, 8)
	return append(all, content)
}

// LongMerge makes a volume of which two links are to be merged, which copies a few MiB in either direction.
func (r *storeRig) longMerge(name string) []byte {
	r.t.Helper()
	r.ok(r.on("create", name, "--size", "8M", "--type", "twoGbMaxExtentSparse")...)
	content := make([]byte, smallSize)
	for i, snapshot := range []string{"s0", "s1"} {
		r.use(name, func(c *chain.Chain) {
			p := content[i*smallSize/2:][:smallSize/2]
			for j := range p {
				p[j] = byte(j>>9 + i + 1)
			}
			if _, err := c.WriteAt(p, int64(i*smallSize/2)); err != nil {
				r.t.Fatal(err)
			}
		})
		r.ok(r.on("snapshot", name, snapshot)...)
	}
	r.ok(r.on("snapshot", "--delete", "s0")...)
	return content
}

func snapshotName(i int) string { return "s" + string(rune('0'+i)) }

func TestConsolidate(t *testing.T) {
	for _, s := range []string{"monolithicFlat", "twoGbMaxExtentSparse"} {
		t.Run(s, func(t *testing.T) {
			r := newStoreRig(t)
			all := r.snapshots("db", s, 4) // five links
			var c consolidated
			r.json(&c, r.on("consolidate", "db")...)
			if c.Merged != 0 || c.Links != 5 || c.Waits != "" {
				t.Errorf("nothing to do: %+v", c)
			}
			for _, i := range []int{1, 2} {
				r.ok(r.on("snapshot", "--delete", snapshotName(i))...)
			}
			before := r.files()
			r.json(&c, r.on("consolidate", "db", "--dry-run")...)
			if len(c.Plan) != 2 || c.Plan[0].Direction == "" || c.Plan[0].Copies == 0 || c.Links != 5 || !slices.Equal(r.files(), before) {
				t.Errorf("dry run: %+v", c)
			}
			r.json(&c, r.on("consolidate", "db", "--rate", "1G")...)
			if c.Merged != 2 || c.Links != 3 {
				t.Errorf("consolidate: %+v", c)
			}
			r.holds("db", all[4])
			for _, i := range []int{0, 3} {
				r.ok(r.on("restore", snapshotName(i), "of"+snapshotName(i))...)
				r.holds("of"+snapshotName(i), all[i])
			}
			// Links that the restored disks share are left alone.
			for _, i := range []int{0, 3} {
				r.ok(r.on("snapshot", "--delete", snapshotName(i))...)
			}
			var shared consolidated
			r.json(&shared, r.on("consolidate", "db", "--dry-run")...)
			if len(shared.Plan) != 2 || shared.Plan[0].Direction != "" || shared.Plan[0].Waits == "" {
				t.Errorf("dry run with shared links: %+v", shared)
			}
			r.json(&c, r.on("consolidate", "db")...)
			if c.Merged != 0 || c.Waits == "" || c.Links != 3 {
				t.Errorf("shared: %+v", c)
			}
			for _, i := range []int{0, 3} {
				r.ok(r.on("delete", "of"+snapshotName(i))...)
			}
			r.json(&c, r.on("consolidate", "db")...)
			if c.Merged != 2 || c.Links != 1 {
				t.Errorf("not shared any more: %+v", c)
			}
			r.holds("db", all[4])
			r.deleteAll()
		})
	}
}

// The driver's own view of a volume is that of vmdkctl: what is planned is what package volume does.
func TestPlanIsWhatHappens(t *testing.T) {
	r := newStoreRig(t)
	all := r.snapshots("db", "monolithicFlat", 3)
	r.ok(r.on("snapshot", "--delete", "s0")...)
	var plan, done consolidated
	r.json(&plan, r.on("consolidate", "db", "--dry-run")...)
	if len(plan.Plan) != 1 || plan.Plan[0].Direction == "" {
		t.Fatalf("plan: %+v", plan)
	}
	p := plan.Plan[0]
	gone := p.Upper
	if p.Direction == chain.Up {
		gone = p.Lower
	}
	r.json(&done, r.on("consolidate", "db")...)
	var c chainInfo
	r.json(&c, r.on("chain", "db")...)
	for _, l := range c.Links {
		if filepath.Base(l.File) == gone {
			t.Errorf("%s is still there: %+v", gone, p)
		}
	}
	if done.Merged != 1 || len(c.Links) != 3 {
		t.Errorf("%+v, %d links", done, len(c.Links))
	}
	r.holds("db", all[3])
}

func TestFlatten(t *testing.T) {
	r := newStoreRig(t)
	all := r.snapshots("db", "monolithicFlat", 2)
	r.fails(cli.ExitFailed, "has 2 snapshots", r.on("flatten", "db")...)
	r.ok(r.on("restore", "s0", "old", "--size", "9M")...)
	var f flattened
	r.json(&f, r.on("flatten", "old", "--dry-run")...)
	if f.Links < 2 || len(r.names("old")) != f.Links {
		t.Errorf("dry run: %+v", f)
	}
	r.json(&f, r.on("flatten", "old")...)
	if len(r.names("old")) != 1 || f.Links < 2 || f.Allocated == 0 {
		t.Errorf("flatten: %+v, %d links", f, len(r.names("old")))
	}
	r.holds("old", append(bytes.Clone(all[0]), make([]byte, 1<<20)...))
	var again flattened
	r.json(&again, r.on("flatten", "old")...)
	if again.Links != 1 {
		t.Errorf("again: %+v", again)
	}
	r.holds("db", all[2])
	r.deleteAll()
	// Plain files.
	r.peer("qemu-img", "create", "-q", "-f", "vmdk", "base.vmdk", "8M")
	r.scribble(r.rnd, "base.vmdk", smallSize, 5)
	r.peer("qemu-img", "create", "-q", "-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", "head.vmdk")
	r.scribble(r.rnd, "head.vmdk", smallSize, 5)
	r.fails(cli.ExitFailed, "plain files", "flatten", "head.vmdk")
	r.ok("flatten", "head.vmdk", "flat.vmdk")
	r.same("head.vmdk", "flat.vmdk")
	if out := r.ok("info", "flat.vmdk"); !strings.Contains(out, "monolithicFlat") {
		t.Error(out)
	}
}

// An interrupted consolidation leaves the disk whole, and the next one goes on.
func TestInterruptedConsolidation(t *testing.T) {
	r := newStoreRig(t)
	content := r.longMerge("db")
	for _, kill := range []bool{false, true} {
		cmd := r.command(r.on("consolidate", "db", "--rate", "64k")...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		begun := func() bool {
			v, err := readVolume(r.dir, host.DiskID("db"))
			return err == nil && v.Manifest.Merge != nil
		}
		for deadline := time.Now().Add(20 * time.Second); !begun(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("it never began")
			}
		}
		sig := os.Interrupt
		if kill {
			sig = os.Kill
		}
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		err := cmd.Wait()
		if err == nil || !kill && cmd.ProcessState.ExitCode() != cli.ExitFailed {
			t.Errorf("interrupted: %v", err)
		}
		if kill == begun() {
			continue
		}
		t.Errorf("kill %v: the merge is recorded: %v", kill, begun())
	}
	if res := r.run(r.on("check", "db")...); res.code != cli.ExitWarned || !strings.Contains(res.out, "a merge was interrupted") {
		t.Errorf("check of an interrupted merge: %+v", res)
	}
	var c consolidated
	r.json(&c, r.on("consolidate", "db")...)
	if c.Merged != 1 || c.Links != 1 {
		t.Errorf("went on: %+v", c)
	}
	r.holds("db", content)
	r.ok(r.on("restore", "s1", "old")...)
	r.holds("old", content)
	r.deleteAll()
}

func TestGoldenConsolidate(t *testing.T) {
	golden(t, testdata("consolidate"), func(w io.Writer) error {
		return writeConsolidated(w, consolidated{Disk: "database", Merged: 2, Freed: 3 << 20, Links: 3, Waits: "other disks share the links"})
	})
	golden(t, testdata("consolidate-plan"), func(w io.Writer) error {
		return writeConsolidated(w, consolidated{Disk: "database", DryRun: true, Links: 5, Plan: []mergePlan{
			{Lower: "disk.vmdk", Upper: "disk-000001.vmdk", Direction: chain.Down, Copies: 5 << 20, Frees: 3 << 20},
			{Lower: "disk-000001.vmdk", Upper: "disk-000002.vmdk", Direction: chain.Up, Copies: 64 << 10},
			{Lower: "disk-000003.vmdk", Upper: "disk-000004.vmdk", Waits: "other disks share it"},
		}})
	})
	golden(t, testdata("consolidate-nothing"), func(w io.Writer) error {
		return writeConsolidated(w, consolidated{Disk: "database", DryRun: true, Links: 1})
	})
}

func TestGoldenSnapshots(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	golden(t, testdata("snapshots"), func(w io.Writer) error {
		return writeSnapshots(w, []snapshotInfo{
			{host.Snapshot{ID: "vs-a", Name: "monday", Size: 10 << 30, Created: at, Consistency: host.FilesystemConsistent}, "database"},
			{host.Snapshot{ID: "vs-b", Name: "tuesday", Size: 12 << 30, Created: at.Add(24 * time.Hour), Consistency: host.CrashConsistent}, "[gone]"},
		}, time.UTC)
	})
	golden(t, testdata("snapshots-none"), func(w io.Writer) error { return writeSnapshots(w, nil, time.UTC) })
	golden(t, testdata("list-datastore"), func(w io.Writer) error {
		return writeDisks(w, []storeDisk{
			{ID: "vd-a", Name: "database", Size: 10 << 30, Allocated: 3 << 30, Links: 3, Snapshots: []string{"monday", "tuesday"}},
			{ID: "vd-b", Name: "web", Size: 1 << 30, Allocated: 1 << 20, Links: 1, Owner: "worker-1"},
			{ID: "vd-c", Name: "test", Size: 1 << 30, Allocated: 1 << 20, Links: 1, Owner: "here/vmdkctl", Device: "/dev/loop0"},
			{ID: "vd-d", Name: "gone", Size: 1 << 30, Links: 1, Snapshots: []string{"x"}, Retired: true},
			{ID: "vd-e", Reason: "manifest-1-1.json: checksum"},
		})
	})
	golden(t, testdata("list-datastore-none"), func(w io.Writer) error { return writeDisks(w, nil) })
}
