package lunlease_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx/sim"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/lunlease"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/store"
)

// bubbleClock is the time of a synctest bubble.
type bubbleClock struct{ start time.Time }

func (c bubbleClock) Now() time.Duration                     { return time.Since(c.start) }
func (c bubbleClock) After(d time.Duration) <-chan time.Time { return time.After(d) }

// wire is a path to a LUN that can be cut: what is sent hangs until it is mended, or until the test ends.
type wire struct {
	fsx.File
	cut     atomic.Pointer[chan struct{}]
	refused atomic.Bool // writes fail
	guard   func() error
}

func (w *wire) Guard(check func() error) { w.guard = check }

func (w *wire) pass() error {
	if c := w.cut.Load(); c != nil {
		<-*c
		return errors.New("the path is cut")
	}
	return nil
}

func (w *wire) ReadAt(p []byte, off int64) (int, error) {
	if err := w.pass(); err != nil {
		return 0, err
	}
	return w.File.ReadAt(p, off)
}

func (w *wire) WriteAt(p []byte, off int64) (int, error) {
	if err := w.pass(); err != nil {
		return 0, err
	}
	if w.guard != nil {
		if err := w.guard(); err != nil {
			return 0, err
		}
	}
	if w.refused.Load() {
		return 0, errors.New("write refused")
	}
	return w.File.WriteAt(p, off)
}

// bubble runs a test on a simulated LUN and clock.
func bubble(t *testing.T, test func(t *testing.T, lun fsx.File, o lunlease.Options)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		lun, err := sim.New(sim.Options{}).Root().Open("lun", fsx.ReadWrite|fsx.Create)
		must(t, err)
		defer lun.Close()
		must(t, lun.Truncate(4<<20))
		_, err = store.Format(lun, store.FormatOptions{ExtentSize: 64 << 10, AreaSize: 64 << 10})
		must(t, err)
		test(t, lun, lunlease.Options{Clock: bubbleClock{time.Now()}})
	})
}

func acquire(t *testing.T, lun fsx.File, host string, o lunlease.Options) (*lunlease.Lease, time.Duration) {
	t.Helper()
	before := time.Now()
	l, err := lunlease.Acquire(t.Context(), lun, lunlease.Me{Host: host}, o)
	must(t, err)
	return l, time.Since(before)
}

// TestHangingPath: an owner whose path to the LUN hangs knows that it is over although its beat does not return, and lets nothing through.
func TestHangingPath(t *testing.T) {
	bubble(t, func(t *testing.T, lun fsx.File, o lunlease.Options) {
		w := &wire{File: lun}
		l, took := acquire(t, w, "a", o)
		if took > 3*time.Second {
			t.Errorf("a LUN that nobody has was taken after %v", took)
		}
		cut := make(chan struct{})
		w.cut.Store(&cut)
		time.Sleep(6500 * time.Millisecond) // less than MaxIO is left of 9s, or little more
		waits := make(chan error)
		go func() {
			_, err := l.File().WriteAt(make([]byte, 4096), dataAt)
			waits <- err
		}()
		synctest.Wait()
		select {
		case err := <-waits:
			t.Errorf("a write with less than MaxIO left did not wait: %v", err)
		default:
		}
		lost := time.Now()
		<-l.Lost()
		if d := time.Since(lost); d > 2500*time.Millisecond {
			t.Errorf("it was lost after %v", d)
		}
		if err := <-waits; !errors.Is(err, fault.Fenced) {
			t.Errorf("a write that waited: %v", err)
		}
		if _, err := l.File().ReadAt(make([]byte, 4096), dataAt); !errors.Is(err, fault.Fenced) {
			t.Errorf("a read: %v", err)
		}
		if err := errors.Join(l.File().Datasync()); !errors.Is(err, fault.Fenced) {
			t.Errorf("a sync: %v", err)
		}
		other, took := acquire(t, lun, "b", o)
		if took > 13*time.Second {
			t.Errorf("a dead owner's LUN was taken after %v", took)
		}
		close(cut)
		if err := l.Release(); !errors.Is(err, fault.Fenced) {
			t.Errorf("release of what was lost: %v", err)
		}
		if p, err := lunlease.Peek(lun); err != nil || p.Host != "b" || p.Generation != 2 || p.Released {
			t.Errorf("%+v, %v", p, err)
		}
		must(t, other.Release())
	})
}

