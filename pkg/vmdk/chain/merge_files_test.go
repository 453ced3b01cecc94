package chain_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx/sim"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// TestMergeFiles merges every two neighbours of chains of plain files on every kind of base, in both directions; QEMU reads what is
// left, and nothing else is.
func TestMergeFiles(t *testing.T) {
	chosen := sample(t, len(peerDisks), 3)
	for i, k := range peerDisks {
		if !chosen(i) {
			continue
		}
		for lower := range 3 {
			for _, dir := range []chain.Direction{chain.Up, chain.Down, ""} {
				t.Run(fmt.Sprintf("%s/%d %s", k.name, lower, dir), func(t *testing.T) {
					d := newDisk(t, seeded(t), k.p)
					for range 3 {
						d.open()
						d.steps(6)
						d.close()
						d.addChild(vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse})
					}
					d.open()
					d.steps(6)
					d.close()
					p := chain.MergeFilesParams{Lower: lower, Direction: dir, DryRun: true}
					plan, err := chain.MergeFiles(t.Context(), d.dir, d.refs, p)
					if err != nil {
						t.Fatal(err)
					}
					p.DryRun = false
					done, err := chain.MergeFiles(t.Context(), d.dir, d.refs, p)
					if err != nil {
						t.Fatal(err)
					}
					if fmt.Sprint(done) != fmt.Sprint(plan) || dir != "" && done.Direction != dir {
						t.Errorf("did %v, had planned %v", done, plan)
					}
					for i, r := range d.refs {
						if r.Name == done.Gone[0] {
							d.refs = append(d.refs[:i:i], d.refs[i+1:]...)
							break
						}
					}
					if refs, err := chain.Resolve(d.dir, d.refs[len(d.refs)-1].Name); err != nil || fmt.Sprint(refs) != fmt.Sprint(d.refs) {
						t.Fatalf("the chain is %v (%v), want %v", refs, err, d.refs)
					}
					d.open()
					d.checkAll()
					d.close()
					d.sound()
					d.qemuReads()
					d.onlyOwn()
				})
			}
		}
	}
}

// onlyOwn: there is no file that no link has.
func (d *disk) onlyOwn() {
	d.t.Helper()
	own := map[string]bool{}
	for _, r := range d.refs {
		own[r.Name] = true
		l, err := vmdk.Open(d.dir, r.Name, vmdk.Options{})
		if err != nil {
			d.t.Fatal(err)
		}
		for _, e := range l.Extents() {
			own[e.Name] = true
		}
		if err := l.Close(); err != nil {
			d.t.Fatal(err)
		}
	}
	names, err := d.dir.List()
	if err != nil {
		d.t.Fatal(err)
	}
	for _, n := range names {
		if strings.HasPrefix(n, "disk") && !own[n] {
			d.t.Errorf("%s is left over", n)
		}
	}
}

// TestMergeFilesRefuses: what another child needs is not touched.
func TestMergeFilesRefuses(t *testing.T) {
	d := newDisk(t, seeded(t), vmdk.CreateParams{Type: vmdk.MonolithicFlat, Capacity: 2 * mib})
	d.addChild(vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse})
	l, err := vmdk.Open(d.dir, d.refs[0].Name, vmdk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = vmdk.Create(t.Context(), d.dir, "sibling.vmdk", vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse, Capacity: l.Size(), Parent: l.AsParent()})
	if err := errors.Join(err, l.Close()); err != nil {
		t.Fatal(err)
	}
	for _, p := range []struct {
		chain.MergeFilesParams
		want fault.Kind
	}{
		{chain.MergeFilesParams{Direction: chain.Up}, fault.Precondition},
		{chain.MergeFilesParams{Direction: chain.Down}, fault.Precondition},
		{chain.MergeFilesParams{Lower: 1}, fault.Invalid},
		{chain.MergeFilesParams{Lower: -1}, fault.Invalid},
	} {
		if _, err := chain.MergeFiles(t.Context(), d.dir, d.refs, p.MergeFilesParams); fault.KindOf(err) != p.want {
			t.Errorf("%+v: %v", p, err)
		}
	}
	if l, err = vmdk.Open(d.dir, d.refs[1].Name, vmdk.Options{}); err != nil {
		t.Fatal(err)
	}
	_, err = vmdk.Create(t.Context(), d.dir, "embedded.vmdk", vmdk.CreateParams{Type: vmdk.MonolithicSparse, Capacity: l.Size(), Parent: l.AsParent()})
	if err := errors.Join(err, l.Close()); err != nil {
		t.Fatal(err)
	}
	three := append(d.refs, chain.Ref{Name: "embedded.vmdk"})
	if _, err := chain.MergeFiles(t.Context(), d.dir, three, chain.MergeFilesParams{Lower: 1, Direction: chain.Down}); fault.KindOf(err) != fault.Unsupported {
		t.Error(err)
	}
	if err := os.Remove(d.path + "/embedded.vmdk"); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(d.path + "/sibling.vmdk"); err != nil {
		t.Fatal(err)
	}
	if _, err := chain.MergeFiles(t.Context(), d.dir, d.refs, chain.MergeFilesParams{Direction: "sideways"}); fault.KindOf(err) != fault.Invalid {
		t.Error(err)
	}
}

type filesMerge struct {
	base  vmdk.Type
	child vmdk.Type // of the two links above it
	lower int
	dir   chain.Direction
}

