package vmdk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx/sim"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

var createParams = map[string]CreateParams{
	"thin":     {Type: MonolithicFlat, Capacity: 1 << 20},
	"thick":    {Type: MonolithicFlat, Capacity: 1 << 20, Format: ZeroedThick},
	"eager":    {Type: MonolithicFlat, Capacity: 1<<20 + 512, Format: EagerZeroedThick},
	"split":    {Type: TwoGbMaxExtentFlat, Capacity: 5 << 20, ExtentSize: 2 << 20},
	"sparse":   {Type: TwoGbMaxExtentSparse, Capacity: 100 << 20},
	"sparses":  {Type: TwoGbMaxExtentSparse, Capacity: 5<<20 + 512, ExtentSize: 2 << 20},
	"embedded": {Type: MonolithicSparse, Capacity: 100<<20 + 512},
	"child":    {Type: TwoGbMaxExtentSparse, Capacity: 1 << 20, Parent: &Parent{Hint: "base.vmdk", CID: 7, LongContentID: strings.Repeat("0", 31) + "7"}},
}

func names(t *testing.T, d fsx.Dir) []string {
	t.Helper()
	n, err := d.List()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestCreate(t *testing.T) {
	for name, p := range createParams {
		t.Run(name, func(t *testing.T) {
			d := sim.New(sim.Options{}).Root()
			calls, last := 0, int64(0)
			p.Progress = func(done, total int64) {
				if done <= last || done > total || total != p.Capacity {
					t.Errorf("progress %d of %d after %d", done, total, last)
				}
				calls, last = calls+1, done
			}
			info, err := Create(context.Background(), d, "disk.vmdk", p)
			if err != nil {
				t.Fatal(err)
			}
			if (p.Format == EagerZeroedThick) != (last == p.Capacity) {
				t.Errorf("progress ended at %d", last)
			}
			if info.Capacity != p.Capacity || info.Type != p.Type || info.Unclean || p.Parent == nil && (info.CID != NeverWritten || info.UUID == "") {
				t.Errorf("info %+v", info)
			}
			rep, err := Check(context.Background(), d, "disk.vmdk")
			if err != nil || len(rep.Problems) > 0 {
				t.Errorf("check: %v %v", rep.Problems, err)
			}
			st, err := d.Stat(info.Extents[0].Name)
			if err != nil {
				t.Fatal(err)
			}
			if thick := p.Format != "" && p.Format != Thin; thick != (st.Allocated >= min(p.Capacity, st.Size)) {
				t.Errorf("format %q has %d of %d bytes allocated", p.Format, st.Allocated, st.Size)
			}
			before := names(t, d)
			if _, err := Create(context.Background(), d, "disk.vmdk", p); !errors.Is(err, fault.Exists) {
				t.Errorf("a second time: %v", err)
			}
			p.Resume = true
			again, err := Create(context.Background(), d, "disk.vmdk", p)
			if err != nil || again.LongID != info.LongID {
				t.Errorf("a second time with Resume: %v", err)
			}
			p.Capacity *= 2
			if _, err := Create(context.Background(), d, "disk.vmdk", p); !errors.Is(err, fault.Exists) {
				t.Errorf("another size: %v", err)
			}
			if got := names(t, d); fmt.Sprint(got) != fmt.Sprint(before) {
				t.Errorf("files %v, before %v", got, before)
			}
		})
	}
}

func TestCreateRefuses(t *testing.T) {
	base := CreateParams{Type: MonolithicFlat, Capacity: 1 << 20}
	with := func(f func(p *CreateParams)) CreateParams {
		p := base
		f(&p)
		return p
	}
	for _, c := range []struct {
		what, name string
		p          CreateParams
		kind       fault.Kind
	}{
		{"no suffix", "disk", base, fault.Invalid},
		{"path", "../disk.vmdk", base, fault.Invalid},
		{"empty stem", ".vmdk", base, fault.Invalid},
		{"quote", `a"b.vmdk`, base, fault.Invalid},
		{"line end", "a\nb.vmdk", base, fault.Invalid},
		{"extent name", "disk-flat.vmdk", base, fault.Invalid},
		{"extent name", "disk-s001.vmdk", base, fault.Invalid},
		{"child name", "disk-000001.vmdk", base, fault.Invalid},
		{"long", strings.Repeat("x", 1000) + ".vmdk", base, fault.Invalid},
		{"type", "d.vmdk", with(func(p *CreateParams) { p.Type = "streamOptimized" }), fault.Invalid},
		{"format", "d.vmdk", with(func(p *CreateParams) { p.Format = "thick" }), fault.Invalid},
		{"sparse thick", "d.vmdk", with(func(p *CreateParams) { p.Type, p.Format = MonolithicSparse, ZeroedThick }), fault.Invalid},
		{"flat child", "d.vmdk", with(func(p *CreateParams) { p.Parent = &Parent{Hint: "x", CID: 1} }), fault.Invalid},
		{"zero", "d.vmdk", with(func(p *CreateParams) { p.Capacity = 0 }), fault.OutOfRange},
		{"odd", "d.vmdk", with(func(p *CreateParams) { p.Capacity = 1000 }), fault.OutOfRange},
		{"huge", "d.vmdk", with(func(p *CreateParams) { p.Capacity = MaxCapacity + 512 }), fault.OutOfRange},
		{"huge embedded", "d.vmdk", with(func(p *CreateParams) { p.Type, p.Capacity = MonolithicSparse, MaxSparseExtent+512 }), fault.OutOfRange},
		{"grain", "d.vmdk", with(func(p *CreateParams) { p.GrainSectors = 100 }), fault.OutOfRange},
		{"extent size", "d.vmdk", with(func(p *CreateParams) { p.Type, p.ExtentSize = TwoGbMaxExtentSparse, 1000 }), fault.OutOfRange},
		{"extents", "d.vmdk", with(func(p *CreateParams) { p.Type, p.ExtentSize, p.Capacity = TwoGbMaxExtentSparse, 1<<20, 1<<40 }), fault.OutOfRange},
		{"no space", "d.vmdk", with(func(p *CreateParams) { p.Format, p.Capacity = ZeroedThick, 1<<30 }), fault.NoSpace},
	} {
		d := sim.New(sim.Options{Capacity: 64 << 20}).Root()
		if _, err := Create(context.Background(), d, c.name, c.p); fault.KindOf(err) != c.kind {
			t.Errorf("%s: %v, want %s", c.what, err, c.kind)
		}
		if n := names(t, d); len(n) > 0 {
			t.Errorf("%s left %v", c.what, n)
		}
	}
}

// TestCreateKeepsForeignFiles: without Resume nothing that is there is touched.
func TestCreateKeepsForeignFiles(t *testing.T) {
	d := sim.New(sim.Options{}).Root()
	f, err := d.Open("disk-f002.vmdk", fsx.ReadWrite|fsx.Create)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("precious"), 0); err != nil {
		t.Fatal(err)
	}
	p := createParams["split"]
	if _, err := Create(context.Background(), d, "disk.vmdk", p); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("%v", err)
	}
	b := make([]byte, 8)
	if _, err := f.ReadAt(b, 0); err != nil || string(b) != "precious" || fmt.Sprint(names(t, d)) != "[disk-f002.vmdk]" {
		t.Fatalf("%q %v %v", b, err, names(t, d))
	}
	p.Resume = true
	if _, err := Create(context.Background(), d, "disk.vmdk", p); err != nil {
		t.Fatal(err)
	}
}

