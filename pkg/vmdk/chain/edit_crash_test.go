package chain_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx/sim"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

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

// editKind is of what types the disk is.
type editKind struct{ base, child vmdk.Type }

var editKinds = []editKind{
	{vmdk.TwoGbMaxExtentSparse, vmdk.TwoGbMaxExtentSparse}, {vmdk.MonolithicSparse, vmdk.MonolithicSparse}, {vmdk.VMFSSparse, vmdk.VMFSSparse},
	{vmdk.MonolithicFlat, vmdk.MonolithicSparse}, {vmdk.TwoGbMaxExtentFlat, vmdk.TwoGbMaxExtentSparse}, {vmdk.VMFS, vmdk.VMFSSparse},
}

func (k editKind) String() string { return string(k.base) + " under " + string(k.child) }

// editDisk makes a base, a child of it, and another base, and returns what the child reads.
func editDisk(t *testing.T, d fsx.Dir, k editKind) []byte {
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
	create := func(name string, typ vmdk.Type, parent *vmdk.Parent) {
		p := vmdk.CreateParams{Type: typ, Capacity: int64(len(want)), Parent: parent}
		if typ.Sparse() {
			p.GrainSectors = 8
		}
		if _, err := vmdk.Create(ctx(), d, name, p); err != nil {
			t.Fatal(err)
		}
	}
	create("new.vmdk", k.base, nil)
	write([]chain.Ref{{Name: "new.vmdk"}}, 0, bytes.Repeat([]byte{9}, 40<<10), false)
	create("disk.vmdk", k.base, nil)
	write([]chain.Ref{{Name: "disk.vmdk"}}, 0, bytes.Repeat([]byte{1}, 64<<10), true)
	l, err := vmdk.Open(d, "disk.vmdk", vmdk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	parent := l.AsParent()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	create("disk-000001.vmdk", k.child, parent)
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
func editStates(t *testing.T, k editKind, name, without string, limit int, seed int64) (states int, sites map[string]int, err error) {
	t.Helper()
	fs := sim.New(sim.Options{})
	want := editDisk(t, fs.Root(), k)
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
		if refs := editRefs(cut.Root()); name == "rebase" && len(cut.Events()) > 0 && refs[0].Name != "new.vmdk" {
			return states, nil, fmt.Errorf("%s: it was rebased, and needs %s again", cut.Cut(), refs[0].Name)
		}
		if err := judgeEdit(name, cut.Root(), want); err != nil {
			return states, nil, fmt.Errorf("%s: %w", cut.Cut(), err)
		}
	}
	return states, fs.SyncSites(), nil
}

// eachEdit runs a test for every edit of every kind of disk that has it.
func eachEdit(t *testing.T, do func(t *testing.T, k editKind, name string)) {
	t.Helper()
	for i, k := range editKinds {
		if raceDetector && i > 0 {
			break
		}
		for name := range edits {
			d := sim.New(sim.Options{}).Root()
			editDisk(t, d, k)
			err := edits[name](d)
			if fault.KindOf(err) == fault.Unsupported {
				continue
			}
			t.Run(k.String()+"/"+name, func(t *testing.T) { do(t, k, name) })
		}
	}
}

// TestEditCrashes: the power fails after every operation of every edit, and every operation fails in turn.
func TestEditCrashes(t *testing.T) {
	seen := map[string]bool{}
	eachEdit(t, func(t *testing.T, k editKind, name string) {
		limit := 4
		if full() {
			limit = 24
		}
		if long() {
			limit = 1024
		}
		seen[name] = true
		states, _, err := editStates(t, k, name, "", limit, int64(seeded(t).Uint64()))
		if err != nil {
			t.Fatal(err)
		}
		failures := 0
		for _, errno := range []error{syscall.EIO, syscall.ENOSPC, io.ErrShortWrite} {
			for n := 0; ; n++ {
				fs := sim.New(sim.Options{})
				want := editDisk(t, fs.Root(), k)
				fs.Record()
				fs.FailAt(n, errno)
				err := edits[name](fs.Root())
				if n >= fs.Ops() {
					break
				}
				fs.Heal()
				failures++
				if jerr := judgeEdit(name, fs.Survivor().Root(), want); jerr != nil {
					t.Fatalf("operation %d failed with %v (%v): %v", n, errno, err, jerr)
				}
			}
		}
		t.Logf("%d states, %d failures", states, failures)
		if states < 3 || failures < 2 {
			t.Errorf("only %d states and %d failures", states, failures)
		}
	})
	if len(seen) != len(edits) {
		t.Errorf("only %v were seen", seen)
	}
}

// TestEverySyncOfEditsMatters: each sync call that an edit reaches, taken out, makes the enumeration fail. Those of the way that every
// write goes (open, flush, close) an edit, which changes nothing that is read, need not show: TestEverySyncOfSequencesMatters does.
func TestEverySyncOfEditsMatters(t *testing.T) {
	if raceDetector {
		return // single-threaded, and slow under the race detector; suite crash runs it
	}
	written := map[string]bool{}
	for _, k := range sequenceKinds() {
		seed := seeded(t).Uint64()
		start := newSequence(t, k, seed)
		for site := range start.reach(t, sequences(1), seed) {
			written[site] = true
		}
	}
	var seen atomic.Int64
	t.Cleanup(func() {
		if n := seen.Load(); n < 20 {
			t.Errorf("only %d sync calls were seen to be needed", n)
		}
	})
	eachEdit(t, func(t *testing.T, k editKind, name string) {
		t.Parallel()
		seed := int64(seeded(t).Uint64())
		_, sites, err := editStates(t, k, name, "", 4, seed)
		if err != nil {
			t.Fatal(err)
		}
		for site := range sites {
			how := editWithout(t, k, name, site, seed)
			switch {
			case how != "":
				seen.Add(1)
				t.Logf("%s: %s", site, how)
			case !written[site]:
				t.Errorf("nothing breaks without the sync at %s", site)
			}
		}
	})
}

// editWithout says what breaks without the sync calls of a site.
func editWithout(t *testing.T, k editKind, name, site string, seed int64) string {
	t.Helper()
	for try := range int64(2) {
		if _, _, err := editStates(t, k, name, site, 24, seed+try); err != nil {
			return firstLine(err)
		}
	}
	return ""
}

func firstLine(err error) string {
	s, _, _ := strings.Cut(err.Error(), "\n")
	return s[:min(len(s), 300)]
}
