package vmdkctl

import (
	"bytes"
	"context"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/datastore"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/lease"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
	"github.com/vmdk-csi/vmdk-csi/pkg/volume"
)

// StoreRig is a rig whose directory is a datastore.
type storeRig struct {
	*rig
	rnd *rand.Rand
}

func newStoreRig(t *testing.T) *storeRig { return &storeRig{newRig(t), seeded(t)} }

// On adds the datastore to a command line.
func (r *storeRig) on(args ...string) []string { return append(args, "--datastore", r.dir) }

// Write writes random places of a detached volume, and the same into want.
func (r *storeRig) write(name string, want []byte, writes int) {
	r.t.Helper()
	r.use(name, func(c *chain.Chain) {
		for range writes {
			p := bytes.Repeat([]byte{byte(1 + r.rnd.IntN(255))}, 512*(1+r.rnd.IntN(200)))
			at := 512 * r.rnd.Int64N(int64(len(want)-len(p))/512)
			if _, err := c.WriteAt(p, at); err != nil {
				r.t.Fatal(err)
			}
			copy(want[at:], p)
		}
	})
}

// Use opens a detached volume as a worker would.
func (r *storeRig) use(name string, do func(*chain.Chain)) {
	r.t.Helper()
	store, volumes, err := openVolumes(r.dir, slog.New(slog.DiscardHandler))
	if err != nil {
		r.t.Fatal(err)
	}
	defer store.Close()
	o, err := volumes.OpenForAttach(r.t.Context(), host.DiskID(name), false)
	if err != nil {
		r.t.Fatal(err)
	}
	defer o.Dir.Close()
	d, err := fsx.OpenRoot(filepath.Dir(r.head(name)))
	if err != nil {
		r.t.Fatal(err)
	}
	defer d.Close()
	c, err := chain.Open(d, o.Refs, chain.Options{Locks: true})
	if err != nil {
		r.t.Fatal(err)
	}
	do(c)
	if err := c.Close(); err != nil {
		r.t.Fatal(err)
	}
	if err := volumes.Release(context.Background(), o.ID, o.Epoch, false); err != nil {
		r.t.Fatal(err)
	}
}

// Head is the path of a volume's topmost descriptor.
func (r *storeRig) head(name string) string {
	r.t.Helper()
	var c chainInfo
	r.json(&c, r.on("chain", name)...)
	return c.Links[len(c.Links)-1].File
}

// Holds fails when the volume has other content than want; qemu and the engine are asked.
func (r *storeRig) holds(name string, want []byte) {
	r.t.Helper()
	raw := r.path("want.raw")
	if err := os.WriteFile(raw, want, 0o600); err != nil {
		r.t.Fatal(err)
	}
	r.same(r.head(name), raw)
	if err := os.Remove(raw); err != nil {
		r.t.Fatal(err)
	}
	r.ok(r.on("check", name)...)
}

// Names are the snapshots at each link of a volume, base first.
func (r *storeRig) names(disk string) [][]string {
	r.t.Helper()
	var c chainInfo
	r.json(&c, r.on("chain", disk)...)
	var out [][]string
	for _, l := range c.Links {
		out = append(out, l.Snapshots)
	}
	return out
}

// Empty fails when the datastore has anything of a disk.
func (r *storeRig) empty() {
	r.t.Helper()
	for _, d := range []string{"names", "volumes"} {
		left, err := os.ReadDir(r.path(d))
		if err != nil || len(left) != 0 {
			r.t.Errorf("%s has %v, %v", d, left, err)
		}
	}
}

const smallSize = 8 << 20

