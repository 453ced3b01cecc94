package wire_test

import (
	"context"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/hosttest"
)

// evictor is a host that remembers what it took from whom.
type evictor struct {
	*hosttest.Memory
	took []string
}

func (e *evictor) Evict(_ context.Context, id, node string) error {
	e.took = append(e.took, id+" from "+node)
	return nil
}

// A host that can take disks from others is asked to; one that cannot says so.
func TestEvict(t *testing.T) {
	m := hosttest.NewMemory("node-a")
	t.Cleanup(m.Close)
	if err := client(t, serve(t, "", m)).Evict(t.Context(), "vd-1", "node-b"); fault.KindOf(err) != fault.Unsupported {
		t.Errorf("a host without LUNs: %v", err)
	}
	e := &evictor{Memory: m}
	s := serve(t, "", e)
	if err := client(t, s).Evict(t.Context(), "vd-1", "node-b"); err != nil {
		t.Fatal(err)
	}
	s.stop()
	if len(e.took) != 1 || e.took[0] != "vd-1 from node-b" {
		t.Errorf("%q", e.took)
	}
}
