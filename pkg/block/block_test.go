package block_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/block"
	"github.com/vmdk-csi/vmdk-csi/pkg/block/blocktest"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

func TestConformance(t *testing.T) {
	for name, wrap := range map[string]func(block.Device) block.Device{
		"memory": func(d block.Device) block.Device { return d },
		"gate":   func(d block.Device) block.Device { return block.NewGate(d) },
		"stats":  func(d block.Device) block.Device { return block.NewStats(d) },
		"poison": block.Poison,
	} {
		t.Run(name, func(t *testing.T) {
			below := map[block.Device]*block.Mem{}
			blocktest.Run(t, blocktest.Subject{
				New: func(*testing.T) block.Device {
					m := block.Memory(blocktest.Size)
					d := wrap(m)
					below[d] = m
					return d
				},
				BreakFlush: func(d block.Device) { below[d].FailFlush(errors.New("medium error")) },
			})
		})
	}
}

func TestClone(t *testing.T) {
	m := block.Memory(1 << 20)
	write := func(d *block.Mem, text string) {
		t.Helper()
		if _, err := d.WriteAt([]byte(text), 4096); err != nil {
			t.Fatal(err)
		}
	}
	write(m, "before")
	c := m.Clone()
	write(m, "behind")
	for d, want := range map[*block.Mem]string{m: "behind", c: "before"} {
		got := make([]byte, len(want))
		if _, err := d.ReadAt(got, 4096); err != nil || string(got) != want {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
	}
	write(c, "copied")
	got := make([]byte, 6)
	if _, err := m.ReadAt(got, 4096); err != nil || string(got) != "behind" {
		t.Errorf("a write to the copy shows in the original: %q, %v", got, err)
	}
}

func TestReadOnly(t *testing.T) {
	m := block.Memory(4096)
	if _, err := m.WriteAt([]byte("content"), 100); err != nil {
		t.Fatal(err)
	}
	d := block.ReadOnly(m)
	_, write := d.WriteAt([]byte("x"), 0)
	for what, err := range map[string]error{"write": write, "discard": d.Discard(0, 4096), "zeroes": d.WriteZeroes(0, 4096)} {
		if !errors.Is(err, fault.ReadOnly) {
			t.Errorf("%s: %v", what, err)
		}
	}
	p := make([]byte, 7)
	if _, err := d.ReadAt(p, 100); err != nil || string(p) != "content" || d.Size() != 4096 || d.Flush() != nil {
		t.Errorf("%q, %v", p, err)
	}
}

// slow is a device whose writes wait until the test lets them go on.
type slow struct {
	block.Device
	entered, release chan struct{}
}

func (s slow) WriteAt(p []byte, off int64) (int, error) {
	s.entered <- struct{}{}
	<-s.release
	return s.Device.WriteAt(p, off)
}

func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := block.Memory(4096), block.Memory(8192)
		s := slow{first, make(chan struct{}), make(chan struct{})}
		g := block.NewGate(s)
		var wg sync.WaitGroup
		write := func(b byte) {
			wg.Go(func() {
				if _, err := g.WriteAt([]byte{b}, 0); err != nil {
					t.Error(err)
				}
			})
		}
		write(1)
		<-s.entered
		// A request inside: Close does not return, and a deadline opens the gate again.
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if err := g.Close(ctx); !errors.Is(err, fault.Timeout) {
			t.Fatalf("Close with a request inside: %v", err)
		}
		write(2)
		<-s.entered // let in, so the gate is open
		closed := make(chan error, 1)
		wg.Go(func() { closed <- g.Close(t.Context()) })
		synctest.Wait() // Close holds the gate and waits for the two inside
		write(3)        // waits in front
		synctest.Wait()
		select {
		case <-s.entered:
			t.Fatal("a request passed a closed gate")
		case err := <-closed:
			t.Fatal("Close returned with requests inside", err)
		default:
		}
		s.release <- struct{}{}
		synctest.Wait()
		select {
		case err := <-closed:
			t.Fatal("Close returned with a request inside", err)
		default:
		}
		s.release <- struct{}{}
		if err := <-closed; err != nil {
			t.Fatal(err)
		}
		if g.Swap(second) != block.Device(s) || g.Size() != 8192 {
			t.Fatal("Swap")
		}
		g.Open()
		wg.Wait()
		p := make([]byte, 1)
		if _, err := second.ReadAt(p, 0); err != nil || p[0] != 3 {
			t.Fatalf("the waiting write did not reach the new device: %v, %v", p, err)
		}
	})
}

func TestGateFail(t *testing.T) {
	g := block.NewGate(block.Memory(4096))
	if err := g.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := g.Close(t.Context()); !errors.Is(err, fault.InProgress) {
		t.Fatalf("second Close: %v", err)
	}
	end := fault.New(fault.Unavailable, "", "the disk is being detached")
	got := make(chan error)
	go func() { got <- g.Flush() }()
	g.Fail(end)
	if err := <-got; !errors.Is(err, fault.Unavailable) {
		t.Fatalf("waiting request: %v", err)
	}
	if err := g.Close(t.Context()); !errors.Is(err, fault.Unavailable) {
		t.Fatalf("Close: %v", err)
	}
}

func TestStats(t *testing.T) {
	s := block.NewStats(block.Memory(4096))
	s.WriteAt(make([]byte, 100), 0)
	s.WriteAt(make([]byte, 100), 4096) // fails
	s.ReadAt(make([]byte, 10), 0)
	s.Flush()
	c := s.Counters()
	w := c.Ops[block.OpWrite]
	if w.Requests != 2 || w.Errors != 1 || w.Bytes != 100 || c.Ops[block.OpRead].Bytes != 10 ||
		c.Ops[block.OpFlush].Requests != 1 || c.InFlight != 0 || w.Time <= 0 {
		t.Errorf("%+v", c)
	}
}
