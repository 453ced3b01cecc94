package fault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"testing"
)

func TestKindSurvivesWrapsAndTheWire(t *testing.T) {
	cause := &fs.PathError{Op: "write", Path: "disk-flat.vmdk", Err: syscall.ENOSPC}
	err := error(New(NoSpace, "Free some space.", "datastore %q is full: %w", "local", cause))
	err = fmt.Errorf("create: %w", Wrap(err, "disk vd-1"))
	if !errors.Is(err, NoSpace) || !errors.Is(err, syscall.ENOSPC) || errors.Is(err, NotFound) {
		t.Fatalf("kinds of %v", err)
	}
	b, jerr := json.Marshal(From(err))
	if jerr != nil {
		t.Fatal(jerr)
	}
	var got Fault
	if jerr := json.Unmarshal(b, &got); jerr != nil {
		t.Fatal(jerr)
	}
	if !errors.Is(&got, NoSpace) || got.Remedy != "Free some space." {
		t.Errorf("over the wire: %s gives %+v", b, got)
	}
	if KindOf(&got) != NoSpace {
		t.Errorf("KindOf = %s", KindOf(&got))
	}
}

func TestKindOf(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want Kind
	}{
		{nil, ""},
		{errors.New("x"), Internal},
		{fmt.Errorf("x: %w", fs.ErrNotExist), NotFound},
		{os.ErrExist, Exists},
		{syscall.EDQUOT, NoSpace},
		{syscall.EROFS, ReadOnly},
		{syscall.EBUSY, InUse},
		{syscall.EACCES, Denied},
		{context.DeadlineExceeded, Timeout},
		{context.Canceled, Timeout},
		{syscall.ECONNREFUSED, Unavailable},
		{syscall.EOPNOTSUPP, Unsupported},
		{fmt.Errorf("x: %w", Damaged), Damaged},
		{Wrap(syscall.ENOSPC, "write"), NoSpace},
	} {
		if got := KindOf(tc.err); got != tc.want {
			t.Errorf("KindOf(%v) = %q, want %q", tc.err, got, tc.want)
		}
	}
}

func TestTextAndRemedy(t *testing.T) {
	in := New(InUse, "Unmount it first.", "disk %s is attached", "vd-1")
	err := Wrap(in, "delete")
	if got, want := err.Error(), "delete: disk vd-1 is attached (Unmount it first.)"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if Wrap(nil, "x") != nil || From(nil) != nil {
		t.Error("nil must stay nil")
	}
	if got := From(errors.New("plain")); got.Kind != Internal || got.Message != "plain" {
		t.Errorf("From(plain) = %+v", got)
	}
}