func TestSnapshotRestoreClone(t *testing.T) {
	for _, s := range []string{"monolithicFlat", "twoGbMaxExtentSparse"} {
		t.Run(s, func(t *testing.T) {
			r := newStoreRig(t)
			r.ok(r.on("create", "db", "--size", "8M", "--type", s)...)
			now := make([]byte, smallSize)
			r.write("db", now, 10)
			var first, again snapshotInfo
			r.json(&first, r.on("snapshot", "db", "monday")...)
			r.json(&again, r.on("snapshot", "db", "monday")...)
			if first.ID != host.SnapshotID("monday") || again.ID != first.ID || !again.Created.Equal(first.Created) || first.DiskName != "db" || first.Size != smallSize ||
				first.Consistency != host.FilesystemConsistent {
				t.Errorf("snapshot: %+v, again %+v", first, again)
			}
			monday := bytes.Clone(now)
			r.write("db", now, 10)
			r.ok(r.on("snapshot", "db", "tuesday")...)
			tuesday := bytes.Clone(now)
			r.write("db", now, 10)
			if got := r.names("db"); len(got) != 3 || !slices.Equal(got[0], []string{"monday"}) || !slices.Equal(got[1], []string{"tuesday"}) || got[2] != nil {
				t.Errorf("links with snapshots: %q", got)
			}
			r.ok(r.on("restore", "monday", "old")...)
			r.ok(r.on("restore", first.ID, "full", "--mode", "full", "--type", "twoGbMaxExtentSparse", "--size", "12M")...)
			r.ok(r.on("clone", "db", "copy", "--size", "9M")...)
			r.holds("old", monday)
			r.holds("full", append(bytes.Clone(monday), make([]byte, 4<<20)...))
			r.holds("copy", append(bytes.Clone(now), make([]byte, 1<<20)...))
			r.holds("db", now)
			if got := r.names("full"); len(got) != 1 {
				t.Errorf("a full copy has %d links", len(got))
			}
			// Each goes its own way.
			r.write("old", monday, 10)
			r.write("db", now, 10)
			r.holds("old", monday)
			r.holds("db", now)
			r.ok(r.on("restore", "tuesday", "later")...)
			r.holds("later", tuesday)
			r.deleteAll()
		})
	}
}

// DeleteAll deletes disks and snapshots in some order; nothing must be left.
func (r *storeRig) deleteAll() {
	r.t.Helper()
	var disks []storeDisk
	var snaps []snapshotInfo
	r.json(&disks, r.on("list")...)
	r.json(&snaps, r.on("snapshots")...)
	var todo [][]string
	for _, d := range disks {
		if !d.Retired { // it goes with its last snapshot
			todo = append(todo, []string{"delete", d.ID})
		}
	}
	for _, s := range snaps {
		todo = append(todo, []string{"snapshot", "--delete", s.ID})
	}
	r.rnd.Shuffle(len(todo), func(i, j int) { todo[i], todo[j] = todo[j], todo[i] })
	for _, args := range todo {
		r.ok(r.on(args...)...)
	}
	r.empty()
}

func TestDiffOfSnapshots(t *testing.T) {
	r := newStoreRig(t)
	r.ok(r.on("create", "db", "--size", "8M")...)
	content := make([]byte, smallSize)
	r.write("db", content, 10)
	r.ok(r.on("snapshot", "db", "monday")...)
	was := bytes.Clone(content)
	r.write("db", content, 5)
	r.ok(r.on("snapshot", "db", "tuesday")...)
	var want []span
	for at := int64(0); at < smallSize; at += 512 {
		if !bytes.Equal(was[at:at+512], content[at:at+512]) {
			want = append(want, span{at, at + 512})
		}
	}
	want = join(want)
	now := bytes.Clone(content)
	r.write("db", now, 5)
	r.ok(r.on("restore", "monday", "old")...)
	for _, args := range [][]string{{"monday", "tuesday"}, {"tuesday", "monday"}, {"old", "tuesday"}, {"tuesday", "old"}} {
		var d, exact diffResult
		r.json(&d, r.on("diff", args[0], args[1])...)
		r.json(&exact, r.on("diff", args[0], args[1], "--content")...)
		if !slices.Equal(exact.spans(), want) || d.Common == 0 {
			t.Errorf("%q: %v differs, want %v", args, exact.spans(), want)
		}
		// Whole grains: they cover what differs, and little more.
		if grains := d.spans(); d.Changed < exact.Changed || len(grains) == 0 || grains[0].start%65536 != 0 {
			t.Errorf("%q: grains %v, differences %v", args, grains, want)
		}
	}
	var d diffResult
	r.json(&d, r.on("diff", "tuesday", "db")...)
	if d.Changed == 0 || d.To != "db" {
		t.Errorf("to the disk as it is: %+v", d)
	}
	r.ok(r.on("snapshot", "db", "db")...)
	r.fails(cli.ExitFailed, "both a snapshot and a disk", r.on("diff", "monday", "db")...)
	r.ok(r.on("diff", "monday", host.DiskID("db"))...)
	r.fails(cli.ExitFailed, "no disk or snapshot", r.on("diff", "monday", "never")...)
}

