package local_test

import (
	"errors"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/local"
)

// crash is what the death of hostd and its workers leaves: the files, and what the holder holds.
func crash(t *testing.T, r *rig, h *local.Host) []host.Held {
	t.Helper()
	held, err := h.Sync(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { host.CloseAll(held) })
	r.workers.killAll()
	h.Close()
	return held
}

func TestSyncAdopts(t *testing.T) {
	r := newRig(t)
	h := r.open(t)
	var want []host.Attachment
	for _, n := range []string{"x", "y", "z"} {
		want = append(want, attach(t, h, create(t, h, n, "a").ID))
	}
	held := crash(t, r, h)
	h = r.open(t)
	for _, a := range want {
		if err := h.Delete(t.Context(), a.ID); !errors.Is(err, fault.InUse) {
			t.Fatalf("delete before the holder came: %v", err)
		}
		if _, err := h.Expand(t.Context(), a.ID, 8*mib); !errors.Is(err, fault.Unavailable) {
			t.Fatalf("expand before the holder came: %v", err)
		}
	}
	got, err := h.Sync(t.Context(), held)
	if err != nil || len(got) != len(want) {
		t.Fatalf("adopted %+v %v", got, err)
	}
	defer host.CloseAll(got)
	for _, g := range got {
		for _, a := range want {
			if a.ID == g.Attachment.ID && (a.Slot != g.Attachment.Slot || a.Epoch != g.Attachment.Epoch || g.Attachment.Restarts != 1) {
				t.Errorf("adopted %+v, was %+v", g.Attachment, a)
			}
		}
	}
	for _, a := range want {
		if err := h.Detach(t.Context(), a.ID); err != nil {
			t.Fatal(err)
		}
	}
}

// What a holder brings back is served under no other epoch, host or start of the machine than the manifest's.
func TestStaleHoldersAreRefused(t *testing.T) {
	for what, change := range map[string]func(r *rig, held *host.Held){
		"an older epoch":               func(_ *rig, held *host.Held) { held.Attachment.Epoch-- },
		"a newer epoch":                func(_ *rig, held *host.Held) { held.Attachment.Epoch++ },
		"another start of the machine": func(r *rig, _ *host.Held) { r.cfg.Host.BootID = "boot-2" },
		"another host":                 func(r *rig, _ *host.Held) { r.cfg.Host.Host = "node-b" },
		"no device":                    func(_ *rig, held *host.Held) { held.Device = host.Device{} },
	} {
		r := newRig(t)
		h := r.open(t)
		d := create(t, h, "x", "b")
		attach(t, h, d.ID)
		held := crash(t, r, h)
		one := held[0]
		change(r, &one)
		h = r.open(t)
		if got, err := h.Sync(t.Context(), []host.Held{one}); err != nil || len(got) != 0 {
			t.Errorf("%s: adopted %+v %v", what, got, err)
			host.CloseAll(got)
		}
	}
}

// After a restart of the machine no process is left that could detach: taking the claim back releases the disk.
func TestUnclaimAfterAReboot(t *testing.T) {
	r := newRig(t)
	h := r.open(t)
	d := create(t, h, "x", "b")
	if err := h.Claim(t.Context(), d.ID, host.Claim{Node: "node-a"}); err != nil {
		t.Fatal(err)
	}
	attach(t, h, d.ID)
	crash(t, r, h)
	if err := r.open(t).Unclaim(t.Context(), d.ID, "node-a"); !errors.Is(err, fault.InUse) {
		t.Fatalf("unclaim while the holder may come: %v", err)
	}
	r.cfg.Host.BootID = "boot-2"
	h = r.open(t)
	if err := h.Unclaim(t.Context(), d.ID, "node-a"); err != nil {
		t.Fatal(err)
	}
	r.cfg.Host.Host = "node-b"
	attach(t, r.open(t), d.ID)
}

// The holder died too: a detach checks and releases what is left.
func TestDetachOfWhatNobodyHolds(t *testing.T) {
	r := newRig(t)
	h := r.open(t)
	d := create(t, h, "x", "b")
	attach(t, h, d.ID)
	crash(t, r, h)
	h = r.open(t)
	if err := h.Detach(t.Context(), d.ID); err != nil {
		t.Fatal(err)
	}
	if err := h.Delete(t.Context(), d.ID); err != nil {
		t.Fatal(err)
	}
}

func TestHandover(t *testing.T) {
	r := newRig(t)
	old := r.open(t)
	var ids []string
	for _, n := range []string{"x", "y"} {
		d := create(t, old, n, "a")
		attach(t, old, d.ID)
		ids = append(ids, d.ID)
	}
	next := r.open(t)
	take := func(h host.Held) error {
		defer h.Close()
		return next.Adopt(t.Context(), h)
	}
	r.workers.failNext = fault.New(fault.Internal, "", "no memory")
	if err := old.Handover(t.Context(), take); err == nil {
		t.Fatal("a failed take-over succeeded")
	}
	if list, err := old.Attachments(t.Context()); err != nil || len(list) != 2 {
		t.Fatalf("after a failed handover the old one has %+v %v", list, err)
	}
	if err := old.Handover(t.Context(), take); err != nil {
		t.Fatal(err)
	}
	list, err := next.Attachments(t.Context())
	if err != nil || len(list) != 2 {
		t.Fatalf("the successor has %+v %v", list, err)
	}
	if _, err := old.Attachments(t.Context()); !errors.Is(err, fault.Unavailable) {
		t.Fatalf("the old one answers still: %v", err)
	}
	if _, err := old.Create(t.Context(), host.DiskSpec{Name: "z", Datastore: "a", Size: mib}); !errors.Is(err, fault.Unavailable) {
		t.Fatalf("the old one works still: %v", err)
	}
	if _, err := old.Sync(t.Context(), nil); !errors.Is(err, fault.Unavailable) {
		t.Fatalf("the old one says that it holds nothing: %v", err)
	}
	for _, id := range ids {
		if err := next.Detach(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
}