func filesMerges() (all []filesMerge) {
	for _, base := range []vmdk.Type{vmdk.MonolithicFlat, vmdk.TwoGbMaxExtentSparse, vmdk.MonolithicSparse, vmdk.VMFSSparse} {
		for lower := range 2 {
			for _, dir := range []chain.Direction{chain.Up, chain.Down} {
				child := vmdk.TwoGbMaxExtentSparse
				if base == vmdk.MonolithicSparse && dir == chain.Up { // a child that holds its descriptor cannot be merged down
					child = vmdk.MonolithicSparse
				}
				all = append(all, filesMerge{base, child, lower, dir})
			}
		}
	}
	return all
}

// mergedDisk makes the chain, and gives its content.
func (m filesMerge) disk(t *testing.T, d fsx.Dir) ([]chain.Ref, []byte) {
	t.Helper()
	const size = 128<<10 + 512
	want := make([]byte, size)
	var refs []chain.Ref
	for i, name := range []string{"disk.vmdk", "disk-000001.vmdk", "disk-000002.vmdk"} {
		p := vmdk.CreateParams{Type: m.base, Capacity: size, GrainSectors: 8}
		if m.base == vmdk.MonolithicFlat {
			p.GrainSectors = 0
		}
		if i > 0 {
			l, err := vmdk.Open(d, refs[i-1].Name, vmdk.Options{})
			if err != nil {
				t.Fatal(err)
			}
			p = vmdk.CreateParams{Type: m.child, Capacity: size, GrainSectors: 8, Parent: l.AsParent()}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := vmdk.Create(t.Context(), d, name, p); err != nil {
			t.Fatal(err)
		}
		refs = append(refs, chain.Ref{Name: name})
		c, err := chain.Open(d, refs, chain.Options{})
		if err != nil {
			t.Fatal(err)
		}
		for j := range int64(4) {
			off := (j*28 + int64(i)*8) << 10
			b := fillOf(6<<10, byte(0x10*(i+1)+int(j)))
			copy(want[off:], b)
			if _, err := c.WriteAt(b, off); err != nil {
				t.Fatal(err)
			}
		}
		if i == 1 {
			if err := c.Discard(0, 4096); err != nil {
				t.Fatal(err)
			}
			clear(want[:4096])
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return refs, want
}

func (m filesMerge) merge(d fsx.Dir, refs []chain.Ref) (chain.MergedFiles, error) {
	return chain.MergeFiles(ctx(), d, refs, chain.MergeFilesParams{Lower: m.lower, Direction: m.dir})
}

// judge: the disk is there under its head's name, or, once that is gone, under the name of what it was merged into; and the merge
// can be repeated.
func (m filesMerge) judge(d fsx.Dir, want []byte, promised bool) error {
	for again := range 2 {
		head := "disk-000002.vmdk"
		if _, err := d.Stat(head); errors.Is(err, os.ErrNotExist) && m.lower == 1 && m.dir == chain.Down {
			head = "disk-000001.vmdk"
		}
		refs, err := chain.Resolve(d, head)
		if err != nil {
			return err
		}
		if promised && len(refs) != 2 {
			return fmt.Errorf("the chain has %d links again", len(refs))
		}
		c, err := chain.Open(d, refs, chain.Options{ReadOnly: true})
		if err != nil {
			return err
		}
		got := make([]byte, len(want))
		_, err = c.ReadAt(got, 0)
		if err = errors.Join(err, c.Close()); err != nil {
			return err
		}
		if !bytes.Equal(got, want) {
			return errors.New("other content")
		}
		if again == 0 && len(refs) == 3 {
			if _, err := m.merge(d, refs); err != nil {
				return fmt.Errorf("repeated: %w", err)
			}
			promised = true
		}
	}
	return nil
}

// TestMergeFilesCrashes: the power fails after every operation of a merge of files, and every operation fails in turn.
func TestMergeFilesCrashes(t *testing.T) {
	all := filesMerges()
	chosen := sample(t, len(all), 3)
	for i, m := range all {
		if !chosen(i) {
			continue
		}
		t.Run(fmt.Sprintf("%s %d %s", m.base, m.lower, m.dir), func(t *testing.T) {
			seed, limit := seeded(t).Int64(), 6
			if full() {
				limit = 48
			}
			fs := sim.New(sim.Options{})
			refs, want := m.disk(t, fs.Root())
			fs.Record()
			if _, err := m.merge(fs.Root(), refs); err != nil {
				t.Fatal(err)
			}
			fs.Mark(true)
			states, failures := 0, 0
			for cut := range fs.Crashes(limit, seed) {
				states++
				if err := m.judge(cut.Root(), want, len(cut.Events()) > 0); err != nil {
					t.Fatalf("%s: %v", cut.Cut(), err)
				}
			}
			for _, errno := range []error{syscall.EIO, syscall.ENOSPC} {
				for n := 1; ; n++ {
					fs := sim.New(sim.Options{})
					refs, want := m.disk(t, fs.Root())
					fs.Record()
					fs.FailAt(n, errno)
					_, err := m.merge(fs.Root(), refs)
					if n > fs.Ops() {
						break
					}
					fs.Heal()
					if err != nil {
						failures++
					}
					if jerr := m.judge(fs.Survivor().Root(), want, err == nil); jerr != nil {
						t.Fatalf("operation %d failed with %v (%v): %v", n, errno, err, jerr)
					}
				}
			}
			t.Logf("%d states, %d failures", states, failures)
			if states < 20 || failures < 10 {
				t.Errorf("only %d states and %d failures", states, failures)
			}
		})
	}
}
