package lunlease_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/lunlease"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/store"
)

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// newLUN is a file with a store on it.
func newLUN(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "lun")
	must(t, os.WriteFile(path, nil, 0o600), os.Truncate(path, 4<<20))
	lun, err := fsx.OpenDevice(path, fsx.ReadWrite|fsx.Direct)
	must(t, err)
	_, err = store.Format(lun, store.FormatOptions{ExtentSize: 64 << 10, AreaSize: 64 << 10})
	must(t, err, lun.Close())
	return path
}

func open(t testing.TB, path string) fsx.File {
	t.Helper()
	f, err := fsx.OpenDevice(path, fsx.ReadWrite|fsx.Direct)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// quick is a lease for tests that meet the real time.
var quick = lunlease.Options{Expiry: 3 * time.Second}

func TestOneAfterTheOther(t *testing.T) {
	path := newLUN(t)
	lun := open(t, path)
	if _, err := lunlease.Peek(lun); !errors.Is(err, fault.NotFound) {
		t.Errorf("nobody has owned it: %v", err)
	}
	a, err := lunlease.Acquire(t.Context(), lun, lunlease.Me{Host: "a", Address: "a:1"}, quick)
	must(t, err)
	s, err := store.Open(a.File(), store.Options{})
	must(t, err)
	if o, err := lunlease.Peek(open(t, path)); err != nil || o.Host != "a" || o.Address != "a:1" || o.ID != a.ID() || o.Generation != 1 || o.Released {
		t.Errorf("%+v, %v", o, err)
	}
	type result struct {
		l   *lunlease.Lease
		err error
	}
	got := make(chan result)
	go func() {
		l, err := lunlease.Acquire(t.Context(), open(t, path), lunlease.Me{Host: "b"}, quick)
		got <- result{l, err}
	}()
	select {
	case r := <-got:
		t.Fatalf("a second owner: %+v, %v", r.l, r.err)
	case <-time.After(1500 * time.Millisecond):
	}
	must(t, s.Close(), a.Release())
	if _, err := a.File().WriteAt(make([]byte, 4096), 0); !errors.Is(err, fault.Fenced) {
		t.Errorf("a write after the release: %v", err)
	}
	r := <-got
	must(t, r.err)
	if r.l.Generation() != 2 || r.l.Check() != nil {
		t.Errorf("generation %d, %v", r.l.Generation(), r.l.Check())
	}
	must(t, r.l.Release())
}

func TestRefusals(t *testing.T) {
	path := newLUN(t)
	blank := filepath.Join(t.TempDir(), "blank")
	must(t, os.WriteFile(blank, make([]byte, 1<<20), 0o600))
	if _, err := lunlease.Acquire(t.Context(), open(t, blank), lunlease.Me{Host: "a"}, quick); !errors.Is(err, fault.NotFound) {
		t.Errorf("without a store: %v", err)
	}
	if _, err := lunlease.Acquire(t.Context(), open(t, path), lunlease.Me{}, quick); !errors.Is(err, fault.Invalid) {
		t.Errorf("without a name: %v", err)
	}
	if _, err := lunlease.Acquire(t.Context(), open(t, path), lunlease.Me{Host: "a"}, lunlease.Options{Expiry: time.Second, Period: time.Second}); !errors.Is(err, fault.Invalid) {
		t.Errorf("beats as rare as the expiry: %v", err)
	}
	l, err := lunlease.Acquire(t.Context(), open(t, path), lunlease.Me{Host: "a"}, quick)
	must(t, err)
	defer func() { must(t, l.Release()) }()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := lunlease.Acquire(ctx, open(t, path), lunlease.Me{Host: "b"}, quick); !errors.Is(err, fault.Timeout) {
		t.Errorf("while another has it: %v", err)
	}
}
