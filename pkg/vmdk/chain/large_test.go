package chain_test

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// TestLarge: a disk of 3 TiB takes almost no space, is opened without reading its tables, and holds what is written
// at its ends and across its extents.
func TestLarge(t *testing.T) {
	dir, err := fsx.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := dir.Close(); err != nil {
			t.Error(err)
		}
	}()
	if _, err := vmdk.Create(context.Background(), dir, "disk.vmdk", vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse, Capacity: 3 << 40}); err != nil {
		t.Fatal(err)
	}
	refs := []chain.Ref{{Name: "disk.vmdk"}}
	b, got := fillOf(4096, 7), make([]byte, 4096)
	offs := []int64{0, vmdk.MaxSparseExtent - 2048, 3<<40 - 4096, 1<<40 + 512}
	for round := range 2 {
		c, err := chain.Open(dir, refs, chain.Options{})
		if err != nil {
			t.Fatal(err)
		}
		for _, off := range offs {
			if round == 0 {
				if _, err := c.WriteAt(b, off); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := c.ReadAt(got, off); err != nil {
				t.Fatal(err)
			}
			same(t, "read", got, b, off)
		}
		if round == 0 {
			if err := c.Discard(1<<30, 1<<30); err != nil {
				t.Fatal(err)
			}
		}
		for _, bad := range []int64{-1, 3<<40 - 1, 1 << 62} {
			if _, err := c.ReadAt(got, bad); !errors.Is(err, fault.OutOfRange) {
				t.Errorf("read at %d: %v", bad, err)
			}
			if err := c.Discard(bad, 4096); !errors.Is(err, fault.OutOfRange) {
				t.Errorf("discard at %d: %v", bad, err)
			}
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []string{"disk-s001.vmdk", "disk-s002.vmdk"} {
		i, err := dir.Stat(n)
		if err != nil {
			t.Fatal(err)
		}
		if i.Allocated > 4<<20 {
			t.Errorf("%s takes %d bytes", n, i.Allocated)
		}
	}
}

// TestFileLimit: an extent file at 2 TiB gives no more grains, instead of wrapping around.
func TestFileLimit(t *testing.T) {
	d := newDisk(t, seeded(t), vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse, Capacity: 8 * mib})
	f, err := d.dir.Open("disk-s001.vmdk", fsx.ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(2<<40-2*65536), f.Close()); err != nil {
		t.Fatal(err)
	}
	d.open()
	for i := range int64(3) {
		_, err := d.c.WriteAt(fillOf(512, 1), i*65536)
		if want := []fault.Kind{"", "", fault.NoSpace}[i]; fault.KindOf(err) != want {
			t.Errorf("grain %d: %v, want %q", i, err, want)
		}
	}
	d.want[0], d.want[65536] = 1, 1
	copy(d.want, fillOf(512, 1))
	copy(d.want[65536:], fillOf(512, 1))
	d.checkAll()
}

// TestLocks: qemu refuses a disk that we write, and we one that another chain writes; readers may share.
func TestLocks(t *testing.T) {
	d := newDisk(t, seeded(t), vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse, Capacity: 8 * mib})
	d.o.Locks = true
	d.open()
	if _, err := chain.Open(d.dir, d.refs, chain.Options{Locks: true}); !errors.Is(err, fault.InUse) {
		t.Errorf("second writer: %v", err)
	}
	if _, err := chain.Open(d.dir, d.refs, chain.Options{ReadOnly: true, Locks: true}); !errors.Is(err, fault.InUse) {
		t.Errorf("reader of a live disk: %v", err)
	}
	if out, err := command("qemu-img", "info", d.head()); err == nil {
		t.Errorf("qemu-img opened a live disk: %s", out)
	}
	tool(t, "qemu-img", "info", "-U", d.head())
	d.close()
	ro := chain.Options{ReadOnly: true, Locks: true}
	a, err := chain.Open(d.dir, d.refs, ro)
	if err != nil {
		t.Fatal(err)
	}
	b, err := chain.Open(d.dir, d.refs, ro)
	if err != nil {
		t.Fatal(err)
	}
	tool(t, "qemu-img", "info", d.head())
	if _, err := a.WriteAt([]byte{1}, 0); !errors.Is(err, fault.ReadOnly) {
		t.Errorf("write to a read-only disk: %v", err)
	}
	if err := errors.Join(a.Close(), b.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestChainRefuses: what does not fit together is not opened.
func TestChainRefuses(t *testing.T) {
	d := newDisk(t, seeded(t), vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse, Capacity: 8 * mib})
	d.addChild(vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse})
	open := func(refs []chain.Ref, o chain.Options) fault.Kind {
		c, err := chain.Open(d.dir, refs, o)
		if err == nil {
			err = c.Close()
		}
		return fault.KindOf(err)
	}
	base, child := d.refs[0], d.refs[1]
	mended := func(r chain.Ref) chain.Ref { r.Mend = true; return r }
	sized := func(r chain.Ref, n int64) chain.Ref { r.Size = n; return r }
	for _, c := range []struct {
		what string
		refs []chain.Ref
		want fault.Kind
	}{
		{"good", d.refs, ""},
		{"none", nil, fault.OutOfRange},
		{"too many", make([]chain.Ref, 65), fault.OutOfRange},
		{"child alone", []chain.Ref{child}, fault.Precondition},
		{"base twice", []chain.Ref{base, base}, fault.Damaged},
		{"upside down", []chain.Ref{child, base}, fault.Precondition},
		{"other size", []chain.Ref{sized(base, 4*mib), child}, fault.Damaged},
		{"grown for a merge", []chain.Ref{mended(sized(base, 4*mib)), child}, ""},
		{"recorded size", []chain.Ref{sized(base, 8*mib), sized(child, 8*mib)}, ""},
		{"absent", []chain.Ref{{Name: "absent.vmdk"}}, fault.NotFound},
		{"path", []chain.Ref{{Name: "../disk.vmdk"}}, fault.Invalid},
		{"extent", []chain.Ref{{Name: "disk-s001.vmdk"}}, fault.Invalid},
	} {
		if got := open(c.refs, chain.Options{}); got != c.want {
			t.Errorf("%s: %q, want %q", c.what, got, c.want)
		}
	}
	// A child that grows: a step that only a manifest allows for writing.
	d.open()
	d.steps(5)
	d.grow()
	d.steps(20)
	d.close()
	if got := open(d.refs, chain.Options{}); got != fault.Damaged {
		t.Errorf("a step nobody recorded: %q", got)
	}
	d.refs = []chain.Ref{sized(base, 8*mib), sized(child, int64(len(d.want)))}
	d.open()
	d.checkAll()
	d.steps(20)
	d.close()
	d.qemuReads()
	// The parent is written behind the child's back.
	tool(t, "qemu-io", "-f", "vmdk", "-c", "write -P 1 0 512", filepath.Join(d.path, "disk.vmdk"))
	if got := open(d.refs, chain.Options{}); got != fault.Damaged {
		t.Errorf("modified parent: %q", got)
	}
	if got := open(d.refs, chain.Options{ReadOnly: true, IgnoreCID: true}); got != "" {
		t.Errorf("modified parent, ignored: %q", got)
	}
	rep, err := chain.Check(context.Background(), d.dir, d.refs)
	if err != nil || rep.Sound() {
		t.Errorf("check of a modified parent: %v %v", rep.Problems, err)
	}
	refs, err := chain.Resolve(d.dir, child.Name)
	if err != nil || len(refs) != 2 || refs[0].Name != base.Name {
		t.Errorf("resolve: %v %v", refs, err)
	}
}
