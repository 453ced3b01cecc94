package node

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/hosttest"
)

// mortal is a hostd that can be away, and whose successor has nothing.
type mortal struct {
	*hosttest.Memory
	mu   sync.Mutex
	away bool
	// what every attachment is reported with
	trouble  *host.Trouble
	restarts int
	way      string // transport; "": as it is
	skipped  []host.Skipped
}

func (m *mortal) reach(by string, skipped ...host.Skipped) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.way, m.skipped = by, skipped
}

func (m *mortal) report(restarts int, trouble *host.Trouble) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.restarts, m.trouble = restarts, trouble
}

func (m *mortal) setAway(away bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.away = away
}

func (m *mortal) gone() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.away {
		return fault.New(fault.Unavailable, "", "hostd is away")
	}
	return nil
}

func (m *mortal) Attachments(ctx context.Context) ([]host.Attachment, error) {
	if err := m.gone(); err != nil {
		return nil, err
	}
	all, err := m.Memory.Attachments(ctx)
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range all {
		all[i].Restarts, all[i].Trouble = m.restarts, m.trouble
		if m.way != "" {
			all[i].Transport, all[i].Skipped = m.way, m.skipped
		}
	}
	return all, err
}

func (m *mortal) Sync(ctx context.Context, held []host.Held) ([]host.Held, error) {
	if err := m.gone(); err != nil {
		return nil, err
	}
	got, err := m.Memory.Sync(ctx, held)
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range got {
		got[i].Attachment.Restarts = m.restarts
	}
	return got, err
}

// told is a Recorder that remembers.
type told struct {
	silent
	mu       sync.Mutex
	reasons  []string
	attached []host.Attachment
}

func (r *told) Event(_ context.Context, _ string, _ bool, reason, _ string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reasons = append(r.reasons, reason)
}

func (r *told) Attached(_ context.Context, a host.Attachment) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.attached = append(r.attached, a)
}

func (r *told) are(reasons ...string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Equal(r.reasons, reasons)
}

// What only the pod sees as an error, and the death of a worker, are told on the object: each once.
func TestHolderTells(t *testing.T) {
	ctx := context.Background()
	m := &mortal{Memory: hosttest.NewMemory("node-a")}
	defer m.Close()
	a, dev := attachedDisk(t, m)
	r := &told{}
	h := NewHolder(m, func(string) (bool, error) { return true, nil }, r, nil)
	defer h.Close()
	if err := h.Add(ctx, host.Held{Attachment: a, Device: dev}); err != nil {
		t.Fatal(err)
	}
	h.look(ctx)
	if !r.are() {
		t.Fatalf("nothing happened, told was %q", r.reasons)
	}
	full := &host.Trouble{At: time.Now(), Fault: fault.New(fault.NoSpace, "Free some space.", "no space left on device")}
	m.report(0, full)
	h.look(ctx)
	h.look(ctx)
	if !r.are("DatastoreFull") {
		t.Errorf("a full datastore: told was %q", r.reasons)
	}
	m.report(0, &host.Trouble{At: full.At.Add(time.Minute), Fault: fault.New(fault.Internal, "", "input/output error")})
	h.look(ctx)
	if !r.are("DatastoreFull", "IOFailed") {
		t.Errorf("another trouble: told was %q", r.reasons)
	}
	m.report(1, nil)
	h.look(ctx)
	h.look(ctx)
	if !r.are("DatastoreFull", "IOFailed", "WorkerRestarted") || len(r.attached) != 1 || r.attached[0].Restarts != 1 {
		t.Errorf("a restart: told was %q, %+v", r.reasons, r.attached)
	}
}

// Another transport is noted once each time that it changes, whatever becomes of the reason meanwhile; not what was attached so.
func TestHolderTellsTransports(t *testing.T) {
	ctx := context.Background()
	m := &mortal{Memory: hosttest.NewMemory("node-a")}
	defer m.Close()
	a, dev := attachedDisk(t, m)
	r := &told{}
	h := NewHolder(m, func(string) (bool, error) { return true, nil }, r, nil)
	defer h.Close()
	if err := h.Add(ctx, host.Held{Attachment: a, Device: dev}); err != nil {
		t.Fatal(err)
	}
	want := func(what string, ways ...string) {
		t.Helper()
		h.look(ctx)
		h.look(ctx)
		got := []string{}
		for _, a := range r.attached {
			got = append(got, way(a))
		}
		if !slices.Equal(got, ways) {
			t.Fatalf("%s: noted were %q, want %q", what, got, ways)
		}
	}
	want("as attached")
	recalled := host.Skipped{Transport: "san", Reason: "the map was recalled", Kind: fault.Precondition}
	m.reach("nbd", recalled)
	want("for a moment")
	m.reach(a.Transport)
	want("and back")
	m.reach("nbd", recalled)
	h.settle = 0
	want("for longer", "nbd san")
	h.settle = time.Hour
	m.reach("nbd", host.Skipped{Transport: "san", Reason: "the LUN is away"})
	want("another reason", "nbd san")
	end := h.detaching(a.ID)
	m.reach("san")
	want("while it is being detached", "nbd san")
	end()
	want("restored", "nbd san", "san")
	m.reach("nbd", host.Skipped{Transport: "san", Reason: "the LUN is away", Kind: fault.NotFound})
	want("something is wrong", "nbd san", "san", "nbd san")
	if by, n := h.Transports(); by[a.ID] != "nbd" || n != 2 {
		t.Errorf("reached by %v, %d fallbacks; want nbd, 2", by, n)
	}
}

