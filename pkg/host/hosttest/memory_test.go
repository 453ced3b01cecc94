package hosttest_test

import (
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/hosttest"
)

func TestMemoryConforms(t *testing.T) {
	hosttest.Run(t, memory)
	t.Run("Snapshots", func(t *testing.T) { hosttest.RunSnapshots(t, memory) })
}

func memory(t *testing.T) hosttest.Subject {
	m := hosttest.NewMemory("node-a", "node-b")
	t.Cleanup(m.Close)
	return hosttest.Subject{Host: m, Node: "node-a", Datastore: "local", OtherDatastore: "shared", Session: hosttest.NoKernel}
}

func TestMemoryNodes(t *testing.T) {
	m := hosttest.NewMemory("node-a", "node-b")
	defer m.Close()
	b := m.On("node-b")
	ctx := t.Context()
	shared, err := m.Create(ctx, host.DiskSpec{Name: "s", Datastore: "shared", Size: 1 << 20})
	if err != nil || len(shared.Hosts) != 0 {
		t.Fatalf("%+v %v", shared, err)
	}
	local, err := m.Create(ctx, host.DiskSpec{Name: "l", Datastore: "local", Size: 1 << 20, Host: "node-b"})
	if err != nil || len(local.Hosts) != 1 || local.Hosts[0] != "node-b" {
		t.Fatalf("%+v %v", local, err)
	}
	if err := m.Claim(ctx, local.ID, host.Claim{Node: "node-a"}); fault.KindOf(err) != fault.Precondition {
		t.Fatalf("claim by a node that does not reach it: %v", err)
	}
	if err := m.Claim(ctx, shared.ID, host.Claim{Node: "node-a"}); err != nil {
		t.Fatal(err)
	}
	if err := m.Claim(ctx, shared.ID, host.Claim{Node: "node-b", ReadOnly: true}); fault.KindOf(err) != fault.InUse {
		t.Fatalf("claim of a disk that another node writes: %v", err)
	}
	dev := hosttest.NoKernel(t, shared.ID).Device()
	if _, err := m.Attach(ctx, host.AttachRequest{ID: shared.ID}, dev); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Attach(ctx, host.AttachRequest{ID: shared.ID}, dev); fault.KindOf(err) != fault.InUse {
		t.Fatalf("attach on a second node: %v", err)
	}
	if err := m.Unclaim(ctx, shared.ID, "node-a"); fault.KindOf(err) != fault.InUse {
		t.Fatalf("unclaim while attached: %v", err)
	}
	var taken []host.Held
	if err := m.Handover(ctx, func(h host.Held) error { taken = append(taken, h); return nil }); err != nil || len(taken) != 1 {
		t.Fatalf("handover: %d disks, %v", len(taken), err)
	}
	defer host.CloseAll(taken)
	if _, err := taken[0].Device.Fuse.Stat(); err != nil {
		t.Fatalf("a descriptor that was handed over: %v", err)
	}
}
