package kube_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vmdk-csi/vmdk-csi/pkg/api/v1alpha1"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/hosttest"
)

// attach opens a disk on a node as the node service does: at hostd, then a notice to the agent.
func (c *cluster) attach(node, id string, readOnly bool) host.Attachment {
	c.t.Helper()
	f, err := os.Open(os.DevNull)
	if err != nil {
		c.t.Fatal(err)
	}
	defer f.Close()
	a, err := c.memory.On(node).Attach(c.t.Context(), host.AttachRequest{ID: id, ReadOnly: readOnly}, host.Device{Fuse: f, Table: f})
	if err != nil {
		c.t.Fatal(err)
	}
	c.agents[node].Attached(c.t.Context(), a)
	return a
}

func (c *cluster) detach(node, id string) {
	c.t.Helper()
	if err := c.memory.On(node).Detach(c.t.Context(), id); err != nil {
		c.t.Fatal(err)
	}
	c.agents[node].Detached(c.t.Context(), id)
}

func (c *cluster) attachedOn(id string, nodes ...string) {
	c.t.Helper()
	c.eventually(fmt.Sprint("disk is attached on ", nodes), func() error {
		var have []string
		vd := c.object(id)
		for _, a := range vd.Status.Attachments {
			have = append(have, a.Host)
		}
		slices.Sort(have)
		if !slices.Equal(have, nodes) {
			return fmt.Errorf("attachments: %v", have)
		}
		if got := meta.IsStatusConditionTrue(vd.Status.Conditions, v1alpha1.ConditionAttached); got != (len(nodes) > 0) {
			return fmt.Errorf("condition Attached: %v", got)
		}
		if cond := meta.FindStatusCondition(vd.Status.Conditions, v1alpha1.ConditionAttached); cond != nil {
			for _, n := range []string{"node-a", "node-b"} {
				if strings.Contains(cond.Message, n) != slices.Contains(nodes, n) {
					return fmt.Errorf("condition Attached: %s", cond.Message)
				}
			}
		}
		return nil
	})
}

// A claim on a shared datastore moves: the second node waits for the clean release.
func TestClaimMoves(t *testing.T) {
	c := newCluster(t, "node-a", "node-b")
	d := c.create(spec("moves", "shared", "node-a"))
	ctx := t.Context()
	a, b := host.Claim{Node: "node-a"}, host.Claim{Node: "node-b"}
	for range 2 {
		if err := c.client.Claim(ctx, d.ID, a); err != nil {
			t.Fatal(err)
		}
	}
	wantKind(t, c.client.Claim(ctx, d.ID, host.Claim{Node: "node-a", ReadOnly: true}), fault.Exists)
	wantKind(t, c.client.Claim(ctx, d.ID, host.Claim{Node: "node-z"}), fault.NotFound)
	err := c.client.Claim(ctx, d.ID, b)
	wantKind(t, err, fault.InUse)
	if !strings.Contains(err.Error(), "node-a") {
		t.Errorf("the message does not name the node: %v", err)
	}
	c.attach("node-a", d.ID, false)
	c.attachedOn(d.ID, "node-a")
	wantKind(t, c.client.Unclaim(ctx, d.ID, "node-a"), fault.InUse)
	wantKind(t, c.client.Unclaim(ctx, d.ID, ""), fault.InUse)
	c.detach("node-a", d.ID)
	if err := c.client.Unclaim(ctx, d.ID, "node-a"); err != nil {
		t.Fatal(err)
	}
	if err := c.client.Unclaim(ctx, d.ID, "node-a"); err != nil {
		t.Fatal(err)
	}
	if err := c.client.Claim(ctx, d.ID, b); err != nil {
		t.Fatal(err)
	}
	if vd := c.object(d.ID); vd.Spec.Host != "node-b" {
		t.Fatalf("the host that may attach does not do the work: %s", vd.Spec.Host)
	}
	c.attach("node-b", d.ID, false)
	c.attachedOn(d.ID, "node-b")
	// An expansion goes to the host that has it open.
	grown, err := c.client.Expand(ctx, d.ID, 128<<20)
	if err != nil || grown.Size != 128<<20 || len(grown.Attachments) != 1 || grown.Attachments[0].Slot.Controller != 0 {
		t.Fatalf("%+v %v", grown, err)
	}
	c.detach("node-b", d.ID)
	c.attachedOn(d.ID)
}

