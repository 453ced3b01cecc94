package lunlease_test

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/iscsi/iscsitest"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/lunlease"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/lunpath"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/store"
)

// reserving opens a path of its own to a target's LUN, with what a lease needs to fence by its reservations.
func reserving(t *testing.T, target *iscsitest.Target, blank bool) (fsx.File, lunlease.Options) {
	t.Helper()
	lun, _, err := lunpath.Open(t.Context(), target.URL(), lunpath.Options{ReadWrite: true, Blank: blank})
	must(t, err)
	t.Cleanup(func() { lun.Close() })
	o := quick
	o.Unit, o.Reset, _ = lunpath.Reservations(lun)
	return lun, o
}

// TestReservations: what a dead owner sends after the LUN was taken over is refused by the LUN, whatever the owner thinks of its lease. A
// node that had registered reads and writes on, and who was fenced can be the owner again.
func TestReservations(t *testing.T) {
	target := iscsitest.New(t, 4<<20)
	a, oa := reserving(t, target, true)
	_, err := store.Format(a, store.FormatOptions{ExtentSize: 64 << 10, AreaSize: 64 << 10})
	must(t, err)
	stuck := &wire{File: a}
	la, err := lunlease.Acquire(t.Context(), stuck, lunlease.Me{Host: "a"}, oa)
	must(t, err)
	if _, _, err := lunpath.Open(t.Context(), target.URL(), lunpath.Options{}); !errors.Is(err, fault.Fenced) {
		t.Errorf("a LUN that is reserved is read without a registration: %v", err)
	}
	node, _, err := lunpath.Open(t.Context(), target.URL(), lunpath.Options{ReadWrite: true, Key: 0x1001})
	must(t, err)
	defer node.Close()

	cut := make(chan struct{})
	stuck.cut.Store(&cut)
	b, ob := reserving(t, target, true)
	lb, err := lunlease.Acquire(t.Context(), b, lunlease.Me{Host: "b"}, ob)
	must(t, err)
	mine := bytes.Repeat([]byte{2}, 4096)
	_, err = lb.File().WriteAt(mine, dataAt)
	must(t, err)
	if _, err := a.WriteAt(bytes.Repeat([]byte{1}, 4096), dataAt); !errors.Is(err, fault.Fenced) {
		t.Errorf("a late write of the dead owner: %v", err)
	}
	got := make([]byte, 4096)
	if _, err := node.ReadAt(got, dataAt); err != nil || !bytes.Equal(got, mine) {
		t.Errorf("the next owner's data is not whole (%v)", err)
	}
	_, err = node.WriteAt(got, dataAt+4096)
	must(t, err)
	close(cut)
	if err := la.Release(); !errors.Is(err, fault.Fenced) {
		t.Errorf("release of what was lost: %v", err)
	}

	must(t, lb.Release())
	again, oa := reserving(t, target, true)
	before := time.Now()
	la, err = lunlease.Acquire(t.Context(), again, lunlease.Me{Host: "a"}, oa)
	must(t, err)
	if d := time.Since(before); d > 5*time.Second {
		t.Errorf("a LUN that was released was taken after %v", d)
	}
	_, err = node.ReadAt(got, dataAt)
	must(t, err, la.Release())
}