// eventually polls with a deadline.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func attachedDisk(t *testing.T, m *mortal) (host.Attachment, host.Device) {
	t.Helper()
	ctx := context.Background()
	d, err := m.Create(ctx, host.DiskSpec{Name: "a", Datastore: "local", Size: gib, Format: host.Thin, Type: host.MonolithicFlat, Host: "node-a"})
	if err != nil {
		t.Fatal(err)
	}
	fuse, table := temp(t), temp(t)
	a, err := m.Attach(ctx, host.AttachRequest{ID: d.ID}, host.Device{Fuse: fuse, Table: table})
	if err != nil {
		t.Fatal(err)
	}
	return a, host.Device{Fuse: fuse, Table: table}
}

// temp stands for a descriptor of the kernel's.
func temp(t *testing.T) *os.File {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "fd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func running(t *testing.T, h *Holder) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { h.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait(); h.Close() })
}

func (h *Holder) has(id string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, ok := h.held[id]
	return ok
}

// A hostd that comes back with nothing gets every disk from the Holder; a Holder that starts gets them from hostd.
func TestHolderGivesAndGets(t *testing.T) {
	ctx := context.Background()
	m := &mortal{Memory: hosttest.NewMemory("node-a")}
	defer m.Close()
	a, dev := attachedDisk(t, m)
	h := NewHolder(m, func(string) (bool, error) { return true, nil }, nil, nil)
	if err := h.Reachable(); !errors.Is(err, fault.Unavailable) {
		t.Errorf("before the first look: %v", err)
	}
	if err := h.Add(ctx, host.Held{Attachment: a, Device: dev}); err != nil {
		t.Fatal(err)
	}
	running(t, h)
	eventually(t, "hostd answered", func() bool { return h.Reachable() == nil })

	m.setAway(true)
	eventually(t, "hostd's absence is seen", func() bool { return h.Reachable() != nil })
	if err := m.Memory.Detach(ctx, a.ID); err != nil { // the successor has nothing
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if err := h.Drain(short); !errors.Is(err, fault.Timeout) {
		t.Errorf("drained while hostd is away: %v", err)
	}
	m.setAway(false)
	eventually(t, "the successor has the disk", func() bool {
		all, err := m.Attachments(ctx)
		return err == nil && len(all) == 1
	})
	if err := h.Drain(ctx); err != nil {
		t.Errorf("drain: %v", err)
	}

	second := NewHolder(m, func(string) (bool, error) { return true, nil }, nil, nil)
	running(t, second)
	eventually(t, "a restarted holder has the disk", func() bool { return second.has(a.ID) })
}

// A disk that somebody else detached, and whose device is gone, is not given back to hostd.
func TestHolderForgetsWhatIsDetached(t *testing.T) {
	ctx := context.Background()
	m := &mortal{Memory: hosttest.NewMemory("node-a")}
	defer m.Close()
	a, dev := attachedDisk(t, m)
	var mu sync.Mutex
	there := true
	h := NewHolder(m, func(string) (bool, error) { mu.Lock(); defer mu.Unlock(); return there, nil }, nil, nil)
	if err := h.Add(ctx, host.Held{Attachment: a, Device: dev}); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	there = false
	mu.Unlock()
	if err := m.Memory.Detach(ctx, a.ID); err != nil {
		t.Fatal(err)
	}
	running(t, h)
	eventually(t, "the disk is forgotten", func() bool { return !h.has(a.ID) })
	if all, err := m.Attachments(ctx); err != nil || len(all) != 0 {
		t.Errorf("attachments: %v, %v", all, err)
	}
}

// While a disk is being detached it is neither offered nor taken.
func TestHolderLeavesADetachAlone(t *testing.T) {
	ctx := context.Background()
	m := &mortal{Memory: hosttest.NewMemory("node-a")}
	defer m.Close()
	a, dev := attachedDisk(t, m)
	h := NewHolder(m, nil, nil, nil)
	defer h.Close()
	if err := h.Add(ctx, host.Held{Attachment: a, Device: dev}); err != nil {
		t.Fatal(err)
	}
	done := h.detaching(a.ID)
	if err := m.Memory.Detach(ctx, a.ID); err != nil {
		t.Fatal(err)
	}
	h.look(ctx)
	if all, err := m.Attachments(ctx); err != nil || len(all) != 0 {
		t.Errorf("the disk came back: %v, %v", all, err)
	}
	h.Drop(a.ID)
	done()
	if h.has(a.ID) {
		t.Error("still held")
	}
}

// A half-made file system is ours only as long as nobody else can have attached the disk.
func TestFormattingIsOursOnlyWithoutAnotherOwner(t *testing.T) {
	m := newMachine(t)
	s := m.service()
	for _, tc := range []struct {
		epoch int64
		ours  bool
	}{{5, true}, {6, true}, {7, false}, {4, false}} {
		rec := &record{Volume: m.volume("mount", "none"), Formatting: true, Epoch: 5}
		if err := s.stillFormatting(rec, tc.epoch); err != nil || rec.Formatting != tc.ours {
			t.Errorf("epoch %d after 5: formatting %v, %v", tc.epoch, rec.Formatting, err)
		}
		if tc.ours && rec.Epoch != tc.epoch {
			t.Errorf("epoch %d is not remembered", tc.epoch)
		}
	}
}
