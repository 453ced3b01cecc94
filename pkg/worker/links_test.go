package worker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// The links of a testDisk are nothing but the protocol: what the worker asks, and what it does with the answers. A worker
// whose WORKER_TEST is the name of a step dies there, once: the file "died" says that it has.

func dieAt(d fsx.Dir, step string) {
	if os.Getenv("WORKER_TEST") != "die "+step {
		return
	}
	if f, err := d.Open("died", fsx.ReadWrite|fsx.Create|fsx.Exclusive); err == nil {
		_ = f.Close()
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {}
	}
}

func (d *testDisk) Snapshot(_ context.Context, p chain.SnapshotParams) error {
	dieAt(d.dir, "before")
	if err := p.Before(); err != nil {
		return err
	}
	dieAt(d.dir, "asking")
	err := p.Commit(&vmdk.Info{Name: "disk.vmdk", Capacity: d.Size()}, &vmdk.Info{Name: p.Child, Capacity: d.Size()})
	if err == nil {
		dieAt(d.dir, "committed")
	}
	return err
}

func (d *testDisk) Merge(ctx context.Context, p chain.MergeParams) error {
	const pieces, piece = 64, 1 << 18
	for i := range int64(pieces) {
		if p.Pace != nil {
			if err := p.Pace(ctx, piece); err != nil {
				return err
			}
		}
		if i == pieces/2 {
			dieAt(d.dir, "copying")
		}
		if err := context.Cause(ctx); err != nil {
			return err
		}
		p.Progress((i+1)*piece, pieces*piece)
	}
	dieAt(d.dir, "asking")
	err := p.Commit(chain.Identity{Name: "merged.vmdk", CID: 7, Size: d.Size()})
	if err == nil {
		dieAt(d.dir, "committed")
	}
	return err
}

func (d *testDisk) MergeCost(lower int) (down, up int64, err error) { return int64(lower), 9, nil }

// linked is a rig whose disk has n links.
func linked(t *testing.T, n int) *rig {
	t.Helper()
	r := newRig(t)
	for i := range n {
		r.spec.Links = append(r.spec.Links, chain.Ref{Name: fmt.Sprint("link", i)})
	}
	return r
}

func (h *Handle) names() (names []string) {
	for _, l := range h.config().Links {
		names = append(names, l.Name)
	}
	return names
}

// TestSnapshotProtocol: at every death the caller knows whether the snapshot was made, and the successor opens what was
// committed.
func TestSnapshotProtocol(t *testing.T) {
	for _, c := range []struct {
		behave string
		commit error
		want   fault.Kind
		links  []string
	}{
		{"", nil, "", []string{"link0", "disk.vmdk", "child"}},
		{"", fault.New(fault.NoSpace, "", "as asked"), fault.NoSpace, []string{"link0", "link1"}},
		{"", fault.New(fault.Poisoned, "", "nobody knows"), fault.Poisoned, []string{"link0", "link1"}},
		{"die before", nil, fault.Unavailable, []string{"link0", "link1"}},
		{"die asking", nil, fault.Unavailable, []string{"link0", "link1"}},
		{"die committed", nil, "", []string{"link0", "disk.vmdk", "child"}},
	} {
		t.Run(fmt.Sprint(c.behave, c.want), func(t *testing.T) {
			r := linked(t, 2)
			h := start(t, supervisor(t, c.behave), r)
			asked := 0
			err := h.Snapshot(within(t, long), "child", 0, func(parent, child *vmdk.Info) error {
				asked++
				if parent.Name != "disk.vmdk" || child.Name != "child" {
					t.Errorf("%+v, %+v", parent, child)
				}
				return c.commit
			})
			if fault.KindOf(err) != c.want || asked > 1 || err == nil && asked == 0 {
				t.Errorf("%v, want %q; %d commits", err, c.want, asked)
			}
			if got := h.names(); !slices.Equal(got, c.links) {
				t.Errorf("a successor opens %v, want %v", got, c.links)
			}
			if last := h.config().Links; err == nil && !last[1].Mend {
				t.Error("the former head may be unclean, and is not mended")
			}
			eventually(t, "a worker serves", func() bool { return h.State().Phase == Serving })
			eventually(t, "poison", func() bool { return h.State().Poisoned == (c.want == fault.Poisoned) })
		})
	}
}