// Names on the datastore complete, and making a datastore is not completion's business.
func TestCompletion(t *testing.T) {
	r := newStoreRig(t)
	if res := r.run(r.on("__complete", "info", "")...); strings.Contains(res.out, "db") || len(r.files()) > 0 {
		t.Errorf("completion made %v: %+v", r.files(), res)
	}
	r.ok(r.on("create", "db", "--size", "8M")...)
	r.ok(r.on("snapshot", "db", "monday")...)
	for _, tc := range []struct {
		args     []string
		has, not string
	}{
		{[]string{"info", ""}, "db", ""}, {[]string{"diff", ""}, "monday", ""}, {[]string{"diff", "monday", ""}, "db", ""},
		{[]string{"restore", ""}, "monday", "db\t"}, {[]string{"clone", ""}, "db", "monday"}, {[]string{"snapshot", "db", ""}, "", "db"},
		{[]string{"snapshot", "--delete", ""}, "monday", "db\t"}, {[]string{"consolidate", ""}, "db", "monday"},
		{[]string{"restore", "monday", "x", "--mode", ""}, "full", ""},
	} {
		out := r.ok(append([]string{"__complete", "--datastore", r.dir}, tc.args...)...)
		if !strings.Contains(out, tc.has) || tc.not != "" && strings.Contains(out, tc.not) {
			t.Errorf("%q completes with %q", tc.args, out)
		}
	}
}

// A disk that another host has attached is not touched.
func TestAttachedElsewhere(t *testing.T) {
	r := newStoreRig(t)
	all := r.snapshots("db", "monolithicFlat", 1)
	store, err := datastore.OpenPath(r.dir, datastore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	there := volume.New(volume.Config{Store: store, Name: "there", Host: lease.Identity{Host: "there", BootID: "1"}, Engine: volume.VMDK{}})
	o, err := there.OpenForAttach(t.Context(), host.DiskID("db"), false)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Dir.Close()
	before, err := os.ReadDir(o.Dir.Name())
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"snapshot", "db", "x"}, {"clone", "db", "x"}, {"delete", "db"}, {"snapshot", "--delete", "s0"}} {
		r.fails(cli.ExitInUse, "there", r.on(args...)...)
	}
	after, err := os.ReadDir(o.Dir.Name())
	if err != nil || len(after) != len(before) {
		t.Errorf("files %v, before %v, %v", after, before, err)
	}
	r.readable("s0", all[0])
	if err := there.Release(t.Context(), o.ID, o.Epoch, false); err != nil {
		t.Fatal(err)
	}
	r.holds("db", all[1])
}

// A full copy that is interrupted leaves nothing; one that was killed is done by the next.
func TestInterruptedCopy(t *testing.T) {
	r := newStoreRig(t)
	r.ok(r.on("create", "db", "--size", "300M")...)
	p := bytes.Repeat([]byte{7}, 1<<20)
	r.use("db", func(c *chain.Chain) {
		for at := int64(0); at < c.Size(); at += int64(len(p)) {
			if _, err := c.WriteAt(p, at); err != nil {
				t.Fatal(err)
			}
		}
	})
	r.ok(r.on("snapshot", "db", "monday")...)
	dir := r.path("volumes/" + host.DiskID("copy"))
	begin := func() *exec.Cmd {
		cmd := r.command(r.on("restore", "monday", "copy", "--mode", "full")...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
			if m, _ := filepath.Glob(dir + "/disk*"); len(m) > 0 {
				return cmd
			}
			if time.Now().After(deadline) {
				t.Fatal("it never began")
			}
		}
	}
	cmd := begin()
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("an interrupted copy succeeded")
	}
	var disks []storeDisk
	r.json(&disks, r.on("list")...)
	if _, err := os.Stat(dir); err == nil || len(disks) != 1 {
		t.Errorf("an interrupted copy left %v, and %+v", dir, disks)
	}
	cmd = begin()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	r.ok(r.on("restore", "monday", "copy", "--mode", "full")...)
	r.same(r.head("db"), r.head("copy"))
	r.deleteAll()
}