func TestClaimsForReading(t *testing.T) {
	c := newCluster(t, "node-a", "node-b")
	// Whoever leaves first: what the others say about the disk stays.
	for i, order := range [][]string{{"node-a", "node-b"}, {"node-b", "node-a"}} {
		d := c.create(spec(fmt.Sprint("read-", i), "shared", ""))
		for _, n := range []string{"node-a", "node-b"} {
			if err := c.client.Claim(t.Context(), d.ID, host.Claim{Node: n, ReadOnly: true}); err != nil {
				t.Fatal(err)
			}
			c.attach(n, d.ID, true)
		}
		c.attachedOn(d.ID, "node-a", "node-b")
		c.detach(order[0], d.ID)
		c.attachedOn(d.ID, order[1])
		if err := c.client.Unclaim(t.Context(), d.ID, order[0]); err != nil {
			t.Fatal(err)
		}
		wantKind(t, c.client.Claim(t.Context(), d.ID, host.Claim{Node: order[0]}), fault.InUse)
		c.detach(order[1], d.ID)
		c.attachedOn(d.ID)
	}
}

func TestClaimOfAnotherNodesDatastore(t *testing.T) {
	c := newCluster(t, "node-a", "node-b")
	d := c.create(spec("rooted", "local", "node-a"))
	wantKind(t, c.client.Claim(t.Context(), d.ID, host.Claim{Node: "node-b"}), fault.Precondition)
	wantKind(t, c.client.Claim(t.Context(), host.DiskID("nobody"), host.Claim{Node: "node-b"}), fault.NotFound)
}

func TestSlotsRunOut(t *testing.T) {
	c := newCluster(t, "node-a")
	for i := range 60 {
		vd := &v1alpha1.VirtualDisk{}
		vd.Name = host.DiskID(fmt.Sprint("slot", i))
		vd.Spec = v1alpha1.VirtualDiskSpec{
			Name: fmt.Sprint("slot", i), Datastore: "local", SizeBytes: 1 << 20, InitialSizeBytes: 1 << 20, DiskFormat: "thin",
			DiskType: "monolithicFlat", Claims: []v1alpha1.DiskClaim{{Node: "node-a"}},
		}
		if err := c.admin.Create(t.Context(), vd); err != nil {
			t.Fatal(err)
		}
	}
	d := c.create(spec("one too many", "local", "node-a"))
	wantKind(t, c.client.Claim(t.Context(), d.ID, host.Claim{Node: "node-a"}), fault.Exhausted)
}

// Files that vanish or change are damage, shown on the object; the disk is never made again.
func TestDamage(t *testing.T) {
	c := newCluster(t, "node-a")
	ctx := t.Context()
	d := c.create(spec("damaged", "local", "node-a"))
	c.memory.FailNext(failing("get", fault.New(fault.Damaged, "Run vmdkctl check.", "manifest-1-1.json has a wrong checksum")))
	c.eventually("the damage is told", func() error {
		_, err := c.client.Get(ctx, d.ID)
		if fault.KindOf(err) != fault.Damaged || !strings.Contains(err.Error(), "checksum") {
			return fmt.Errorf("get: %w", err)
		}
		return nil
	})
	wantKind(t, c.client.Claim(ctx, d.ID, host.Claim{Node: "node-a"}), fault.Damaged)
	_, err := c.client.Create(ctx, spec("damaged", "local", "node-a"))
	wantKind(t, err, fault.Damaged)
	c.eventually("the disk has an event", func() error {
		var events corev1.EventList
		if err := c.admin.List(ctx, &events, client.InNamespace("default")); err != nil {
			return err
		}
		for _, e := range events.Items {
			if e.InvolvedObject.Name == d.ID && e.Reason == "Damaged" && e.Type == corev1.EventTypeWarning {
				return nil
			}
		}
		return errors.New("none")
	})
	c.memory.FailNext(nil)
	c.eventually("the repair is seen", func() error {
		_, err := c.client.Get(ctx, d.ID)
		return err
	})
	if err := c.memory.Delete(ctx, d.ID); err != nil {
		t.Fatal(err)
	}
	c.eventually("the loss is told", func() error {
		if _, err := c.client.Get(ctx, d.ID); fault.KindOf(err) != fault.Damaged || !strings.Contains(err.Error(), "missing") {
			return fmt.Errorf("get: %w", err)
		}
		return nil
	})
	if _, err := c.memory.Get(ctx, d.ID); fault.KindOf(err) != fault.NotFound {
		t.Fatalf("an empty disk was made in its place: %v", err)
	}
	if err := c.client.Delete(ctx, d.ID); err != nil {
		t.Fatal(err)
	}
}

