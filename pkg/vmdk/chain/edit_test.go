package chain_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx/sim"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// TestEdits: shrink, defragment, rename and rebase of bases and children of every kind leave what the disk reads.
func TestEdits(t *testing.T) {
	chosen := sample(t, len(peerDisks), 3)
	for i, k := range peerDisks {
		if !chosen(i) {
			continue
		}
		for depth := range 2 {
			t.Run(fmt.Sprintf("%s/%d", k.name, depth), func(t *testing.T) {
				d := newDisk(t, seeded(t), k.p)
				for range depth {
					d.open()
					d.steps(8)
					d.close()
					d.addChild(vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse})
				}
				d.open()
				d.steps(20)
				if _, err := d.c.WriteAt(make([]byte, 300<<10), mib); err != nil {
					t.Fatal(err)
				}
				clear(d.want[mib : mib+300<<10])
				d.close()
				head := d.refs[len(d.refs)-1].Name
				same := func(what string) {
					t.Helper()
					d.open()
					d.checkAll()
					d.close()
					d.sound()
					d.qemuReads()
				}
				if _, err := chain.Shrink(t.Context(), d.dir, d.refs, chain.EditParams{Format: k.p.Format}); err != nil && fault.KindOf(err) != fault.Unsupported {
					t.Fatal(err)
				}
				same("shrink")
				if _, err := vmdk.Defragment(t.Context(), d.dir, head, nil); err != nil && fault.KindOf(err) != fault.Unsupported {
					t.Fatal(err)
				}
				same("defragment")
				d.strict("defragmented")
				if depth > 0 {
					if err := chain.Rebase(t.Context(), d.dir, d.refs, nil, chain.RebaseParams{}); err != nil {
						t.Fatal(err)
					}
					d.refs = d.refs[len(d.refs)-1:]
					same("rebase onto nothing")
				}
				if k.p.Type == vmdk.MonolithicFlat {
					return
				}
				if _, err := vmdk.Rename(d.dir, head, "other.vmdk"); err != nil {
					t.Fatal(err)
				}
				d.refs[len(d.refs)-1].Name = "other.vmdk"
				same("rename")
				d.strict("renamed")
				if left, err := filepath.Glob(filepath.Join(d.path, "disk*")); err != nil || depth == 0 && len(left) > 0 {
					t.Errorf("left behind: %v (%v)", left, err)
				}
			})
		}
	}
}

