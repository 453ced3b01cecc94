package hotaddtest

import (
	"errors"
	"maps"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Sides is one disk and a machine that can get it, reached from both sides.
type Sides interface {
	// Attach attaches the disk.
	Attach(readOnly bool) error
	Detach() error
	// Write fills the disk's beginning with a byte, as the machine's user does. Kind: Unsupported (there is no data: a simulator).
	Write(fill byte) error
	// Holds says whether the disk's beginning, as the machine's user reads it, is full of the byte.
	Holds(fill byte) (bool, error)
	// Files are digests of the disk's files.
	Files() (map[string]string, error)
}

// ReadOnly checks what a read-only attachment promises: its user writes (a journal is replayed), reads what he wrote, and it is thrown away
// with the attachment; the disk's files are not touched.
func ReadOnly(t *testing.T, s Sides) {
	t.Helper()
	r := &sides{t, s}
	r.attach(false)
	r.write('a')
	r.detach()
	before := r.files()

	r.attach(true)
	r.holds('a')
	r.write('b')
	r.holds('b')
	r.attach(true) // again
	r.holds('b')
	if err := s.Attach(false); !errors.Is(err, fault.Precondition) {
		t.Errorf("attached for writing while it is attached read-only: %v, want Precondition", err)
	}
	r.same(before)
	r.detach()
	r.same(before)

	r.attach(true)
	r.holds('a')
	r.detach()
	r.attach(false)
	r.holds('a')
	if err := s.Attach(true); !errors.Is(err, fault.Precondition) {
		t.Errorf("attached read-only while it is attached for writing: %v, want Precondition", err)
	}
	if r.write('c') {
		r.holds('c')
		r.detach()
		if maps.Equal(r.files(), before) {
			t.Error("the disk's files do not show a write: nothing was tested")
		}
		return
	}
	r.detach()
}

type sides struct {
	t *testing.T
	s Sides
}

func (r *sides) attach(readOnly bool) {
	r.t.Helper()
	if err := r.s.Attach(readOnly); err != nil {
		r.t.Fatalf("attach (read-only: %t): %v", readOnly, err)
	}
}

func (r *sides) detach() {
	r.t.Helper()
	if err := r.s.Detach(); err != nil {
		r.t.Fatalf("detach: %v", err)
	}
}

// write says whether there is data to write to.
func (r *sides) write(fill byte) bool {
	r.t.Helper()
	err := r.s.Write(fill)
	if err != nil && !errors.Is(err, fault.Unsupported) {
		r.t.Fatalf("write %q: %v", fill, err)
	}
	return err == nil
}

func (r *sides) holds(fill byte) {
	r.t.Helper()
	ok, err := r.s.Holds(fill)
	if err != nil && !errors.Is(err, fault.Unsupported) {
		r.t.Fatalf("read: %v", err)
	}
	if err == nil && !ok {
		r.t.Fatalf("the disk does not hold %q", fill)
	}
}

func (r *sides) files() map[string]string {
	r.t.Helper()
	f, err := r.s.Files()
	if err != nil || len(f) == 0 {
		r.t.Fatalf("files: %v %v", f, err)
	}
	return f
}

func (r *sides) same(before map[string]string) {
	r.t.Helper()
	if now := r.files(); !maps.Equal(now, before) {
		r.t.Fatalf("the files of a read-only disk were changed: %v, were %v", now, before)
	}
}