func TestDatastoreGoesAway(t *testing.T) {
	c := newCluster(t, "node-a")
	ctx := t.Context()
	d := c.create(spec("stranded", "local", "node-a"))
	down := host.Datastore{Name: "local", Scope: host.ScopeNode, Hosts: []host.DatastoreHost{{
		Host: "node-a", Reason: "the directory is not mounted. Mount it.", Total: 1 << 40, Free: 1 << 30}}}
	c.memory.SetDatastore(down)
	c.eventually("the datastore says so", func() error {
		stores, err := c.client.Datastores(ctx)
		if err != nil {
			return err
		}
		for _, s := range stores {
			if s.Name == "local" && len(s.Hosts) == 1 && !s.Hosts[0].Ready && strings.Contains(s.Hosts[0].Reason, "not mounted") {
				return nil
			}
		}
		return fmt.Errorf("%+v", stores)
	})
	c.eventually("the disk says so", func() error {
		if !meta.IsStatusConditionFalse(c.object(d.ID).Status.Conditions, v1alpha1.ConditionDatastoreReady) {
			return fmt.Errorf("%+v", c.object(d.ID).Status.Conditions)
		}
		return nil
	})
	_, err := c.client.Create(ctx, spec("nowhere to go", "local", "node-a"))
	wantKind(t, err, fault.Unavailable)
	up := down
	up.Hosts = []host.DatastoreHost{{Host: "node-a", Ready: true, Total: 1 << 40, Free: 1 << 40}}
	c.memory.SetDatastore(up)
	c.eventually("it is well again", func() error {
		if !meta.IsStatusConditionTrue(c.object(d.ID).Status.Conditions, v1alpha1.ConditionDatastoreReady) {
			return errors.New("not yet")
		}
		return nil
	})
}

// An agent that died before it wrote: its successor compares the objects with hostd.
func TestAgentRestart(t *testing.T) {
	c := newCluster(t, "node-a")
	gone, open := c.create(spec("gone", "local", "node-a")), c.create(spec("open", "local", "node-a"))
	c.attach("node-a", gone.ID, false)
	c.attachedOn(gone.ID, "node-a")
	c.stops["node-a"]()
	// While no agent runs, one disk is detached and another one attached.
	if err := c.memory.Detach(t.Context(), gone.ID); err != nil {
		t.Fatal(err)
	}
	c.attach("node-a", open.ID, false)
	c.startAgent("node-a", c.memory)
	c.attachedOn(gone.ID)
	c.attachedOn(open.ID, "node-a")
}

// Notices outlive an API server that is away; the last one about a disk is what stays.
func TestAPIServerAway(t *testing.T) {
	c := newCluster(t, "node-a")
	stays, leaves := c.create(spec("stays", "local", "node-a")), c.create(spec("leaves", "local", "node-a"))
	c.attach("node-a", leaves.ID, false)
	c.attachedOn(leaves.ID, "node-a")
	err := c.server.RestartAPI(t.Context(), func() {
		c.detach("node-a", leaves.ID)
		for range 3 {
			c.attach("node-a", stays.ID, false)
			c.detach("node-a", stays.ID)
		}
		c.attach("node-a", stays.ID, false)
		c.agents["node-a"].Event(t.Context(), stays.ID, true, "WorkerRestarted", "while nobody listened")
	})
	if err != nil {
		t.Fatal(err)
	}
	c.eventually("the API answers", func() error {
		return c.admin.Get(t.Context(), client.ObjectKey{Name: stays.ID}, &v1alpha1.VirtualDisk{})
	})
	c.attachedOn(leaves.ID)
	c.attachedOn(stays.ID, "node-a")
	c.eventually("the event is there", func() error {
		var events corev1.EventList
		if err := c.admin.List(t.Context(), &events, client.InNamespace("default")); err != nil {
			return err
		}
		for _, e := range events.Items {
			if e.InvolvedObject.Name == stays.ID && e.Reason == "WorkerRestarted" {
				return nil
			}
		}
		return errors.New("none")
	})
	c.create(spec("afterwards", "local", "node-a"))
}

// countingHostd counts calls.
type countingHostd struct {
	*hosttest.Memory
	creates atomic.Int64
}

func (h *countingHostd) Create(ctx context.Context, s host.DiskSpec) (host.Disk, error) {
	h.creates.Add(1)
	return h.Memory.Create(ctx, s)
}