func TestRetiredDisk(t *testing.T) {
	r := newStoreRig(t)
	r.ok(r.on("create", "db", "--size", "8M")...)
	content := make([]byte, smallSize)
	r.write("db", content, 10)
	r.ok(r.on("snapshot", "db", "monday")...)
	was := bytes.Clone(content)
	r.write("db", content, 5)
	var gone deleted
	r.json(&gone, r.on("delete", "db")...)
	if !slices.Equal(gone.Snapshots, []string{"monday"}) {
		t.Errorf("delete: %+v", gone)
	}
	var disks []storeDisk
	r.json(&disks, r.on("list")...)
	if len(disks) != 1 || !disks[0].Retired || disks[0].Links != 1 {
		t.Errorf("list: %+v", disks)
	}
	r.fails(cli.ExitFailed, "snapshot", r.on("create", "db", "--size", "8M")...)
	r.ok(r.on("restore", "monday", "again")...)
	r.holds("again", was)
	r.deleteAll()
}

func TestSnapshotRefusals(t *testing.T) {
	r := newStoreRig(t)
	r.ok("create", "plain.vmdk", "--size", "1M")
	r.fails(cli.ExitUsage, "kept on a datastore", "snapshots")
	r.fails(cli.ExitUsage, "kept on a datastore", "restore", "monday", "x")
	r.fails(cli.ExitFailed, "not a descriptor name", "snapshot", "plain.vmdk", "monday")
	r.fails(cli.ExitFailed, "not a descriptor name", "clone", "plain.vmdk", "x")
	r.fails(cli.ExitFailed, "holds no datastore", r.on("snapshots")...)
	r.ok(r.on("create", "db", "--size", "8M")...)
	r.ok(r.on("create", "other", "--size", "8M")...)
	r.ok(r.on("snapshot", "db", "monday")...)
	for _, tc := range []struct {
		code int
		text string
		args []string
	}{
		{cli.ExitUsage, "accepts 2 arg(s), received 1", []string{"snapshot", "db"}},
		{cli.ExitUsage, "accepts 1 arg(s), received 2", []string{"snapshot", "--delete", "db", "monday"}},
		{cli.ExitFailed, "no disk with the id or name", []string{"snapshot", "never", "monday"}},
		{cli.ExitFailed, "asked for is disk", []string{"snapshot", "other", "monday"}},
		{cli.ExitFailed, "has no snapshot", []string{"snapshot", "--delete", "never"}},
		{cli.ExitFailed, "has no snapshot", []string{"restore", "never", "x"}},
		{cli.ExitFailed, "has 8 MiB, the new disk would have 4 MiB", []string{"restore", "monday", "x", "--size", "4M"}},
		{cli.ExitUsage, "is not a size", []string{"clone", "db", "x", "--size", "ten"}},
		{cli.ExitUsage, "shallow", []string{"clone", "db", "x", "--mode", "shallow"}},
		{cli.ExitFailed, "exists with", []string{"restore", "monday", "other"}},
		{cli.ExitUsage, "vhd", []string{"restore", "monday", "x", "--mode", "full", "--type", "vhd"}},
	} {
		r.fails(tc.code, tc.text, r.on(tc.args...)...)
	}
	before := r.names("db")
	for _, args := range [][]string{{"snapshot", "db", "x"}, {"snapshot", "--delete", "monday"}, {"restore", "monday", "x"}, {"clone", "db", "x"}, {"delete", "db"}} {
		if out := r.ok(r.on(append(args, "--dry-run")...)...); len(out) < 6 || out[:6] != "Would " {
			t.Errorf("%q: %s", args, out)
		}
	}
	if after := r.names("db"); len(after) != len(before) || !slices.Equal(after[0], before[0]) {
		t.Errorf("dry runs changed %q to %q", before, after)
	}
	r.deleteAll()
}
