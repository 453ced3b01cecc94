package iscsi_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/block"
	"github.com/vmdk-csi/vmdk-csi/pkg/block/blocktest"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/iscsi"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/iscsi/iscsitest"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/reserve"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/scsi"
)

type tgt struct {
	*iscsitest.Target
	t *testing.T
}

func newTgt(t *testing.T, size int64) *tgt { return &tgt{iscsitest.New(t, size), t} }

func (g *tgt) open(c iscsi.Config) (*iscsi.Session, *scsi.Unit) {
	g.t.Helper()
	s, err := iscsi.Open(g.t.Context(), c)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() {
		if err := s.Close(); err != nil {
			g.t.Error(err)
		}
	})
	u, err := scsi.Open(g.t.Context(), s)
	if err != nil {
		g.t.Fatal(err)
	}
	return s, u
}

func TestConformance(t *testing.T) {
	for _, digests := range []bool{false, true} {
		t.Run(fmt.Sprintf("digests=%t", digests), func(t *testing.T) {
			blocktest.Run(t, blocktest.Subject{New: func(t *testing.T) block.Device {
				g := newTgt(t, blocktest.Size)
				c := g.Config()
				c.Digests = digests
				_, u := g.open(c)
				return u
			}})
		})
	}
}

func TestIdentity(t *testing.T) {
	g := newTgt(t, 8<<20)
	_, u := g.open(g.Config())
	id := u.Identity()
	if id.Bytes() != 8<<20 || id.BlockSize != 512 || id.Vendor != "IET" || id.Designator == "" {
		t.Errorf("%+v", id)
	}
	_, again := g.open(g.Config())
	if again.Identity() != id {
		t.Errorf("by another session it is %+v, was %+v", again.Identity(), id)
	}
}

func TestLogin(t *testing.T) {
	g := newTgt(t, 1<<20)
	g.Stop()
	g.Users = true
	g.Start()
	right := g.Config()
	right.User, right.Secret, right.TargetUser, right.TargetSecret = "node", "a secret of a node", "array", "a secret of the array"
	_, u := g.open(right)
	if u.Size() != 1<<20 {
		t.Error("mutual CHAP: another unit")
	}
	for name, try := range map[string]struct {
		change func(*iscsi.Config)
		want   fault.Kind
	}{
		"no authentication":       {func(c *iscsi.Config) { c.User, c.TargetSecret = "", "" }, fault.Denied},
		"wrong secret":            {func(c *iscsi.Config) { c.Secret = "another secret!" }, fault.Denied},
		"wrong target's secret":   {func(c *iscsi.Config) { c.TargetSecret = "not what it has" }, fault.Denied},
		"another target":          {func(c *iscsi.Config) { c.Target = "iqn.2026-01.example:none" }, fault.NotFound},
		"short secret":            {func(c *iscsi.Config) { c.Secret = "short" }, fault.Invalid},
		"nobody at the portal":    {func(c *iscsi.Config) { c.Portal = "127.0.0.1:1" }, fault.Unavailable},
		"no initiator name":       {func(c *iscsi.Config) { c.Initiator = "" }, fault.Invalid},
		"a LUN that cannot exist": {func(c *iscsi.Config) { c.LUN = 20000 }, fault.Invalid},
	} {
		c := right
		try.change(&c)
		s, err := iscsi.Open(t.Context(), c)
		if err == nil {
			s.Close()
		}
		if fault.KindOf(err) != try.want {
			t.Errorf("%s: %v, want %s", name, err, try.want)
		}
	}
	c := right
	c.LUN = 5
	s, err := iscsi.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := scsi.Open(t.Context(), s); fault.KindOf(err) != fault.NotFound {
		t.Errorf("no such LUN: %v", err)
	}
}

