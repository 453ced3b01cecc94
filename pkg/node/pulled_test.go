package node

import (
	"context"
	"errors"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/stage"
)

// A hypervisor removes a disk while it is mounted: hostd and the kernel's devices do not know it any more, and the mount is there.
func TestPulledOut(t *testing.T) {
	m := newMachine(t)
	ctx := context.Background()
	v := m.volume(stage.Mount, stage.PartitionNone)
	p := m.publication(v)
	s := m.service()
	if err := errors.Join(s.Stage(ctx, v), s.Publish(ctx, p)); err != nil {
		t.Fatal(err)
	}
	m.k.mu.Lock()
	delete(m.k.devices, v.ID)
	m.k.mu.Unlock()
	if err := m.hostd.Detach(ctx, v.ID); err != nil {
		t.Fatal(err)
	}
	if err := s.Stage(ctx, v); !errors.Is(err, fault.InUse) {
		t.Fatalf("staged while a workload has the mount that is dead: %v", err)
	}
	if err := errors.Join(s.Unpublish(ctx, v.ID, p.Target), s.Stage(ctx, v)); err != nil {
		t.Fatal(err)
	}
	d, found, err := m.k.Find(v.ID)
	if err != nil || !found {
		t.Fatal(found, err)
	}
	d.Close()
	if at, mounted, err := m.k.At(v.StagingPath); err != nil || !mounted || at.Source != d.Path {
		t.Fatalf("mounted: %v %v %v, want %s", at, mounted, err, d.Path)
	}
	if err := s.Unstage(ctx, v.ID, v.StagingPath); err != nil {
		t.Fatal(err)
	}
	m.clean("after a removal")
}
