package worker

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/sys"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/remote"
	"github.com/vmdk-csi/vmdk-csi/pkg/remote/remotetest"
)

const remoteSize = 1 << 20

// remoteRig is a disk's descriptors and its owner.
type remoteRig struct {
	*rig
	lun *remotetest.LUN
}

func newRemoteRig(t *testing.T) *remoteRig {
	t.Helper()
	r := &remoteRig{rig: newRig(t), lun: remotetest.New(t, remoteSize, 2*remoteSize)}
	cert, key := r.lun.Sign("n1")
	r.spec.Dir = nil
	r.spec.Remote = &RemoteSpec{Datastore: "lun", Volume: "d1", Node: "n1", Order: []string{remote.SAN, remote.NBD}, Peers: []string{r.lun.Serve()},
		Certificate: cert, Key: key, CA: r.lun.CA, ServerName: remotetest.ServerName, LUNs: []string{r.lun.Path}}
	return r
}

func becomes(t *testing.T, h *Handle, transport string) {
	t.Helper()
	eventually(t, "the disk is reached by "+transport, func() bool { return h.State().Transport == transport })
}

// A worker serves a disk of another host: from the LUN, by NBD when the map is recalled, from the LUN again with its successor, and from
// another server when it is told of one, behind its walls.
func TestRemote(t *testing.T) {
	r := newRemoteRig(t)
	h := start(t, supervisor(t, ""), r.rig)
	becomes(t, h, remote.SAN)
	if w := h.State().Walls; !w.Seccomp || sys.LandlockABI() > 0 && w.Landlock == 0 && !strings.Contains(fmt.Sprint(w.Missing), "cgo") {
		t.Errorf("walls: %+v", w)
	}
	if b := r.ask(t); b != 'y' {
		t.Errorf("by SAN: %c", b)
	}
	kill(t, h) // its map is out: the successor gets another one all the same
	becomes(t, h, remote.SAN)
	if n := len(r.lun.Maps.Outstanding()); n != 1 {
		t.Errorf("%d maps are out", n)
	}
	if err := r.lun.Recall(within(t, long)); err != nil {
		t.Fatal(err)
	}
	becomes(t, h, remote.NBD)
	if s := h.State().Skipped; len(s) != 1 || s[0].Transport != remote.SAN || s[0].Reason == nil {
		t.Errorf("%+v", s)
	}
	if b := r.ask(t); b != 'y' {
		t.Errorf("by NBD: %c", b)
	}
	cert, key := r.lun.Sign("n1")
	next := *r.spec.Remote
	next.Peers, next.Certificate, next.Key = []string{r.lun.Serve()}, cert, key
	if err := h.SetRemote(next); err != nil {
		t.Fatal(err)
	}
	if b := r.ask(t); b != 'y' {
		t.Errorf("by NBD, from another server: %c", b)
	}
	r.lun.Grow(2 * remoteSize)
	if n, err := h.Grow(within(t, long), 2*remoteSize); err != nil || n != 2*remoteSize {
		t.Errorf("Grow: %d, %v", n, err)
	}
	if err := h.call(within(t, long), opSnapshot, snapshotBody{Child: "x"}, nil); fault.KindOf(err) != fault.Unsupported {
		t.Errorf("a snapshot in the worker: %v", err)
	}
	kill(t, h) // the successor knows the new peer
	r.lun.Allow()
	becomes(t, h, remote.SAN)
	if err := h.Stop(within(t, long)); err != nil {
		t.Error(err)
	}
	if out := r.lun.Maps.Outstanding(); len(out) > 0 {
		t.Errorf("maps are out: %+v", out)
	}
	if r.lun.Closed() > 0 {
		t.Error("a worker released the disk")
	}
}

// The LUN is not there, then it is: the worker's walls let it be opened.
func TestRemoteLUNComesLater(t *testing.T) {
	r := newRemoteRig(t)
	hidden := r.lun.Path + ".hidden"
	if err := os.Rename(r.lun.Path, hidden); err != nil {
		t.Fatal(err)
	}
	h := start(t, supervisor(t, ""), r.rig)
	becomes(t, h, remote.NBD)
	if s := h.State().Skipped; len(s) != 1 || s[0].Reason == nil || s[0].Reason.Kind != fault.NotFound || s[0].Reason.Remedy == "" {
		t.Errorf("%+v", s)
	}
	if err := os.Rename(hidden, r.lun.Path); err != nil {
		t.Fatal(err)
	}
	becomes(t, h, remote.SAN)
	if err := h.Stop(within(t, long)); err != nil {
		t.Error(err)
	}
}

// What is wrong with a remote disk is told by Start, with its kind.
func TestRemoteRefused(t *testing.T) {
	r := newRemoteRig(t)
	s := supervisor(t, "")
	good := *r.spec.Remote
	for what, c := range map[string]struct {
		change func(*RemoteSpec)
		want   fault.Kind
	}{
		"no certificate":         {func(x *RemoteSpec) { x.Certificate = nil }, fault.Invalid},
		"another node's":         {func(x *RemoteSpec) { x.Node = "n2" }, fault.Denied},
		"no authority":           {func(x *RemoteSpec) { x.CA = nil }, fault.Invalid},
		"san alone, and no path": {func(x *RemoteSpec) { x.Order, x.LUNs = []string{remote.SAN}, nil }, fault.Unsupported},
	} {
		bad := good
		c.change(&bad)
		r.spec.Remote = &bad
		if h, err := s.Start(within(t, long), r.spec); fault.KindOf(err) != c.want {
			t.Errorf("%s: %v, %v", what, h, err)
		}
	}
}
