package hosttest

import (
	"context"
	"os"
	"slices"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

func canceledContext(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}

func (s Subject) session(t *testing.T, id string) Session {
	t.Helper()
	if s.Session == nil {
		t.Skip("this port's test has no kernel devices: its own tests attach")
	}
	return s.Session(t, id)
}

func (s Subject) attach(t *testing.T, id string, readOnly bool) (host.Attachment, Session) {
	t.Helper()
	k := s.session(t, id)
	a, err := s.Host.Attach(t.Context(), host.AttachRequest{ID: id, ReadOnly: readOnly}, k.Device())
	if err != nil {
		t.Fatalf("attach: %v", err)
	}
	k.Open(t)
	return a, k
}

func (s Subject) detach(t *testing.T, id string, k Session) {
	t.Helper()
	k.Release(t)
	for range 2 {
		if err := s.Host.Detach(t.Context(), id); err != nil {
			t.Fatalf("detach: %v", err)
		}
	}
}

func attach(t *testing.T, s Subject) {
	d, ctx := s.make(t, "x"), t.Context()
	a, k := s.attach(t, d.ID, false)
	ways := s.Transports
	if len(ways) == 0 {
		ways = []string{"hotadd"}
	}
	if a.ID != d.ID || a.Host != s.Node || a.UUID != d.UUID || a.Size != d.Size || a.ReadOnly || !slices.Contains(ways, a.Transport) || a.Epoch < 1 || a.WorkerPID <= 0 || a.Since.IsZero() {
		t.Fatalf("attachment %+v", a)
	}
	again, err := s.Host.Attach(ctx, host.AttachRequest{ID: d.ID}, k.Device())
	if err != nil || again.Epoch != a.Epoch || again.Slot != a.Slot {
		t.Fatalf("repeated: %+v %v", again, err)
	}
	_, err = s.Host.Attach(ctx, host.AttachRequest{ID: d.ID, ReadOnly: true}, k.Device())
	wantKind(t, err, fault.Precondition, "attach in the other mode")
	wantKind(t, s.Host.Delete(ctx, d.ID), fault.InUse, "delete an attached disk")
	list, err := s.Host.Attachments(ctx)
	if err != nil || len(list) != 1 || list[0].ID != d.ID {
		t.Fatalf("attachments %+v %v", list, err)
	}
	if got, err := s.Host.Get(ctx, d.ID); err != nil || len(got.Attachments) != 1 || got.Attachments[0].Slot != a.Slot {
		t.Fatalf("get: %+v %v", got.Attachments, err)
	}
	other := s.make(t, "y")
	b, kb := s.attach(t, other.ID, false)
	if b.Slot == a.Slot {
		t.Fatalf("two disks in slot %v", a.Slot)
	}
	s.detach(t, d.ID, k)
	s.detach(t, other.ID, kb)
	if list, err := s.Host.Attachments(ctx); err != nil || len(list) != 0 {
		t.Fatalf("after detach: %+v %v", list, err)
	}
	c, kc := s.attach(t, d.ID, false)
	if c.Slot != a.Slot {
		t.Fatalf("a freed slot is not reused: %v, was %v", c.Slot, a.Slot)
	}
	s.detach(t, d.ID, kc)
	for what, id := range map[string]string{"a disk that is not": host.DiskID("nobody"), "no id": "..", "an empty id": ""} {
		_, err := s.Host.Attach(ctx, host.AttachRequest{ID: id}, s.session(t, "z").Device())
		wantKind(t, err, fault.NotFound, "attach "+what)
	}
	if err := s.Host.Detach(ctx, host.DiskID("nobody")); err != nil {
		t.Fatalf("detach a disk that is not: %v", err)
	}
}

func attachReadOnly(t *testing.T, s Subject) {
	d := s.make(t, "x")
	a, k := s.attach(t, d.ID, true)
	if !a.ReadOnly || a.Epoch != 0 {
		t.Fatalf("attachment %+v", a)
	}
	s.detach(t, d.ID, k)
}

func expandAttached(t *testing.T, s Subject) {
	d := s.make(t, "x")
	_, k := s.attach(t, d.ID, false)
	got, err := s.Host.Expand(t.Context(), d.ID, 2*d.Size)
	if err != nil || got.Size != 2*d.Size {
		t.Fatalf("expand: %+v %v", got, err)
	}
	if a, err := s.Host.Grown(t.Context(), d.ID); err != nil || a.Size != 2*d.Size {
		t.Fatalf("grown: %+v %v", a, err)
	}
	s.detach(t, d.ID, k)
	_, err = s.Host.Grown(t.Context(), d.ID)
	wantKind(t, err, fault.NotFound, "grown of a detached disk")
	if got, err := s.Host.Get(t.Context(), d.ID); err != nil || got.Size != 2*d.Size {
		t.Fatalf("after detach: %+v %v", got, err)
	}
}

func keeper(t *testing.T, s Subject) {
	d, ctx := s.make(t, "x"), t.Context()
	a, k := s.attach(t, d.ID, false)
	held, err := s.Host.Sync(ctx, nil)
	if err != nil || len(held) != 1 {
		t.Fatalf("sync: %+v %v", held, err)
	}
	defer host.CloseAll(held)
	h := held[0]
	if h.Attachment.ID != d.ID || h.Attachment.Epoch != a.Epoch || h.Device.Fuse == nil || h.Device.Table == nil {
		t.Fatalf("held %+v", h)
	}
	again, err := s.Host.Sync(ctx, held)
	if err != nil || len(again) != 1 {
		t.Fatalf("sync of what is served: %+v %v", again, err)
	}
	host.CloseAll(again)
	gone := host.Held{Attachment: a, Device: h.Device}
	gone.Attachment.ID = host.DiskID("nobody")
	again, err = s.Host.Sync(ctx, []host.Held{gone})
	if err != nil || len(again) != 1 || again[0].Attachment.ID != d.ID {
		t.Fatalf("sync of a disk that is not: %+v %v", again, err)
	}
	host.CloseAll(again)
	s.detach(t, d.ID, k)
	again, err = s.Host.Sync(ctx, nil)
	if err != nil || len(again) != 0 {
		t.Fatalf("sync after the detach: %+v %v", again, err)
	}
}

// NoKernel is a Session without a kernel device, for ports that never look at it.
func NoKernel(t *testing.T, id string) Session {
	t.Helper()
	return noKernel{host.Device{Fuse: null(t), Table: null(t)}}
}

type noKernel struct{ dev host.Device }

func (k noKernel) Device() host.Device { return k.dev }
func (noKernel) Open(*testing.T)       {}
func (noKernel) Release(*testing.T)    {}

func null(t *testing.T) *os.File {
	t.Helper()
	f, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}
