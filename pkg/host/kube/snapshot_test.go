package kube_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vmdk-csi/vmdk-csi/pkg/api/v1alpha1"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/hosttest"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/kube"
)

func (c *cluster) snapshotObject(id string) *v1alpha1.DiskSnapshot {
	c.t.Helper()
	ds := &v1alpha1.DiskSnapshot{}
	if err := c.admin.Get(context.Background(), client.ObjectKey{Name: id}, ds); err != nil {
		c.t.Fatal(err)
	}
	return ds
}

func (c *cluster) snapshot(spec host.SnapshotSpec) host.Snapshot {
	c.t.Helper()
	s, err := c.client.CreateSnapshot(c.t.Context(), spec)
	if err != nil {
		c.t.Fatalf("snapshot %s: %v", spec.Name, err)
	}
	return s
}

// told waits for an event about an object.
func (c *cluster) told(name, reason string, words ...string) {
	c.t.Helper()
	c.eventually("an event "+reason+" of "+name, func() error {
		var events corev1.EventList
		if err := c.admin.List(context.Background(), &events, client.InNamespace("default")); err != nil {
			return err
		}
		var have []string
		for _, e := range events.Items {
			if e.InvolvedObject.Name != name {
				continue
			}
			have = append(have, e.Reason+": "+e.Message)
			if e.Reason == reason && !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(e.Message, w) }) {
				return nil
			}
		}
		return fmt.Errorf("events %q", have)
	})
}

// fridge is a Freezer that notes what it is asked.
type fridge struct {
	mu     sync.Mutex
	fails  error
	frozen int
	asked  []time.Duration
}

func (f *fridge) Freeze(_ context.Context, _ string, deadline time.Time) (func(context.Context) error, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, time.Until(deadline))
	if f.fails != nil {
		return nil, f.fails
	}
	f.frozen++
	return func(context.Context) error {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.frozen--
		return nil
	}, nil
}

// cold is a hostd that sees whether something stands still while it makes a snapshot.
type cold struct {
	kube.Hostd
	f    *fridge
	mu   sync.Mutex
	made []string
}

func (h *cold) CreateSnapshot(ctx context.Context, s host.SnapshotSpec) (host.Snapshot, error) {
	h.f.mu.Lock()
	frozen := h.f.frozen
	h.f.mu.Unlock()
	h.mu.Lock()
	h.made = append(h.made, fmt.Sprintf("%s still=%d for=%v", s.Name, frozen, s.Frozen > 0))
	h.mu.Unlock()
	return h.Hostd.CreateSnapshot(ctx, s)
}

func (h *cold) take() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	defer func() { h.made = nil }()
	return h.made
}

// The file system stands still while hostd makes the snapshot, if it was asked for and comes about; the snapshot is made in
// any case, and says what it is.
func TestFreeze(t *testing.T) {
	c := newCluster(t, "node-a")
	c.stops["node-a"]()
	f := &fridge{}
	h := &cold{Hostd: c.memory, f: f}
	c.startAgentWith(kube.AgentParams{Node: "node-a", Hostd: h, Freezer: f})
	d := c.create(spec("in use", "local", "node-a"))
	c.attach("node-a", d.ID, false)
	c.attachedOn(d.ID, "node-a")
	for _, tc := range []struct {
		name   string
		freeze host.Freeze
		fails  error
		made   string
		is     host.Consistency
	}{
		{"none", host.FreezeNone, nil, "still=0 for=false", host.CrashConsistent},
		{"frozen", host.FreezeFilesystem, nil, "still=1 for=true", host.FilesystemConsistent},
		{"hung", host.FreezeFilesystem, fault.New(fault.Timeout, "", "its device does not answer"), "still=0 for=false", host.CrashConsistent},
	} {
		f.mu.Lock()
		f.fails, f.asked = tc.fails, nil
		f.mu.Unlock()
		s := c.snapshot(host.SnapshotSpec{Name: tc.name, Disk: d.ID, Freeze: tc.freeze, FreezeDeadline: 7 * time.Second})
		if made := h.take(); len(made) != 1 || made[0] != tc.name+" "+tc.made || s.Consistency != tc.is {
			t.Errorf("%s: made %q, consistency %s", tc.name, made, s.Consistency)
		}
		f.mu.Lock()
		if f.frozen != 0 || len(f.asked) != 0 != (tc.freeze == host.FreezeFilesystem) || len(f.asked) > 0 && (f.asked[0] > 7*time.Second || f.asked[0] < 5*time.Second) {
			t.Errorf("%s: %d stand still, asked for %v", tc.name, f.frozen, f.asked)
		}
		f.mu.Unlock()
		if ds := c.snapshotObject(s.ID); ds.Status.Consistency != string(tc.is) || ds.Status.RestoreSize != "64 MiB" || ds.Status.ObservedGeneration != ds.Generation {
			t.Errorf("%s: %+v", tc.name, ds.Status)
		}
		c.told(s.ID, "Created", string(tc.is))
		if tc.fails != nil {
			c.told(s.ID, "NotFrozen", "device does not answer")
			c.told(d.ID, "SnapshotNotFrozen", s.ID, "device does not answer")
		}
	}
}

