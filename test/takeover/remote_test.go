package takeover

import (
	"io"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/remote"
	"github.com/vmdk-csi/vmdk-csi/pkg/remote/remotetest"
	"github.com/vmdk-csi/vmdk-csi/pkg/worker"
)

// remoteHost is a supervisor of a disk that another host has open. What dies, and what else happens to the disk, is drawn.
type remoteHost struct {
	local
	lun   *remotetest.LUN
	order []string
	rnd   *rand.Rand
	spec  worker.RemoteSpec
	seen  map[string]bool // transports by which the disk was reached
}

func (h *remoteHost) start(t *testing.T, r *rig) {
	t.Helper()
	h.sup = worker.NewSupervisor(worker.Options{Command: []string{self(t), "disk"}, Env: os.Environ()})
	cert, key := h.lun.Sign("node")
	h.spec = worker.RemoteSpec{Datastore: "lun", Volume: r.name, Node: "node", Order: h.order, Peers: []string{h.lun.Serve()},
		Certificate: cert, Key: key, CA: h.lun.CA, ServerName: remotetest.ServerName, LUNs: []string{h.lun.Path}}
	var err error
	if h.handle, err = h.sup.Start(within(t, waitLong), worker.Spec{ID: r.name, Remote: &h.spec,
		Device: worker.Device{Fuse: r.session.Dev, Table: r.table}}); err != nil {
		t.Fatal(err)
	}
}

// kill kills the worker, or the server, whose successor is elsewhere, or has the map recalled.
func (h *remoteHost) kill(t *testing.T) {
	t.Helper()
	st := h.handle.State()
	h.seen[st.Transport] = true
	what := h.rnd.IntN(4)
	t.Logf("%d, by %s", what, st.Transport)
	switch what {
	case 0, 1:
		h.local.kill(t)
	case 2:
		next := h.spec
		next.Peers = []string{h.lun.Serve()}
		h.spec = next
		if err := h.handle.SetRemote(next); err != nil {
			t.Error(err)
		}
	case 3:
		begin := time.Now()
		if err := h.lun.Recall(within(t, waitLong)); err != nil {
			t.Error(err)
		}
		if took := time.Since(begin); took > time.Second {
			t.Errorf("a recall took %v", took)
		}
		h.lun.Allow()
	}
}

// TestRemoteUnderFio: workers and servers of a disk on a LUN die, and its map is recalled, while fio verifies on the block device.
func TestRemoteUnderFio(t *testing.T) {
	need(t)
	for _, order := range [][]string{{remote.SAN, remote.NBD}, {remote.NBD}} {
		t.Run(order[0], func(t *testing.T) {
			rnd := seeded(t)
			h := &remoteHost{lun: remotetest.New(t, diskSize, diskSize), order: order, rnd: rnd, seen: map[string]bool{}}
			r := attach(t, disk{path: t.TempDir(), size: diskSize}, h, false)
			killUnder(t, rnd, r, 3*kills(), fio(t, r.loop.Path(), diskSize, rnd.Uint64()>>1))
			sum := r.sum(t)
			if s := h.handle.State(); s.Trouble != nil {
				t.Errorf("the disk's user saw an error: %v", s.Trouble)
			}
			r.detach(t)
			if got := hash(t, io.NewSectionReader(h.lun, 0, diskSize)); got != sum {
				t.Errorf("the owner has %s, the device showed %s", got, sum)
			}
			if !h.seen[order[0]] {
				t.Errorf("reached by %v", h.seen)
			}
			t.Logf("%d requests taken over; reached by %v", h.resent, h.seen)
		})
	}
}
