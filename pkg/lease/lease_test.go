package lease_test

import (
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/lease"
)

var (
	a1 = lease.Identity{Host: "a", BootID: "1"}
	a2 = lease.Identity{Host: "a", BootID: "2"}
	b1 = lease.Identity{Host: "b", BootID: "1"}
)

func TestAcquire(t *testing.T) {
	held := lease.State{Epoch: 7, Seq: 3, Owner: a1}
	clean := held
	clean.Released = true
	for _, c := range []struct {
		name   string
		cur    lease.State
		me     lease.Identity
		before lease.Before
		kind   fault.Kind
	}{
		{"new disk", lease.State{}, a1, lease.Clean, ""},
		{"released, same host", clean, a1, lease.Clean, ""},
		{"released, other host", clean, b1, lease.Clean, ""},
		{"held, own crash", held, a1, lease.Crashed, ""},
		{"held, own reboot", held, a2, lease.Rebooted, ""},
		{"held by another", held, b1, "", fault.InUse},
		{"no host", clean, lease.Identity{BootID: "1"}, "", fault.Invalid},
		{"no boot id", clean, lease.Identity{Host: "a"}, "", fault.Invalid},
		{"newline in host", clean, lease.Identity{Host: "a\n", BootID: "1"}, "", fault.Invalid},
		{"long host", clean, lease.Identity{Host: strings.Repeat("a", 254), BootID: "1"}, "", fault.Invalid},
		{"last epoch", lease.State{Epoch: math.MaxInt64, Released: true}, a1, "", fault.Damaged},
	} {
		t.Run(c.name, func(t *testing.T) {
			next, before, err := lease.Acquire(c.cur, c.me)
			if fault.KindOf(err) != c.kind {
				t.Fatalf("error %v, want kind %q", err, c.kind)
			}
			if err != nil {
				return
			}
			want := lease.State{Epoch: c.cur.Epoch + 1, Seq: 1, Owner: c.me}
			if next != want || before != c.before {
				t.Fatalf("got %+v %s, want %+v %s", next, before, want, c.before)
			}
		})
	}
}

func TestInUseNamesTheHolder(t *testing.T) {
	_, _, err := lease.Acquire(lease.State{Epoch: 2, Seq: 1, Owner: a1}, b1)
	var f *fault.Fault
	if !errors.As(err, &f) || !strings.Contains(f.Message, `"a"`) || f.Remedy == "" {
		t.Fatalf("the fault must name the holder and the remedy: %v", err)
	}
}

func TestReleaseEndsTheEpoch(t *testing.T) {
	s, _, err := lease.Acquire(lease.State{}, a1)
	if err != nil {
		t.Fatal(err)
	}
	if err := lease.Holds(s, 1, a2); err != nil {
		t.Fatalf("the owner after its restart: %v", err)
	}
	if _, err := lease.Release(s, b1); !errors.Is(err, fault.Precondition) {
		t.Fatalf("release by another host: %v", err)
	}
	s, err = lease.Release(lease.Next(s), a1)
	if err != nil || s.Seq != 3 || !s.Released {
		t.Fatalf("release: %+v %v", s, err)
	}
	if _, err := lease.Release(s, a1); !errors.Is(err, fault.Precondition) {
		t.Fatalf("second release: %v", err)
	}
	if err := lease.Holds(s, 1, a1); !errors.Is(err, fault.Precondition) {
		t.Fatalf("a released epoch is held: %v", err)
	}
}