// An agent that died between hostd's answer and the status: its successor finds the snapshot, and stops nothing for it.
func TestSnapshotMadeAndNotTold(t *testing.T) {
	c := newCluster(t, "node-a")
	d := c.create(spec("x", "local", "node-a"))
	c.stops["node-a"]()
	done := make(chan error, 1)
	go func() {
		_, err := c.client.CreateSnapshot(t.Context(), host.SnapshotSpec{Name: "s", Disk: d.ID, Freeze: host.FreezeFilesystem})
		done <- err
	}()
	made, err := c.memory.CreateSnapshot(t.Context(), host.SnapshotSpec{Name: "s", Disk: d.ID})
	if err != nil {
		t.Fatal(err)
	}
	f := &fridge{}
	h := &cold{Hostd: c.memory, f: f}
	c.startAgentWith(kube.AgentParams{Node: "node-a", Hostd: h, Freezer: f})
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if ds := c.snapshotObject(made.ID); ds.Status.CID != made.CID || len(f.asked) > 0 || len(h.take()) > 0 {
		t.Errorf("%+v, asked %v", ds.Status, f.asked)
	}
}

// On a shared datastore the host that has the disk open makes its snapshots and what is made from it.
func TestSharedWorkIsWhereTheDiskIsOpen(t *testing.T) {
	c := newCluster(t, "node-a", "node-b")
	ctx := t.Context()
	d := c.create(spec("x", "shared", "node-a"))
	first := c.snapshot(host.SnapshotSpec{Name: "first", Disk: d.ID})
	if len(first.Hosts) != 0 {
		t.Errorf("hosts %v", first.Hosts)
	}
	if err := c.client.Claim(ctx, d.ID, host.Claim{Node: "node-b"}); err != nil {
		t.Fatal(err)
	}
	c.attach("node-b", d.ID, false)
	c.attachedOn(d.ID, "node-b")
	second := c.snapshot(host.SnapshotSpec{Name: "second", Disk: d.ID})
	if at := c.snapshotObject(second.ID).Spec.Host; at != "node-b" {
		t.Errorf("the snapshot was made by %s", at)
	}
	for i, from := range []host.Source{{Snapshot: first.ID}, {Snapshot: second.ID}, {Disk: d.ID}} {
		s := spec(fmt.Sprint("from ", i), "shared", "node-a")
		s.Source = &from
		made := c.create(s)
		if at := c.object(made.ID).Spec.Host; at != "node-b" || made.Spec.CloneMode != host.CloneLinked || *made.Spec.Source != from {
			t.Errorf("%+v was made by %s: %+v", from, at, made.Spec)
		}
	}
	// The one that was made elsewhere is deleted where the disk is.
	if err := c.client.DeleteSnapshot(ctx, first.ID); err != nil {
		t.Fatal(err)
	}
	c.detach("node-b", d.ID)
	c.attachedOn(d.ID)
	if err := c.client.Unclaim(ctx, d.ID, "node-b"); err != nil {
		t.Fatal(err)
	}
	if err := c.client.Delete(ctx, d.ID); err != nil {
		t.Fatal(err)
	}
	vd := c.object(d.ID)
	if vd.Status.Phase != v1alpha1.PhaseRetired || !slices.Equal(vd.Status.Snapshots, []string{second.ID}) {
		t.Errorf("%+v", vd.Status)
	}
	c.told(d.ID, "Retired", second.ID)
	// Its host goes away: another one lets the last snapshot go, and the disk's object with it.
	c.stops["node-b"]()
	setReady(c, "node-b", corev1.ConditionUnknown)
	t.Cleanup(func() { setReady(c, "node-b", corev1.ConditionTrue) })
	if err := c.client.DeleteSnapshot(ctx, second.ID); err != nil {
		t.Fatal(err)
	}
	if err := c.admin.Get(ctx, client.ObjectKey{Name: d.ID}, &v1alpha1.VirtualDisk{}); client.IgnoreNotFound(err) != nil || err == nil {
		t.Errorf("the retired disk's object is still there: %v", err)
	}
}