// A failure for good is an answer, not a reason to try for ever; a disk that was made is not made again at a restart.
func TestAgentTriesOnce(t *testing.T) {
	c := newCluster(t, "node-a")
	c.stops["node-a"]()
	hostd := &countingHostd{Memory: c.memory}
	c.startAgent("node-a", hostd)
	d := c.create(spec("once", "local", "node-a"))
	c.stops["node-a"]()
	c.startAgent("node-a", hostd)
	grown, err := c.client.Expand(t.Context(), d.ID, 128<<20) // proof that the new agent looked at the disk
	if err != nil || grown.Size != 128<<20 {
		t.Fatal(err)
	}
	if n := hostd.creates.Load(); n != 1 {
		t.Fatalf("the disk was made %d times", n)
	}
}

// On a node where something happens all the time, what a lost notice left is made good all the same.
func TestBusyAgentCompares(t *testing.T) {
	c := newCluster(t, "node-a")
	d := c.create(spec("quiet", "local", "node-a"))
	c.attach("node-a", d.ID, false)
	c.attachedOn(d.ID, "node-a")
	ctx, cancel := context.WithCancel(t.Context())
	busy := make(chan struct{})
	go func() {
		defer close(busy)
		for tick := time.NewTicker(50 * time.Millisecond); ; { // well below the resync of the test's agents
			c.agents["node-a"].Detached(ctx, host.DiskID("of somebody else"))
			select {
			case <-ctx.Done():
				tick.Stop()
				return
			case <-tick.C:
			}
		}
	}()
	defer func() { cancel(); <-busy }()
	if err := c.memory.Detach(ctx, d.ID); err != nil { // and nobody tells
		t.Fatal(err)
	}
	c.attachedOn(d.ID)
}

// laterLife is the hostd of a node that was made anew under its name: it lists nothing, and of some disks the manifest
// says that this node holds them.
type laterLife struct {
	*hosttest.Memory
	mu       sync.Mutex
	asked    map[string]int
	released map[string]int
	fails    map[string]error
}

func (h *laterLife) Unclaim(ctx context.Context, id, node string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.asked[id]++
	if err := h.fails[id]; err != nil {
		return err
	}
	h.released[id]++
	return h.Memory.Unclaim(ctx, id, node)
}

// times says how often of was counted for the disk.
func (h *laterLife) times(of map[string]int, id string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return of[id]
}

func (h *laterLife) fail(id string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fails[id] = err
}

// What an earlier life of a node held is released by hostd before the object says that it is free; as long as hostd does
// not, the object says who has it.
func TestEarlierLifeIsReleased(t *testing.T) {
	c := newCluster(t, "node-a")
	held, silent := c.create(spec("held", "shared", "node-a")), c.create(spec("silent", "shared", "node-a"))
	own := c.create(spec("own", "local", "node-a"))
	c.attach("node-a", held.ID, false)
	c.attachedOn(held.ID, "node-a")
	c.stops["node-a"]()
	if err := c.memory.Detach(t.Context(), held.ID); err != nil { // hostd's memory, not the manifest
		t.Fatal(err)
	}
	h := &laterLife{Memory: c.memory, asked: map[string]int{}, released: map[string]int{}, fails: map[string]error{}}
	h.fail(held.ID, fault.New(fault.InUse, "", "not detached"))
	h.fail(silent.ID, fault.New(fault.Unavailable, "", "the datastore is away"))
	c.startAgent("node-a", h)
	counted := func(of map[string]int, id string, n int) {
		t.Helper()
		c.eventually(fmt.Sprintf("%d calls of hostd about %s", n, id), func() error {
			if got := h.times(of, id); got < n {
				return fmt.Errorf("%d", got)
			}
			return nil
		})
	}
	counted(h.asked, held.ID, 2)
	counted(h.asked, silent.ID, 2)
	c.attachedOn(held.ID, "node-a")
	h.fail(held.ID, nil)
	h.fail(silent.ID, nil)
	c.attachedOn(held.ID)
	counted(h.released, silent.ID, 1)
	// Once is enough for what nobody says anything about: another lost notice shows that there was another comparison.
	c.attach("node-a", held.ID, false)
	c.attachedOn(held.ID, "node-a")
	if err := c.memory.Detach(t.Context(), held.ID); err != nil {
		t.Fatal(err)
	}
	c.attachedOn(held.ID)
	if n := h.times(h.released, silent.ID); n != 1 {
		t.Errorf("asked %d times about a disk that nobody holds", n)
	}
	if n := h.times(h.asked, own.ID); n != 0 {
		t.Errorf("asked %d times about a disk that no other node reaches", n)
	}
}
