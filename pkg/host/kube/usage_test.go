package kube_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/kube"
)

// written is a hostd whose disks take more space each time they are looked at, as those of pods that write do.
type written struct {
	kube.Hostd
	looks atomic.Int64
}

func (w *written) Get(ctx context.Context, id string) (host.Disk, error) {
	d, err := w.Hostd.Get(ctx, id)
	n := w.looks.Add(1)
	for i := range d.Links {
		d.Links[i].Allocated = n << 20
	}
	return d, err
}

// A disk that is being written does not have its status written all the time: each write is an event, and an event has
// the disk looked at again.
func TestUseOfSpaceIsToldOnceAResync(t *testing.T) {
	c := newCluster(t, "node-a")
	w := &written{Hostd: c.memory.On("node-a")}
	c.stops["node-a"]()
	c.startAgent("node-a", w) // its resync is a second
	d := c.create(spec("busy", "local", "node-a"))
	before, looked := c.object(d.ID).Generation, w.looks.Load()
	seen := map[int64]bool{}
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		seen[c.object(d.ID).Status.UsedBytes] = true
	}
	if len(seen) < 2 || len(seen) > 6 {
		t.Errorf("in 3 s the use of space was told %d times, want about once a second", len(seen))
	}
	if n := w.looks.Load() - looked; n > 20 {
		t.Errorf("in 3 s the disk was looked at %d times", n)
	}
	if c.object(d.ID).Generation != before {
		t.Error("the specification changed")
	}
}
