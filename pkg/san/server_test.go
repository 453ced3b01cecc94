package san_test

import (
	"errors"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/san"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/store"
)

var shape = store.FormatOptions{ExtentSize: 64 << 10, AreaSize: 64 << 10}

// kind is what a Get ends with.
func (r *rig) kind(volume, snapshot, node string, mode san.Mode) fault.Kind {
	_, err := r.server.Get(ctx, san.Request{Volume: volume, Snapshot: snapshot, Node: node, Mode: mode})
	return fault.KindOf(err)
}

// TestRules: which maps may be out together.
func TestRules(t *testing.T) {
	r := newRig(t, 16<<20, shape)
	r.flat("f", 1<<20)
	r.flat("g", 1<<20)
	first := r.get("f", "a", san.ReadWrite)
	for _, c := range []struct {
		volume, snapshot, node string
		mode                   san.Mode
		want                   fault.Kind
	}{
		{"f", "", "b", san.ReadWrite, fault.InUse}, {"f", "", "b", san.ReadOnly, fault.InUse}, {"f", "", "a", san.ReadWrite, fault.InUse},
		{"g", "s", "b", san.ReadWrite, fault.Precondition}, {"g", "", "b", san.ReadOnly, ""}, {"g", "s", "c", san.ReadOnly, ""},
		{"g", "", "d", san.ReadWrite, fault.InUse}, {"none", "", "d", san.ReadOnly, fault.NotFound},
		{"f", "", "", san.ReadOnly, fault.Invalid}, {"f", "", "x", "wo", fault.Invalid},
	} {
		if got := r.kind(c.volume, c.snapshot, c.node, c.mode); got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
	must(t, r.server.Return(ctx, first.Grant, first.Generation))
	second := r.get("f", "b", san.ReadWrite)
	if second.Generation <= first.Generation || second.Grant <= first.Grant {
		t.Errorf("grant %d of %d after %d of %d", second.Grant, second.Generation, first.Grant, first.Generation)
	}
	if _, err := r.server.Renew(ctx, first.Grant, first.Generation, first.Digest); !errors.Is(err, fault.NotFound) {
		t.Errorf("renewal of a map that was returned: %v", err)
	}
	if _, err := r.server.Renew(ctx, second.Grant, second.Generation, first.Digest+"0"); !errors.Is(err, fault.NotFound) {
		t.Errorf("renewal of another map: %v", err)
	}
	if n := len(r.store.Grants()); n != 3 {
		t.Errorf("%d grants are kept", n) // two of g, one of f: what was refused left none
	}
}

// TestSilence: a node that is silent for all of its time is fenced, and only then the volume is another one's.
func TestSilence(t *testing.T) {
	r := newRig(t, 16<<20, shape)
	r.flat("f", 1<<20)
	r.flat("g", 1<<20)
	m := r.get("f", "a", san.ReadWrite)
	r.get("g", "a", san.ReadOnly)
	r.fencer.err = errors.New("the array does not answer")
	r.clock.pass(m.Lease + m.MaxIO)
	must(t, r.server.Expire(ctx)) // the margin is left
	if r.kind("f", "", "b", san.ReadWrite) != fault.InUse {
		t.Error("given away before its time")
	}
	r.clock.pass(5 * time.Second)
	if err := r.server.Expire(ctx); err == nil {
		t.Error("a fencing that failed is not told")
	}
	if r.kind("f", "", "b", san.ReadWrite) != fault.InUse {
		t.Error("given away without fencing")
	}
	r.fencer.err = nil
	must(t, r.server.Expire(ctx))
	if len(r.fencer.fenced) == 0 || r.fencer.fenced[0] != "a" || len(r.server.Outstanding()) != 0 || len(r.store.Grants()) != 0 {
		t.Errorf("fenced %v, out %v", r.fencer.fenced, r.server.Outstanding())
	}
	r.get("f", "b", san.ReadWrite)
	if _, err := r.server.Renew(ctx, m.Grant, m.Generation, m.Digest); !errors.Is(err, fault.NotFound) {
		t.Errorf("the dead one renews: %v", err)
	}
}

// TestWithoutReservations: read-write maps need somebody's word.
func TestWithoutReservations(t *testing.T) {
	r := newRig(t, 16<<20, shape)
	r.flat("f", 1<<20)
	c := r.config
	c.Fencer = nil
	r.server = san.NewServer(ctx, c)
	if r.kind("f", "", "a", san.ReadWrite) != fault.Precondition || r.kind("f", "", "a", san.ReadOnly) != "" {
		t.Error("a read-write map without reservations, or no read-only one")
	}
	c.LeaseOnly = true
	must(t, r.server.Return(ctx, r.server.Outstanding()[0].Grant, r.store.Grants()[0].Generation))
	r.server = san.NewServer(ctx, c)
	m := r.get("f", "a", san.ReadWrite)
	r.clock.pass(m.Lease + m.MaxIO + 5*time.Second)
	must(t, r.server.Expire(ctx))
	r.get("f", "b", san.ReadWrite)
}

// TestRestart: the next server knows the grants, keeps their places and their rules, grants nothing read-write for one lease,
// and fences who does not come back.
func TestRestart(t *testing.T) {
	r := newRig(t, 16<<20, shape)
	r.flat("f", 1<<20)
	r.flat("g", 1<<20)
	r.flat("h", 1<<20)
	f, g := r.get("f", "a", san.ReadWrite), r.get("g", "b", san.ReadWrite)
	r.die()
	r.start()
	if n := len(r.server.Outstanding()); n != 2 {
		t.Fatalf("%d grants are known", n)
	}
	if r.kind("h", "", "c", san.ReadWrite) != fault.InProgress || r.kind("f", "", "c", san.ReadOnly) != fault.InUse || r.kind("h", "", "c", san.ReadOnly) != "" {
		t.Error("the grace is not kept")
	}
	if file, err := r.store.Root().Open("f", fsx.ReadWrite); err != nil || !errors.Is(file.Lock(fsx.LockWrite), fault.InUse) {
		t.Errorf("the file of a map that is out can be changed (%v)", err)
	}
	r.clock.pass(f.Lease / 2)
	renewal, err := r.server.Renew(ctx, f.Grant, f.Generation, f.Digest)
	must(t, err)
	if renewal.Lease != f.Lease || renewal.Recalled {
		t.Errorf("%+v", renewal)
	}
	r.clock.pass(f.Lease/2 + f.MaxIO + 5*time.Second)
	must(t, r.server.Expire(ctx))
	if len(r.fencer.fenced) != 2 || r.fencer.fenced[0] != "b" { // b with g, and c, which had h read-only and was as silent
		t.Errorf("fenced %v", r.fencer.fenced)
	}
	r.get("g", "c", san.ReadWrite)
	_ = g
}

// TestNoReuseUnderAMap: a file that is removed while a map of it is out leaves its extents to nobody.
func TestNoReuseUnderAMap(t *testing.T) {
	r := newRig(t, 4<<20, shape)
	_, free, err := r.store.Root().Space()
	must(t, err)
	r.flat("f", free)
	d := r.mapper(r.get("f", "a", san.ReadWrite))
	must(t, r.store.Root().Remove("f"), r.store.Root().Sync())
	h, err := r.store.Root().Open("h", fsx.ReadWrite|fsx.Create)
	must(t, err)
	defer h.Close()
	if _, err := h.WriteAt([]byte("h"), 0); !errors.Is(err, fault.NoSpace) {
		t.Errorf("an extent of a map was given away: %v", err)
	}
	_, err = d.WriteAt([]byte("late"), 0)
	must(t, err, d.Return(ctx))
	_, err = h.WriteAt([]byte("h"), 0)
	must(t, err)
	p := make([]byte, 8)
	if n, _ := h.ReadAt(p, 0); n != 1 || p[0] != 'h' {
		t.Errorf("%d bytes %q", n, p)
	}
}