// On a datastore of the nodes a disk is made where its source is, and nowhere else.
func TestRestoreOnTheSourcesNode(t *testing.T) {
	c := newCluster(t, "node-a", "node-b")
	d := c.create(spec("x", "local", "node-b"))
	s := c.snapshot(host.SnapshotSpec{Name: "s", Disk: d.ID})
	if !slices.Equal(s.Hosts, []string{"node-b"}) {
		t.Errorf("hosts %v", s.Hosts)
	}
	for i, from := range []host.Source{{Snapshot: s.ID}, {Disk: d.ID}} {
		r := spec(fmt.Sprint("from ", i), "local", "node-a")
		r.Source = &from
		_, err := c.client.Create(t.Context(), r)
		wantKind(t, err, fault.Exhausted)
		if !strings.Contains(err.Error(), "node-b") {
			t.Errorf("the message does not say where: %v", err)
		}
		r.Host = ""
		if made := c.create(r); !slices.Equal(made.Hosts, []string{"node-b"}) {
			t.Errorf("made on %v", made.Hosts)
		}
	}
}

// A failure for good leaves nothing, and says why; the next request is a fresh attempt. One that may pass is tried again.
func TestSnapshotFails(t *testing.T) {
	c := newCluster(t, "node-a")
	d := c.create(spec("x", "local", "node-a"))
	c.memory.FailNext(failing("createSnapshot", fault.New(fault.NoSpace, "Free space on it.", "the datastore is full")))
	_, err := c.client.CreateSnapshot(t.Context(), host.SnapshotSpec{Name: "s", Disk: d.ID})
	wantKind(t, err, fault.NoSpace)
	if !strings.Contains(err.Error(), "Free space on it.") {
		t.Errorf("the host's words are lost: %v", err)
	}
	c.told(d.ID, "SnapshotFailed", "datastore is full")
	if list, _, err := c.client.ListSnapshots(t.Context(), "", 0, ""); err != nil || len(list) > 0 {
		t.Errorf("left: %+v, %v", list, err)
	}
	c.memory.FailNext(failing("createSnapshot", fault.New(fault.InProgress, "", "another one is under way")))
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	_, err = c.client.CreateSnapshot(ctx, host.SnapshotSpec{Name: "s", Disk: d.ID})
	wantKind(t, err, fault.InProgress)
	pending, err := c.client.GetSnapshot(t.Context(), host.SnapshotID("s"))
	if err != nil || pending.Ready {
		t.Errorf("while it is made: %+v, %v", pending, err)
	}
	r := spec("too early", "local", "node-a")
	r.Source = &host.Source{Snapshot: pending.ID}
	_, err = c.client.Create(t.Context(), r)
	wantKind(t, err, fault.InProgress)
	c.memory.FailNext(nil)
	s := c.snapshot(host.SnapshotSpec{Name: "s", Disk: d.ID})

	c.memory.FailNext(failing("deleteSnapshot", fault.New(fault.ReadOnly, "Mount it for writing.", "the file system is read-only")))
	wantKind(t, c.client.DeleteSnapshot(t.Context(), s.ID), fault.ReadOnly)
	_, err = c.client.GetSnapshot(t.Context(), s.ID)
	wantKind(t, err, fault.NotFound)
	_, err = c.client.CreateSnapshot(t.Context(), host.SnapshotSpec{Name: "s", Disk: d.ID})
	wantKind(t, err, fault.InProgress)
	c.memory.FailNext(nil)
	if err := c.client.DeleteSnapshot(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
}

// A snapshot whose files are gone is not made again.
func TestSnapshotIsLost(t *testing.T) {
	c := newCluster(t, "node-a")
	d := c.create(spec("x", "local", "node-a"))
	s := c.snapshot(host.SnapshotSpec{Name: "s", Disk: d.ID})
	if err := c.memory.DeleteSnapshot(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
	c.eventually("the loss is told", func() error {
		if _, err := c.client.GetSnapshot(t.Context(), s.ID); fault.KindOf(err) != fault.Damaged || !strings.Contains(err.Error(), "missing") {
			return fmt.Errorf("get: %w", err)
		}
		return nil
	})
	c.told(s.ID, "Damaged", "missing")
	_, err := c.client.CreateSnapshot(t.Context(), host.SnapshotSpec{Name: "s", Disk: d.ID})
	wantKind(t, err, fault.Damaged)
	r := spec("r", "local", "node-a")
	r.Source = &host.Source{Snapshot: s.ID}
	_, err = c.client.Create(t.Context(), r)
	wantKind(t, err, fault.Damaged)
	if _, err := c.memory.GetSnapshot(t.Context(), s.ID); fault.KindOf(err) != fault.NotFound {
		t.Errorf("made again: %v", err)
	}
	if err := c.client.DeleteSnapshot(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
}

// A node that is gone for good: the snapshot says what to do.
func TestSnapshotOnLostNode(t *testing.T) {
	c := newCluster(t, "node-a", "node-lost")
	d := c.create(spec("x", "local", "node-lost"))
	s := c.snapshot(host.SnapshotSpec{Name: "s", Disk: d.ID})
	c.stops["node-lost"]()
	node := &corev1.Node{}
	node.Name = "node-lost"
	if err := c.admin.Delete(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	err := c.client.DeleteSnapshot(t.Context(), s.ID)
	wantKind(t, err, fault.Unavailable)
	if !strings.Contains(err.Error(), "kubectl patch disksnapshot "+s.ID) {
		t.Errorf("%v", err)
	}
	c.forget(c.snapshotObject(s.ID))
	if err := c.client.DeleteSnapshot(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
}

// merging is a hostd that has a disk's links merged.
type merging struct {
	*hosttest.Memory
	mu    sync.Mutex
	state *host.Consolidation
	links []host.Link
	looks int
}

func (h *merging) Get(ctx context.Context, id string) (host.Disk, error) {
	d, err := h.Memory.Get(ctx, id)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.looks++
	if h.state != nil {
		c := *h.state
		if c.Running {
			c.Done += int64(h.looks) << 20 // it gets on each time that somebody looks
		}
		d.Consolidation = &c
	}
	if h.links != nil {
		d.Links = slices.Clone(h.links)
	}
	return d, err
}

func (h *merging) set(state *host.Consolidation, links ...host.Link) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.state, h.links = state, links
}

// What becomes of links that nobody needs is on the object: progress, without a write for each step, why it waits, and
// what came of it.
func TestConsolidationIsTold(t *testing.T) {
	c := newCluster(t, "node-a")
	c.stops["node-a"]()
	h := &merging{Memory: c.memory}
	c.startAgentWith(kube.AgentParams{Node: "node-a", Hostd: h, Resync: time.Second, ProgressEvery: 300 * time.Millisecond})
	link := func(name string, size, used int64) host.Link {
		return host.Link{Name: name, Type: "twoGbMaxExtentSparse", CID: "fffffffe", ParentCID: "ffffffff", Size: size, Allocated: used}
	}
	base, middle, head := link("disk.vmdk", 64<<20, 30<<20), link("disk-000001.vmdk", 64<<20, 20<<20), link("disk-000002.vmdk", 128<<20, 1<<20)
	h.set(&host.Consolidation{Links: 1, Running: true, Total: 20 << 20}, base, middle, head)
	d := c.create(spec("x", "local", "node-a"))
	says := func(what string, check func(vd *v1alpha1.VirtualDisk) bool) {
		t.Helper()
		c.eventually(what, func() error {
			if vd := c.object(d.ID); !check(vd) {
				return fmt.Errorf("%+v", vd.Status)
			}
			return nil
		})
	}
	says("a merge runs", func(vd *v1alpha1.VirtualDisk) bool {
		return vd.Status.Consolidation != nil && vd.Status.Consolidation.Running && meta.IsStatusConditionTrue(vd.Status.Conditions, v1alpha1.ConditionConsolidating) &&
			meta.IsStatusConditionFalse(vd.Status.Conditions, v1alpha1.ConditionVMwareReadable)
	})
	versions := map[string]bool{}
	done := map[int64]bool{}
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		vd := c.object(d.ID)
		versions[vd.ResourceVersion], done[vd.Status.Consolidation.DoneBytes] = true, true
	}
	if len(done) < 2 || len(versions) > 14 {
		t.Errorf("in 3 s the progress was told %d times, by %d writes", len(done), len(versions))
	}
	h.set(&host.Consolidation{Links: 1, Reason: "other disks share the links"}, base, middle, head)
	says("it waits", func(vd *v1alpha1.VirtualDisk) bool {
		cond := meta.FindStatusCondition(vd.Status.Conditions, v1alpha1.ConditionConsolidating)
		return cond != nil && cond.Status == "False" && strings.Contains(cond.Message, "share")
	})
	h.set(nil, link("disk.vmdk", 128<<20, 31<<20), link("disk-000002.vmdk", 128<<20, 1<<20))
	says("nothing is left to do", func(vd *v1alpha1.VirtualDisk) bool {
		return vd.Status.Consolidation == nil && meta.FindStatusCondition(vd.Status.Conditions, v1alpha1.ConditionConsolidating) == nil &&
			meta.IsStatusConditionTrue(vd.Status.Conditions, v1alpha1.ConditionVMwareReadable)
	})
	c.told(d.ID, "Consolidated", "disk-000001.vmdk", "19 MiB came back")
	if got, err := c.client.Get(t.Context(), d.ID); err != nil || got.Consolidation != nil || got.VMwareProblem != "" {
		t.Errorf("%+v, %v", got, err)
	}
}