// TestRebase: a child goes from one parent to another of other content, and reads the same; unsafe it reads the new parent.
func TestRebase(t *testing.T) {
	d := newDisk(t, seeded(t), vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse, Capacity: 4*mib + 512})
	d.open()
	d.steps(12)
	d.close()
	d.addChild(vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse})
	d.open()
	d.steps(12)
	d.close()
	if _, err := vmdk.Create(t.Context(), d.dir, "new.vmdk", vmdk.CreateParams{Type: vmdk.MonolithicFlat, Capacity: int64(len(d.want))}); err != nil {
		t.Fatal(err)
	}
	other := bytes.Repeat([]byte{0xee}, len(d.want))
	fill := func(name string) {
		c, err := chain.Open(d.dir, []chain.Ref{{Name: name}}, chain.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.WriteAt(other, 0); err != nil {
			t.Fatal(err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	fill("new.vmdk")
	parents := []chain.Ref{{Name: "new.vmdk"}}
	if err := chain.Rebase(t.Context(), d.dir, d.refs, parents, chain.RebaseParams{}); err != nil {
		t.Fatal(err)
	}
	d.refs[0].Name = "new.vmdk"
	d.open()
	d.checkAll()
	d.close()
	d.qemuReads()
	if _, err := vmdk.Create(t.Context(), d.dir, "small.vmdk", vmdk.CreateParams{Type: vmdk.MonolithicFlat, Capacity: mib}); err != nil {
		t.Fatal(err)
	}
	for _, p := range [][]chain.Ref{{{Name: "small.vmdk"}}, {{Name: d.refs[1].Name}}} {
		if err := chain.Rebase(t.Context(), d.dir, d.refs, p, chain.RebaseParams{}); fault.KindOf(err) != fault.Invalid {
			t.Errorf("onto %v: %v", p, err)
		}
	}
	d.addChild(vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse})
	if err := chain.Rebase(t.Context(), d.dir, d.refs, parents, chain.RebaseParams{Unsafe: true}); err != nil {
		t.Fatal(err)
	}
	d.refs, d.want = []chain.Ref{{Name: "new.vmdk"}, d.refs[2]}, other
	d.open()
	d.checkAll()
	d.close()
}

// TestFixCIDs: a parent that was written under its child no longer fits; an administrator says that it does.
func TestFixCIDs(t *testing.T) {
	d := newDisk(t, seeded(t), vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse, Capacity: mib})
	d.addChild(vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse})
	c, err := chain.Open(d.dir, d.refs[:1], chain.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.WriteAt(bytes.Repeat([]byte{7}, 512), 0); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := chain.Open(d.dir, d.refs, chain.Options{}); fault.KindOf(err) != fault.Damaged {
		t.Fatalf("a parent that was written: %v", err)
	}
	names := []string{d.refs[0].Name, d.refs[1].Name}
	for _, dry := range []bool{true, false, false} {
		fixed, err := chain.FixCIDs(d.dir, names, dry)
		if err != nil {
			t.Fatal(err)
		}
		t.Log(dry, fixed)
	}
	copy(d.want, bytes.Repeat([]byte{7}, 512))
	d.open()
	d.checkAll()
	d.close()
}

func ctx() context.Context { return context.Background() }

// edits are those of TestEditCrashes, on a disk that editDisk made; each returns what the head is called afterwards.
var edits = map[string]func(d fsx.Dir) error{
	"shrink":     func(d fsx.Dir) error { _, err := chain.Shrink(ctx(), d, editRefs(d), chain.EditParams{}); return err },
	"defragment": func(d fsx.Dir) error { _, err := vmdk.Defragment(ctx(), d, "disk-000001.vmdk", nil); return err },
	"rename":     func(d fsx.Dir) error { _, err := vmdk.Rename(d, "disk.vmdk", "other.vmdk"); return err },
	"rebase": func(d fsx.Dir) error {
		return chain.Rebase(ctx(), d, editRefs(d), []chain.Ref{{Name: "new.vmdk"}}, chain.RebaseParams{})
	},
}

func editRefs(d fsx.Dir) []chain.Ref {
	refs, err := chain.Resolve(d, "disk-000001.vmdk")
	if err != nil {
		return []chain.Ref{{Name: "disk-000001.vmdk"}}
	}
	return refs
}

// editDisk makes a base, a child of it, and another base, and returns what the child reads.
func editDisk(t *testing.T, d fsx.Dir) []byte {
	t.Helper()
	want := make([]byte, 512<<10)
	write := func(refs []chain.Ref, off int, b []byte, keep bool) {
		c, err := chain.Open(d, refs, chain.Options{})
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.WriteAt(b, int64(off))
		if err = errors.Join(err, c.Close()); err != nil {
			t.Fatal(err)
		}
		if keep {
			copy(want[off:], b)
		}
	}
	create := func(name string, parent *vmdk.Parent) {
		if _, err := vmdk.Create(ctx(), d, name, vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse, Capacity: int64(len(want)), GrainSectors: 8, Parent: parent}); err != nil {
			t.Fatal(err)
		}
	}
	create("new.vmdk", nil)
	write([]chain.Ref{{Name: "new.vmdk"}}, 0, bytes.Repeat([]byte{9}, 40<<10), false)
	create("disk.vmdk", nil)
	write([]chain.Ref{{Name: "disk.vmdk"}}, 0, bytes.Repeat([]byte{1}, 64<<10), true)
	l, err := vmdk.Open(d, "disk.vmdk", vmdk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	parent := l.AsParent()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	create("disk-000001.vmdk", parent)
	refs := []chain.Ref{{Name: "disk.vmdk"}, {Name: "disk-000001.vmdk"}}
	write(refs, 32<<10, bytes.Repeat([]byte{2}, 64<<10), true)
	write(refs, 48<<10, make([]byte, 16<<10), true)
	write(refs, 8<<10, bytes.Repeat([]byte{3}, 4<<10), true)
	return want
}

// judgeEdit: the disk reads the same, by its head's name, and the edit, repeated, succeeds.
func judgeEdit(name string, d fsx.Dir, want []byte) error {
	read := func(what string) error {
		refs, err := chain.Resolve(d, "disk-000001.vmdk")
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		c, err := chain.Open(d, refs, chain.Options{ReadOnly: true})
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		got := make([]byte, len(want))
		_, err = c.ReadAt(got, 0)
		if err = errors.Join(err, c.Close()); err == nil && !bytes.Equal(got, want) {
			err = errors.New("other content")
		}
		if err != nil {
			err = fmt.Errorf("%s: %w", what, err)
		}
		return err
	}
	if err := read("before it is repeated"); err != nil {
		return err
	}
	if err := edits[name](d); err != nil && !(name == "rename" && errors.Is(err, syscall.ENOENT)) {
		return fmt.Errorf("repeated: %w", err)
	}
	if err := read("repeated"); err != nil {
		return err
	}
	rep, err := chain.Check(ctx(), d, editRefs(d))
	if err == nil && !rep.Sound() {
		err = fmt.Errorf("check: %v", rep.Problems)
	}
	return err
}

// editStates does an edit without the sync calls of a site, and judges what a power loss leaves at every operation.
func editStates(t *testing.T, name, without string, limit int, seed int64) (states int, sites map[string]int, err error) {
	t.Helper()
	fs := sim.New(sim.Options{})
	want := editDisk(t, fs.Root())
	fs.Record()
	if without != "" {
		fs.DropSync(without)
	}
	if err := edits[name](fs.Root()); err != nil {
		t.Fatal(err)
	}
	fs.Mark(name)
	for cut := range fs.Crashes(limit, seed) {
		states++
		if _, err := cut.Root().Stat("disk.vmdk"); err == nil && name == "rename" && len(cut.Events()) > 0 {
			return states, nil, fmt.Errorf("%s: it was renamed, and has its old name again", cut.Cut())
		}
		if err := judgeEdit(name, cut.Root(), want); err != nil {
			return states, nil, fmt.Errorf("%s: %w", cut.Cut(), err)
		}
	}
	return states, fs.SyncSites(), nil
}

// TestEditCrashes: the power fails after every operation of every edit, and every operation fails in turn.
func TestEditCrashes(t *testing.T) {
	for name := range edits {
		t.Run(name, func(t *testing.T) {
			limit := 4
			if full() {
				limit = 24
			}
			states, _, err := editStates(t, name, "", limit, int64(seeded(t).Uint64()))
			if err != nil {
				t.Fatal(err)
			}
			failures := 0
			for n := 0; ; n++ {
				fs := sim.New(sim.Options{})
				want := editDisk(t, fs.Root())
				fs.Record()
				fs.FailAt(n, syscall.EIO)
				err := edits[name](fs.Root())
				if n > fs.Ops() {
					break
				}
				fs.Heal()
				if err == nil {
					continue
				}
				failures++
				if jerr := judgeEdit(name, fs.Survivor().Root(), want); jerr != nil {
					t.Fatalf("operation %d failed (%v): %v", n, err, jerr)
				}
			}
			t.Logf("%d states, %d failures", states, failures)
			if states < 5 || failures < 2 {
				t.Errorf("only %d states and %d failures", states, failures)
			}
		})
	}
}

// TestEverySyncOfEditsMatters: each sync call of the edits' own code, taken out, makes the enumeration fail.
func TestEverySyncOfEditsMatters(t *testing.T) {
	if raceDetector {
		t.Skip("single-threaded, and slow under the race detector")
	}
	seed := int64(seeded(t).Uint64())
	seen := 0
	for name := range edits {
		_, sites, err := editStates(t, name, "", 4, seed)
		if err != nil {
			t.Fatal(err)
		}
		for site := range sites {
			if !strings.Contains(site, "vmdk/rename.go") && !strings.Contains(site, "vmdk/defragment.go") && !strings.Contains(site, "chain/edit.go") {
				continue
			}
			seen++
			if _, _, err := editStates(t, name, site, 64, seed); err == nil {
				t.Errorf("%s: nothing breaks without the sync at %s", name, site)
			} else {
				t.Logf("%s: %s: %v", name, site, err)
			}
		}
	}
	if seen < 3 {
		t.Errorf("only %d sync calls were seen", seen)
	}
}