// TestMergeProtocol is the same for merges, whose descriptors a successor brings up first.
func TestMergeProtocol(t *testing.T) {
	whole, merged := []string{"link0", "link1", "link2", "link3"}, []string{"link0", "merged.vmdk", "link3"}
	for _, c := range []struct {
		behave string
		want   fault.Kind
		links  []string
	}{
		{"", "", merged}, {"die copying", fault.Unavailable, whole}, {"die asking", fault.Unavailable, whole}, {"die committed", "", merged},
	} {
		t.Run(c.behave, func(t *testing.T) {
			r := linked(t, 4)
			h := start(t, supervisor(t, c.behave), r)
			var paced, done, total int64
			var rebind []chain.Identity
			p := chain.MergeParams{Lower: 1, Direction: chain.Down,
				Pace:     func(_ context.Context, n int64) error { paced += n; return nil },
				Progress: func(d, all int64) { done, total = d, all },
				Commit:   func(chain.Identity) error { return nil },
			}
			err := h.Merge(within(t, long), p)
			rebind = h.config().Rebind
			if fault.KindOf(err) != c.want || !slices.Equal(h.names(), c.links) {
				t.Errorf("%v, want %q; a successor opens %v, want %v", err, c.want, h.names(), c.links)
			}
			if err == nil && (paced < 16<<20 || done != total || done != 16<<20) {
				t.Errorf("paced %d, done %d of %d", paced, done, total)
			}
			if !h.config().Links[1].Mend {
				t.Error("the lower link may be unclean, and is not mended")
			}
			if len(rebind) != 0 {
				t.Errorf("descriptors are still to be written: %+v", rebind)
			}
			if err := h.Merge(within(t, long), p); c.want != "" && err != nil {
				eventually(t, "the merge, repeated", func() bool { return h.Merge(within(t, long), p) == nil })
			}
		})
	}
}

// A worker is told what the descriptors must say until one serves.
func TestRebindIsHandedOn(t *testing.T) {
	r := linked(t, 4)
	h := start(t, supervisor(t, ""), r)
	h.merged(1, chain.Identity{Name: "merged.vmdk", CID: 7})
	want := []chain.Identity{{Name: "merged.vmdk", CID: 7}, {Name: "link3", ParentCID: 7, Parent: "merged.vmdk"}}
	got := h.config().Rebind
	if len(got) != 2 || got[0].Name != want[0].Name || got[1].Name != want[1].Name || got[1].ParentCID != 7 || got[1].Parent != "merged.vmdk" {
		t.Fatalf("%+v", got)
	}
	kill(t, h)
	if got := h.config().Rebind; len(got) != 0 {
		t.Errorf("the successor serves, and the next one is told %+v", got)
	}
}

// TestMergeStops: a merge whose context ends stops soon, whatever it waits for, and the worker can merge again.
func TestMergeStops(t *testing.T) {
	r := linked(t, 2)
	h := start(t, supervisor(t, ""), r)
	ctx, cancel := context.WithCancel(t.Context())
	var calls atomic.Int32
	err := h.Merge(ctx, chain.MergeParams{Direction: chain.Up, Commit: func(chain.Identity) error { return errors.New("not stopped") },
		Pace: func(ctx context.Context, _ int64) error {
			if calls.Add(1) == 3 {
				time.AfterFunc(time.Millisecond, cancel)
				<-ctx.Done()
				return context.Cause(ctx)
			}
			return nil
		}})
	if fault.KindOf(err) != fault.Timeout {
		t.Errorf("%v, want Timeout", err)
	}
	if err := h.Merge(within(t, long), chain.MergeParams{Commit: func(chain.Identity) error { return nil }}); err != nil {
		t.Errorf("merged again: %v", err)
	}
	if down, up, err := h.MergeCost(within(t, long), 3); down != 3 || up != 9 || err != nil {
		t.Errorf("cost %d, %d, %v", down, up, err)
	}
}

// TestScratch: what the user of a read-only disk writes is there for the next worker, and not on the disk.
func TestScratch(t *testing.T) {
	r := newRig(t)
	scratch, err := os.Create(filepath.Join(t.TempDir(), "scratch"))
	if err != nil {
		t.Fatal(err)
	}
	defer scratch.Close()
	r.spec.ReadOnly, r.spec.Device.Scratch = true, scratch
	h := start(t, supervisor(t, ""), r)
	if r.ask(t) != 'y' {
		t.Fatal("the disk cannot be read")
	}
	kill(t, h)
	if r.ask(t) != 'y' {
		t.Fatal("the successor cannot read the disk")
	}
	if err := h.Stop(within(t, long)); err != nil {
		t.Error(err)
	}
	if st, err := scratch.Stat(); err != nil || st.Size() == 0 {
		t.Errorf("nobody has used the redo log: %v, %v", st, err)
	}
}
