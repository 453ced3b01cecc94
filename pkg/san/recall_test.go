package san_test

import (
	"context"
	"errors"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/san"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/store"
)

// Who listens hears of a recall at once, and of the end of its grant.
func TestRecalled(t *testing.T) {
	r := newRig(t, 64<<20, store.FormatOptions{AreaSize: 256 << 10})
	r.flat("v", 1<<20)
	m := r.get("v", "n", san.ReadWrite)
	over, cancel := context.WithCancel(ctx)
	cancel()
	if recalled, err := r.server.Recalled(over, m.Grant, m.Generation); recalled || err != nil {
		t.Errorf("before: %v, %v", recalled, err)
	}
	type answer struct {
		recalled bool
		err      error
	}
	heard := make(chan answer)
	go func() {
		recalled, err := r.server.Recalled(ctx, m.Grant, m.Generation)
		heard <- answer{recalled, err}
	}()
	back := make(chan error)
	go func() { back <- r.server.Recall(ctx, "v") }()
	if a := <-heard; !a.recalled || a.err != nil {
		t.Errorf("recalled: %+v", a)
	}
	must(t, r.server.Return(ctx, m.Grant, m.Generation), <-back)
	if _, err := r.server.Recalled(ctx, m.Grant, m.Generation); !errors.Is(err, fault.NotFound) {
		t.Errorf("after: %v", err)
	}
}

// A question grants nothing, and is answered as Get would.
func TestCheck(t *testing.T) {
	r := newRig(t, 64<<20, store.FormatOptions{AreaSize: 256 << 10})
	r.flat("v", 1<<20)
	m, err := r.server.Check(ctx, san.Request{Volume: "v", Node: "n", Mode: san.ReadWrite})
	must(t, err, m.Validate())
	if m.Grant != 0 || len(r.server.Outstanding()) > 0 || len(r.store.Grants()) > 0 {
		t.Errorf("a question gave a grant: %+v", m)
	}
	got := r.get("v", "n", san.ReadWrite)
	if got.Digest != m.Digest {
		t.Error("the map is another one than the question told")
	}
	if _, err := r.server.Check(ctx, san.Request{Volume: "v", Node: "other", Mode: san.ReadWrite}); !errors.Is(err, fault.InUse) {
		t.Errorf("beside a map: %v", err)
	}
}

// What a node could not return ends when the owner has flushed the LUN, and only what is meant.
func TestAbandon(t *testing.T) {
	r := newRig(t, 64<<20, store.FormatOptions{AreaSize: 256 << 10})
	r.flat("v", 1<<20)
	r.flat("w", 1<<20)
	v, w := r.get("v", "n", san.ReadWrite), r.get("w", "n", san.ReadWrite)
	must(t, r.server.Abandon(ctx, "v", "other", 0, 0), r.server.Abandon(ctx, "v", "n", v.Grant, v.Generation+1))
	if n := len(r.server.Outstanding()); n != 2 {
		t.Errorf("%d maps are out, none was abandoned", n)
	}
	over, cancel := context.WithCancel(ctx)
	cancel()
	if err := r.server.Abandon(over, "v", "n", 0, 0); !errors.Is(err, context.Canceled) || len(r.server.Outstanding()) != 2 {
		t.Errorf("who asked has left: %v", err)
	}
	must(t, r.server.Abandon(ctx, "v", "n", v.Grant, v.Generation), r.server.Abandon(ctx, "w", "n", 0, 0), r.server.Abandon(ctx, "w", "n", w.Grant, w.Generation))
	if out := r.server.Outstanding(); len(out) > 0 || len(r.store.Grants()) > 0 {
		t.Errorf("%+v", out)
	}
	r.get("v", "other", san.ReadWrite)
	must(t, r.lun.Close())
	if err := r.server.Abandon(ctx, "v", "other", 0, 0); err == nil || len(r.server.Outstanding()) != 1 {
		t.Errorf("a LUN that cannot be flushed: %v", err)
	}
}