// TestTargetDies: the target is killed under load, and comes back: for the callers a pause, and everything they wrote is there.
func TestTargetDies(t *testing.T) {
	g := newTgt(t, 16<<20)
	_, u := g.open(g.Config())
	var wrote sync.WaitGroup
	stop := make(chan struct{})
	const writers = 4
	last := make([][]byte, writers)
	var requests atomic.Int64
	for w := range writers {
		wrote.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(w)))
			mine := make([]byte, 4<<20)
			last[w] = mine
			for n := byte(1); ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				off := r.Int64N(4<<20-64<<10) / 512 * 512
				p := bytes.Repeat([]byte{n}, 512*(1+r.IntN(100)))
				if _, err := u.WriteAt(p, int64(w)<<22+off); err != nil {
					t.Errorf("write: %v", err)
					return
				}
				copy(mine[off:], p)
				requests.Add(1)
			}
		})
	}
	wait := func(more int64) {
		for end, deadline := requests.Load()+more, time.Now().Add(time.Minute); requests.Load() < end && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
	}
	for range 3 {
		wait(50)
		g.Stop()
		g.Start()
	}
	wait(50)
	close(stop)
	wrote.Wait()
	if err := u.Flush(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(g.Image)
	if err != nil {
		t.Fatal(err)
	}
	for w := range writers {
		if !bytes.Equal(got[w<<22:(w+1)<<22], last[w]) {
			t.Errorf("writer %d: other content", w)
		}
	}
	t.Logf("%d writes", requests.Load())
}

func TestRecoverEnds(t *testing.T) {
	g := newTgt(t, 1<<20)
	c := g.Config()
	c.Recover = 50 * time.Millisecond
	_, u := g.open(c)
	g.Stop()
	if _, err := u.ReadAt(make([]byte, 512), 0); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("%v", err)
	}
	g.Start()
	for deadline := time.Now().Add(20 * time.Second); ; {
		_, err := u.ReadAt(make([]byte, 512), 0)
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the target is back: %v", err)
		}
	}
}

func TestCanceled(t *testing.T) {
	g := newTgt(t, 1<<20)
	s, u := g.open(g.Config())
	g.Signal(syscall.SIGSTOP)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := s.Do(ctx, scsi.Command{CDB: make([]byte, 6), Repeatable: true}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	g.Signal(syscall.SIGCONT)
	if _, err := u.ReadAt(make([]byte, 512), 0); err != nil {
		t.Error(err)
	}
}

func TestReservations(t *testing.T) {
	g := newTgt(t, 4<<20)
	_, server := g.open(g.Config())
	_, one := g.open(g.Config())
	_, two := g.open(g.Config())
	ctx := t.Context()
	const keyServer, keyOne, keyTwo = 0x5eefed, 0x1001, 0x1002
	if err := reserve.Own(ctx, server, keyServer); err != nil {
		t.Fatal(err)
	}
	if err := reserve.Own(ctx, server, keyServer); err != nil {
		t.Errorf("again: %v", err)
	}
	if err := reserve.Own(ctx, two, keyTwo); fault.KindOf(err) != fault.InUse {
		t.Errorf("a second owner: %v", err)
	}
	if err := two.Register(ctx, 0, false); err != nil {
		t.Error(err)
	}
	buf := make([]byte, 4096)
	for what, err := range map[string]error{"read": second(one.ReadAt(buf, 0)), "write": second(one.WriteAt(buf, 0))} {
		if fault.KindOf(err) != fault.Fenced {
			t.Errorf("%s without a registration: %v", what, err)
		}
	}
	for u, key := range map[*scsi.Unit]reserve.Key{one: keyOne, two: keyTwo} {
		if err := u.Register(ctx, key, true); err != nil {
			t.Fatal(err)
		}
		if _, err := u.WriteAt(buf, 0); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := reserve.Fence(ctx, server, keyServer, keyOne); err != nil {
		t.Fatal(err)
	}
	if _, err := one.WriteAt(buf, 0); fault.KindOf(err) != fault.Fenced {
		t.Errorf("write of a fenced node: %v", err)
	}
	if _, err := two.WriteAt(buf, 0); err != nil {
		t.Errorf("write of the other node: %v", err)
	}
	if _, err := reserve.Fence(ctx, server, keyServer, keyServer); fault.KindOf(err) != fault.Invalid {
		t.Errorf("the server fences itself: %v", err)
	}
	s, err := server.State(ctx)
	if err != nil || !s.Held || s.Holder != keyServer || !s.RegistrantsOnly || s.Registered(keyOne) || !s.Registered(keyTwo) {
		t.Errorf("%+v %v", s, err)
	}
	// A new server takes over from a dead one whose key it knows.
	if err := two.Register(ctx, 0x77, true); err != nil {
		t.Fatal(err)
	}
	if err := reserve.Own(ctx, two, 0x77, keyServer); err != nil {
		t.Error(err)
	}
	if err := two.Clear(ctx, 0x77); err != nil {
		t.Error(err)
	}
	if _, err := one.ReadAt(buf, 0); err != nil {
		t.Errorf("after clear: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }
