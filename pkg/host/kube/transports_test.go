package kube_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vmdk-csi/vmdk-csi/pkg/api/v1alpha1"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/hosttest"
)

// waysHostd says by which transport its disks are reached.
type waysHostd struct {
	*hosttest.Memory
	mu      sync.Mutex
	way     string
	skipped []host.Skipped
}

func (h *waysHostd) dress(a *host.Attachment) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.way != "" {
		a.Transport, a.Skipped = h.way, h.skipped
	}
}

func (h *waysHostd) Attachments(ctx context.Context) ([]host.Attachment, error) {
	all, err := h.Memory.Attachments(ctx)
	for i := range all {
		h.dress(&all[i])
	}
	return all, err
}

func (h *waysHostd) set(way string, skipped ...host.Skipped) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.way, h.skipped = way, skipped
}

// events of the disk and of its claim that are about transports, as "TYPE REASON MESSAGE", in no order.
func (c *cluster) transportEvents(kind, name string) (out []string) {
	c.t.Helper()
	var list corev1.EventList
	if err := c.admin.List(c.t.Context(), &list, client.InNamespace("default")); err != nil {
		c.t.Fatal(err)
	}
	for _, e := range list.Items {
		if e.InvolvedObject.Kind == kind && e.InvolvedObject.Name == name && strings.HasPrefix(e.Reason, "Transport") {
			out = append(out, fmt.Sprintf("%s %s %d %s", e.Type, e.Reason, e.Count, e.Message))
		}
	}
	return out
}

// What serves a disk, and why what was asked for first does not, is in the status; each change is one event on the disk and on
// its claim, a warning only if something is wrong.
func TestTransportsAreTold(t *testing.T) {
	c := newCluster(t, "node-a")
	c.stops["node-a"]()
	h := &waysHostd{Memory: c.memory}
	c.startAgent("node-a", h)
	ctx := host.WithOwner(t.Context(), host.Owner{Namespace: "default", Name: "transports"})
	d, err := c.client.Create(ctx, spec("ways", "shared", "node-a"))
	if err != nil {
		t.Fatal(err)
	}
	h.set("nbd", host.NotUsed("san", fault.New(fault.NotFound, "Zone it to the node.", "no LUN at /dev/sdx")))
	c.attachAs(h, d.ID)
	want := 0
	said := func(parts ...string) {
		t.Helper()
		want++
		for kind, name := range map[string]string{"VirtualDisk": d.ID, "PersistentVolumeClaim": "transports"} {
			c.eventually(fmt.Sprintf("an event of the %s says %q", kind, parts), func() error {
				all := c.transportEvents(kind, name)
				if len(all) != want || !slices.ContainsFunc(all, func(e string) bool { return containsAll(e, parts) }) {
					return fmt.Errorf("%d, want %d: %q", len(all), want, all)
				}
				return nil
			})
		}
	}
	status := func(way string, skipped ...string) {
		t.Helper()
		c.eventually("the status says "+way, func() error {
			a := c.object(d.ID).Status.Attachments
			if len(a) != 1 || a[0].Transport != way || len(a[0].SkippedTransports) != len(skipped)/2 {
				return fmt.Errorf("%+v", a)
			}
			for i, s := range a[0].SkippedTransports {
				if s.Transport != skipped[2*i] || !strings.Contains(s.Reason, skipped[2*i+1]) {
					return fmt.Errorf("%+v", a)
				}
			}
			return nil
		})
	}
	said("Warning TransportFallback 1", "node-a", "by nbd", "not by san: no LUN at /dev/sdx", "Zone it")
	status("nbd", "san", "no LUN")
	h.set("san")
	said("Normal TransportRestored 1", "by san again", "before by nbd")
	status("san")
	snapshots := fault.New(fault.Precondition, "Delete its snapshots.", "the disk has snapshots")
	h.set("nbd", host.NotUsed("san", snapshots))
	said("Normal TransportFallback 1", "by nbd, before by san", "has snapshots")
	// another reason is not another transport
	h.set("nbd", host.NotUsed("san", fault.New(fault.Precondition, "", "the disk has children")))
	status("nbd", "san", "has children")
	h.set("san")
	c.eventually("it is told again", func() error {
		for _, e := range c.transportEvents("VirtualDisk", d.ID) {
			if strings.Contains(e, "TransportRestored 2") {
				return nil
			}
		}
		return errors.New("not yet")
	})
	if got, err := c.client.Get(t.Context(), d.ID); err != nil || got.Attachments[0].Transport != "san" {
		t.Errorf("%+v %v", got.Attachments, err)
	}
	if n := len(c.transportEvents("VirtualDisk", d.ID)); n != want {
		t.Errorf("%d events, want %d: %q", n, want, c.transportEvents("VirtualDisk", d.ID))
	}
}

func containsAll(s string, parts []string) bool {
	return !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(s, p) })
}

// attachAs is attach with the transports that h tells.
func (c *cluster) attachAs(h *waysHostd, id string) {
	c.t.Helper()
	dev := hosttest.NoKernel(c.t, id).Device()
	a, err := h.Attach(c.t.Context(), host.AttachRequest{ID: id}, dev)
	if err != nil {
		c.t.Fatal(err)
	}
	h.dress(&a)
	c.agents["node-a"].Attached(c.t.Context(), a)
}

// A host's transports of a datastore are in its status; an object whose kind is not the one that is served is not ready.
func TestDatastoreKinds(t *testing.T) {
	c := newCluster(t, "node-a")
	refused := func(what string, change func(*v1alpha1.DatastoreSpec), says string) {
		t.Helper()
		ds := &v1alpha1.Datastore{}
		ds.Name = "lun"
		ds.Spec = v1alpha1.DatastoreSpec{Kind: v1alpha1.KindLUN, Scope: v1alpha1.ScopeShared, LUN: &v1alpha1.DatastoreLUN{Path: "/dev/sdb"}}
		change(&ds.Spec)
		if err := c.admin.Create(t.Context(), ds); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want a refusal that says %q", what, err, says)
		}
	}
	refused("of one node", func(s *v1alpha1.DatastoreSpec) { s.Scope = v1alpha1.ScopeNode }, "a LUN is shared")
	refused("without a LUN", func(s *v1alpha1.DatastoreSpec) { s.LUN = nil }, "they need it")
	refused("a directory with one", func(s *v1alpha1.DatastoreSpec) { s.Kind = v1alpha1.KindDirectory }, "for datastores of kind lun")
	refused("fencing by hope", func(s *v1alpha1.DatastoreSpec) { s.LUN.Fencing = "hope" }, "fencing")
	c.memory.SetDatastore(host.Datastore{Name: "shared", Kind: host.LUN, Scope: host.ScopeShared, Hosts: []host.DatastoreHost{{
		Host: "node-a", Ready: true, Total: 1 << 30, Free: 1 << 29, Transports: []host.TransportView{
			{Transport: "san", Reason: fault.New(fault.NotFound, "Zone it.", "no LUN")}, {Transport: "nbd", Usable: true}},
	}}})
	c.eventually("the status says what is served", func() error {
		ds := &v1alpha1.Datastore{}
		if err := c.admin.Get(t.Context(), client.ObjectKey{Name: "shared"}, ds); err != nil {
			return err
		}
		h := ds.Status.Hosts[0]
		if h.Ready || !strings.Contains(h.Reason, "is of kind directory, vmdk-hostd serves it as lun") || len(h.Transports) != 2 ||
			h.Transports[0].Usable || h.Transports[0].Reason != "no LUN (Zone it.)" || !h.Transports[1].Usable {
			return fmt.Errorf("%+v", h)
		}
		return nil
	})
}

// A node that does not reach a shared directory may claim a disk in it when NBD is asked for; the host that reaches it works on the disk
// until the node has it attached, and the node's hostd, which asks the lender, from then on.
func TestClaimOverNBD(t *testing.T) {
	c := newCluster(t, "node-a")
	node := &corev1.Node{}
	node.Name = "node-far"
	if err := c.admin.Create(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	shared, own := c.create(spec("s", "shared", "node-a")), c.create(spec("l", "local", "node-a"))
	claim := host.Claim{Node: "node-far"}
	far := host.WithTransport(t.Context(), "san:hotadd:nbd")
	wantKind(t, c.client.Claim(t.Context(), shared.ID, claim), fault.Precondition)
	wantKind(t, c.client.Claim(host.WithTransport(t.Context(), "san:hotadd"), shared.ID, claim), fault.Precondition)
	wantKind(t, c.client.Claim(far, own.ID, claim), fault.Precondition)
	if err := c.client.Claim(far, shared.ID, claim); err != nil {
		t.Fatal(err)
	}
	if vd := c.object(shared.ID); vd.Spec.Host != "node-a" || len(vd.Spec.Claims) != 1 || vd.Spec.Claims[0].Node != "node-far" {
		t.Fatalf("%+v", vd.Spec)
	}
	near := host.Claim{Node: "node-a"}
	wantKind(t, c.client.Claim(far, shared.ID, near), fault.InUse)
	if err := c.client.Unclaim(t.Context(), shared.ID, "node-far"); err != nil {
		t.Fatal(err)
	}
	if err := c.client.Claim(far, shared.ID, near); err != nil {
		t.Fatal(err)
	}
}
