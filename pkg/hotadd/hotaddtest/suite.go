package hotaddtest

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/hotadd"
)

// Run checks a bus. open gives an empty one; reopen gives the same bus as a new process would find it.
func Run(t *testing.T, open func(t *testing.T) (bus hotadd.Bus, reopen func() hotadd.Bus)) {
	t.Run("SlotIsKept", func(t *testing.T) { keeps(t, open) })
	t.Run("FullBus", func(t *testing.T) { full(t, open) })
	t.Run("Concurrent", func(t *testing.T) { concurrent(t, open) })
	t.Run("Invalid", func(t *testing.T) {
		bus, _ := open(t)
		if _, err := bus.Attach(t.Context(), hotadd.Disk{}); !errors.Is(err, fault.Invalid) {
			t.Fatalf("a disk without an id: %v", err)
		}
	})
}

func disk(n int) hotadd.Disk { return hotadd.Disk{ID: fmt.Sprintf("d%02d", n), UUID: fmt.Sprint(n)} }

func keeps(t *testing.T, open func(t *testing.T) (hotadd.Bus, func() hotadd.Bus)) {
	bus, reopen := open(t)
	ctx := t.Context()
	first, err := bus.Attach(ctx, disk(1))
	if err != nil || first.Check() != nil {
		t.Fatalf("attach: %v %v", first, err)
	}
	second, err := bus.Attach(ctx, disk(2))
	if err != nil || second == first {
		t.Fatalf("second disk in slot %v, first in %v: %v", second, first, err)
	}
	for _, b := range []hotadd.Bus{bus, reopen()} {
		if s, err := b.Attach(ctx, disk(1)); err != nil || s != first {
			t.Fatalf("repeated attach: slot %v (%v), want %v", s, err, first)
		}
		if s, err := b.Locate(ctx, "d02"); err != nil || s != second {
			t.Fatalf("locate: %v (%v), want %v", s, err, second)
		}
		if list, err := b.List(ctx); err != nil || len(list) != 2 || list[0].Disk.UUID != "1" {
			t.Fatalf("list: %v %v", list, err)
		}
	}
	bus = reopen()
	for range 2 {
		if err := bus.Detach(ctx, "d01"); err != nil {
			t.Fatalf("detach: %v", err)
		}
	}
	if _, err := bus.Locate(ctx, "d01"); !errors.Is(err, fault.NotFound) {
		t.Fatalf("locate of a detached disk: %v", err)
	}
	if s, err := reopen().Attach(ctx, disk(3)); err != nil || s != first {
		t.Fatalf("a freed slot is not reused: %v %v", s, err)
	}
}

func full(t *testing.T, open func(t *testing.T) (hotadd.Bus, func() hotadd.Bus)) {
	bus, _ := open(t)
	ctx := t.Context()
	seen := map[hotadd.Slot]bool{}
	for n := range hotadd.Slots {
		s, err := bus.Attach(ctx, disk(n))
		if err != nil || s.Check() != nil || seen[s] {
			t.Fatalf("disk %d: slot %v, taken before %v, %v", n, s, seen[s], err)
		}
		seen[s] = true
	}
	if _, err := bus.Attach(ctx, disk(99)); !errors.Is(err, fault.Exhausted) {
		t.Fatalf("attach to a full bus: %v, want Exhausted", err)
	}
	if _, err := bus.Attach(ctx, disk(5)); err != nil {
		t.Fatalf("repeated attach on a full bus: %v", err)
	}
	if err := bus.Detach(ctx, "d42"); err != nil {
		t.Fatal(err)
	}
	if _, err := bus.Attach(ctx, disk(99)); err != nil {
		t.Fatalf("attach after a detach: %v", err)
	}
}

func concurrent(t *testing.T, open func(t *testing.T) (hotadd.Bus, func() hotadd.Bus)) {
	bus, _ := open(t)
	slots := make([]hotadd.Slot, 20)
	var wg sync.WaitGroup
	for i := range slots {
		wg.Go(func() {
			s, err := bus.Attach(t.Context(), disk(i/2)) // each disk twice
			if err != nil {
				t.Error(err)
			}
			slots[i] = s
		})
	}
	wg.Wait()
	seen := map[hotadd.Slot]int{}
	for i, s := range slots {
		seen[s]++
		if slots[i/2*2] != s {
			t.Errorf("disk %d has two slots", i/2)
		}
	}
	if len(seen) != 10 {
		t.Fatalf("%d slots for 10 disks", len(seen))
	}
}