func TestCreateCancelled(t *testing.T) {
	d := sim.New(sim.Options{}).Root()
	ctx, cancel := context.WithCancel(context.Background())
	p := CreateParams{Type: MonolithicFlat, Capacity: 16 << 20, Format: EagerZeroedThick, Progress: func(int64, int64) { cancel() }}
	if _, err := Create(ctx, d, "disk.vmdk", p); !errors.Is(err, context.Canceled) {
		t.Fatalf("%v", err)
	}
	if n := names(t, d); len(n) > 0 {
		t.Fatalf("left %v", n)
	}
}

// TestCreateFailures lets every operation fail: nothing may be left, and a second try must succeed.
func TestCreateFailures(t *testing.T) {
	for name, p := range createParams {
		for _, noLinks := range []bool{false, true} {
			for n := 1; ; n++ {
				s := sim.New(sim.Options{NoHardLinks: noLinks})
				s.FailAt(n, syscall.ENOSPC)
				_, err := Create(context.Background(), s.Root(), "disk.vmdk", p)
				if s.Ops() < n {
					break
				}
				s.Heal()
				if err != nil && !errors.Is(err, fault.NoSpace) {
					t.Errorf("%s, operation %d: kind %s: %v", name, n, fault.KindOf(err), err)
				}
				if left := names(t, s.Root()); err != nil && len(left) > 0 {
					t.Errorf("%s, operation %d left %v (%v)", name, n, left, err)
				}
				p.Resume = true
				if _, err := Create(context.Background(), s.Root(), "disk.vmdk", p); err != nil {
					t.Errorf("%s after failure of operation %d: %v", name, n, err)
				}
				p.Resume = false
			}
		}
	}
}

// TestCreatePowerLoss: a descriptor that is there is a whole disk, an answered Create is durable, and a repeated one ends
// well; without any one of the syncs that does not hold.
func TestCreatePowerLoss(t *testing.T) {
	sites := map[string]bool{}
	for name, p := range createParams {
		s := sim.New(sim.Options{})
		s.Record()
		if err := createAndMark(s, p); err != nil {
			t.Fatal(err)
		}
		for site := range s.SyncSites() {
			sites[site] = true
		}
		n := 0
		for cut := range s.Crashes(64, 1) {
			n++
			if err := verifyCreated(cut, p); err != nil {
				t.Fatalf("%s: %s: %v", name, cut.Cut(), err)
			}
		}
		if n < 10 {
			t.Fatalf("%s: %d crashes", name, n)
		}
	}
	for site := range sites {
		if !createSyncMatters(t, site) {
			t.Errorf("no crash shows that the sync at %s is missing", site)
		}
	}
}

func createAndMark(s *sim.FS, p CreateParams) error {
	_, err := Create(context.Background(), s.Root(), "disk.vmdk", p)
	s.Mark("created")
	return err
}

func verifyCreated(cut *sim.FS, p CreateParams) error {
	d := cut.Root()
	_, err := d.Stat("disk.vmdk")
	switch {
	case err == nil:
		if _, err := infoOf(d, "disk.vmdk"); err != nil {
			return err
		}
		rep, err := Check(context.Background(), d, "disk.vmdk")
		if err != nil || len(rep.Problems) > 0 {
			return fmt.Errorf("check: %v %v", rep.Problems, err)
		}
	case !errors.Is(err, fs.ErrNotExist) || len(cut.Events()) > 0:
		return err
	}
	p.Resume = true
	_, err = Create(context.Background(), d, "disk.vmdk", p)
	return err
}

func createSyncMatters(t *testing.T, site string) bool {
	t.Helper()
	for _, p := range createParams {
		s := sim.New(sim.Options{})
		s.Record()
		s.DropSync(site)
		if err := createAndMark(s, p); err != nil {
			t.Fatal(err)
		}
		for cut := range s.Crashes(64, 1) {
			if verifyCreated(cut, p) != nil {
				return true
			}
		}
	}
	return false
}