// TestBeatsKeepIt: a path that fails for a while costs nothing.
func TestBeatsKeepIt(t *testing.T) {
	bubble(t, func(t *testing.T, lun fsx.File, o lunlease.Options) {
		w := &wire{File: lun}
		l, _ := acquire(t, w, "a", o)
		synctest.Wait() // the first beat came
		for range 20 {
			w.refused.Store(true)
			time.Sleep(4500 * time.Millisecond)
			w.refused.Store(false)
			time.Sleep(1500 * time.Millisecond)
			_, err := l.File().WriteAt(make([]byte, 3<<20), dataAt)
			must(t, err, l.Check())
		}
		must(t, l.Release())
		if p, err := lunlease.Peek(lun); err != nil || !p.Released {
			t.Errorf("%+v, %v", p, err)
		}
	})
}

// TestOverwritten: an owner that finds somebody else's block, or none, steps down at once.
func TestOverwritten(t *testing.T) {
	bubble(t, func(t *testing.T, lun fsx.File, o lunlease.Options) {
		l, _ := acquire(t, lun, "a", o)
		_, err := lun.WriteAt(make([]byte, 4096), store.LeaseAt)
		must(t, err)
		before := time.Now()
		<-l.Lost()
		if d := time.Since(before); d > 1100*time.Millisecond {
			t.Errorf("it was noticed after %v", d)
		}
		if err := l.Release(); !errors.Is(err, fault.Fenced) {
			t.Errorf("release: %v", err)
		}
		junk := make([]byte, 4096)
		junk[7] = 1
		_, err = lun.WriteAt(junk, store.LeaseAt)
		must(t, err)
		if _, err := lunlease.Peek(lun); !errors.Is(err, fault.Damaged) {
			t.Errorf("a block of junk: %v", err)
		}
		other, took := acquire(t, lun, "b", o)
		if took < 10*time.Second {
			t.Errorf("a LUN whose block makes no sense was taken after %v", took)
		}
		must(t, other.Release())
	})
}

// TestFence: who died is fenced before the LUN is taken over, and it is not taken over if that fails. Who released it is not.
func TestFence(t *testing.T) {
	bubble(t, func(t *testing.T, lun fsx.File, o lunlease.Options) {
		w := &wire{File: lun}
		l, _ := acquire(t, w, "a", o)
		id := l.ID()
		cut := make(chan struct{})
		w.cut.Store(&cut)
		var fenced []lunlease.Owner
		o.Fence = func(_ context.Context, old lunlease.Owner) error {
			fenced = append(fenced, old)
			if len(fenced) == 1 {
				return fault.New(fault.Unavailable, "", "the array does not answer")
			}
			time.Sleep(time.Minute) // longer than a claim may take: the block is read again behind it
			return nil
		}
		if _, err := lunlease.Acquire(t.Context(), lun, lunlease.Me{Host: "b"}, o); !errors.Is(err, fault.Unavailable) {
			t.Errorf("an owner that cannot be fenced: %v", err)
		}
		b, _ := acquire(t, lun, "b", o)
		if len(fenced) != 2 || fenced[1].Host != "a" || fenced[1].ID != id {
			t.Errorf("fenced: %+v", fenced)
		}
		must(t, b.Release())
		c, took := acquire(t, lun, "c", o)
		if len(fenced) != 2 || took > 3*time.Second {
			t.Errorf("a LUN that was released was taken after %v, fenced: %+v", took, fenced)
		}
		must(t, c.Release())
		close(cut)
		_ = l.Release()
	})
}

// TestReleaseWaits: a LUN is given back when nothing is under way any more.
func TestReleaseWaits(t *testing.T) {
	bubble(t, func(t *testing.T, lun fsx.File, o lunlease.Options) {
		slow := &slowWrites{File: lun}
		l, _ := acquire(t, slow, "a", o)
		go func() { _, _ = l.File().WriteAt(make([]byte, 4096), dataAt) }()
		synctest.Wait()
		before := time.Now()
		must(t, l.Release())
		if d := time.Since(before); d < 2*time.Second {
			t.Errorf("it was released after %v, with a write under way", d)
		}
	})
}

type slowWrites struct{ fsx.File }

func (s *slowWrites) WriteAt(p []byte, off int64) (int, error) {
	if off == dataAt {
		time.Sleep(2 * time.Second)
	}
	return s.File.WriteAt(p, off)
}
