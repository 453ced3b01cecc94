package remote_test

import (
	"context"
	"fmt"
	mrand "math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/remote"
	"github.com/vmdk-csi/vmdk-csi/pkg/san"
)

// walk is a disk and what happens to it.
type walk struct {
	*rig
	id    string
	bad   atomic.Int32
	snaps []string
	made  int
	told  *states
}

// again repeats what a server that has just begun, or a map that comes back late, refuses for a while.
func (w *walk) again(do func() error) {
	w.t.Helper()
	var err error
	for limit := time.Now().Add(20 * time.Second); time.Now().Before(limit); {
		if err = do(); err == nil || fault.KindOf(err) != fault.InProgress {
			break
		}
	}
	must(w.t, err)
}

// deed does one thing.
func (w *walk) deed(n int) {
	w.t.Helper()
	switch api := w.api("mds"); {
	case n < 3 && len(w.snaps) < 3:
		w.made++
		w.again(func() error {
			s, err := api.CreateSnapshot(ctx, host.SnapshotSpec{Name: fmt.Sprint("s", w.made), Disk: w.id})
			if err == nil {
				w.snaps = append(w.snaps, s.ID)
			}
			return err
		})
	case n < 6:
		for _, s := range w.snaps {
			w.again(func() error { return api.DeleteSnapshot(ctx, s) })
		}
		w.snaps = nil
		w.again(func() error { return w.mds.consolidate(ctx, w.id) })
	case n == 6:
		w.kill()
		w.start()
	case n == 7:
		must(w.t, w.mds.lose(w.id))
	case n == 8:
		w.bad.Store(7)
	default:
		w.bad.Store(0)
	}
}

// TestWalk: snapshots and consolidations, servers that die and lose the disk, and a LUN that fails and recovers, in any order and without
// waiting for what they cause, under a verifying load.
func TestWalk(t *testing.T) {
	w := &walk{rig: newRigWith(t, san.Config{Lease: 2 * time.Second, MaxIO: 200 * time.Millisecond, Margin: 50 * time.Millisecond})}
	w.id = w.create("v", host.EagerZeroedThick)
	c, told := w.config(w.id, "node1")
	w.told = told
	open := c.OpenLUN
	c.OpenLUN = func(ctx context.Context, l san.LUN) (fsx.File, error) {
		f, err := open(ctx, l)
		return badLUN{f, &w.bad}, err
	}
	d := w.rig.open(c)
	l := startLoad(t, d)
	rng := mrand.New(mrand.NewPCG(seed(t), 100))
	steps := 40
	if testing.Short() {
		steps = 15
	}
	for range steps {
		l.more(rng.Int64N(60))
		n := rng.IntN(11)
		w.deed(n)
		t.Logf("%d, by %s", n, d.State().Transport)
	}
	w.bad.Store(0)
	w.deed(5)
	w.becomes(d, remote.SAN)
	l.more(100)
	l.finish(d)
	must(t, d.Close(), w.api("node1").CloseVolume(ctx, w.id))
	w.stored(w.id, l.want)
	changes := 0
	for i, s := range told.list() {
		if i > 0 && s.Transport != told.list()[i-1].Transport {
			changes++
		}
	}
	if changes < 2 {
		t.Errorf("the way changed %d times", changes)
	}
	t.Logf("the way changed %d times, %d requests", changes, l.ops.Load())
}
