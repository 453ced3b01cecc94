package kube_test

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vmdk-csi/vmdk-csi/pkg/api/v1alpha1"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/hosttest"
)

// evictor is a hostd with a LUN.
type evictor struct {
	*hosttest.Memory
	busy atomic.Bool // the node's lease is not over
	done atomic.Int32
}

func (e *evictor) Evict(ctx context.Context, id, node string) error {
	if e.busy.Load() {
		return fault.New(fault.InProgress, "", "its lease is not over")
	}
	e.done.Add(1)
	return e.Memory.On(node).Detach(ctx, id)
}

// newLUNCluster has a datastore on a LUN, of which node-b's hostd can take disks from others.
func newLUNCluster(t *testing.T) (*cluster, *evictor) {
	t.Helper()
	c := newCluster(t, "node-a", "node-b")
	ds := &v1alpha1.Datastore{}
	ds.Name = "lun"
	ds.Spec = v1alpha1.DatastoreSpec{Kind: v1alpha1.KindLUN, Scope: v1alpha1.ScopeShared, LUN: &v1alpha1.DatastoreLUN{Path: "/dev/sdb"}}
	if err := c.admin.Create(t.Context(), ds); err != nil {
		t.Fatal(err)
	}
	var hosts []host.DatastoreHost
	for _, n := range []string{"node-a", "node-b"} {
		hosts = append(hosts, host.DatastoreHost{Host: n, Ready: true, Total: 1 << 30, Free: 1 << 30})
	}
	c.memory.SetDatastore(host.Datastore{Name: "lun", Kind: host.LUN, Scope: host.ScopeShared, Hosts: hosts})
	c.stops["node-b"]()
	e := &evictor{Memory: c.memory.On("node-b")}
	c.startAgent("node-b", e)
	c.eventually("both hosts report the LUN", func() error {
		ds := &v1alpha1.Datastore{}
		if err := c.admin.Get(t.Context(), client.ObjectKey{Name: "lun"}, ds); err != nil {
			return err
		}
		for _, h := range ds.Status.Hosts {
			if !h.Ready {
				return fmt.Errorf("%+v", h)
			}
		}
		if len(ds.Status.Hosts) != 2 {
			return fmt.Errorf("%+v", ds.Status.Hosts)
		}
		return nil
	})
	return c, e
}

func (c *cluster) claimed(name, datastore, node string) string {
	c.t.Helper()
	ctx := host.WithOwner(c.t.Context(), host.Owner{Namespace: "default", Name: name})
	d, err := c.client.Create(ctx, spec(name, datastore, node))
	if err == nil {
		err = c.client.Claim(c.t.Context(), d.ID, host.Claim{Node: node})
	}
	if err != nil {
		c.t.Fatal(err)
	}
	c.attach(node, d.ID, false)
	c.attachedOn(d.ID, node)
	return d.ID
}

// taint says that a node is out of service, or that it is not.
func (c *cluster) taint(name string, taints ...corev1.Taint) {
	c.t.Helper()
	node := &corev1.Node{}
	if err := c.admin.Get(context.Background(), client.ObjectKey{Name: name}, node); err != nil {
		c.t.Fatal(err)
	}
	node.Spec.Taints = taints
	if err := c.admin.Update(context.Background(), node); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) unclaimed(id, node string) {
	c.t.Helper()
	c.eventually("the claim is taken back", func() error { return c.client.Unclaim(c.t.Context(), id, node) })
}

// A disk on a LUN leaves a node that the administrator has said to be down, and no other: silence says nothing, and a directory
// cannot cut a node off.
func TestEvictOutOfService(t *testing.T) {
	c, e := newLUNCluster(t)
	e.busy.Store(true)
	id, dir := c.claimed("evicted", "lun", "node-a"), c.claimed("kept", "shared", "node-a")
	c.stops["node-a"]()
	setReady(c, "node-a", corev1.ConditionUnknown)
	t.Cleanup(func() { c.taint("node-a"); setReady(c, "node-a", corev1.ConditionTrue) })
	wantKind(t, c.client.Unclaim(t.Context(), id, "node-a"), fault.InUse)
	if vd := c.object(id); len(vd.Spec.Evict) != 0 {
		t.Fatalf("of a node that is only silent: %v", vd.Spec.Evict)
	}
	c.taint("node-a", corev1.Taint{Key: corev1.TaintNodeOutOfService, Value: "nodeshutdown", Effect: corev1.TaintEffectNoExecute})
	wantKind(t, c.client.Unclaim(t.Context(), id, "node-a"), fault.InUse)
	wantKind(t, c.client.Unclaim(t.Context(), dir, "node-a"), fault.InUse)
	if vd := c.object(id); len(vd.Spec.Evict) != 1 || vd.Spec.Evict[0] != "node-a" || vd.Spec.Host != "node-b" {
		t.Fatalf("%+v", vd.Spec)
	}
	wantKind(t, c.client.Claim(t.Context(), id, host.Claim{Node: "node-b"}), fault.InUse)
	e.busy.Store(false)
	c.unclaimed(id, "node-a")
	c.eventually("nothing is left to do", func() error {
		if vd := c.object(id); len(vd.Spec.Evict) != 0 || len(vd.Spec.Claims) != 0 || len(vd.Status.Attachments) != 0 {
			return fmt.Errorf("%+v %+v", vd.Spec, vd.Status.Attachments)
		}
		return nil
	})
	if err := c.client.Claim(t.Context(), id, host.Claim{Node: "node-b"}); err != nil {
		t.Fatal(err)
	}
	c.attach("node-b", id, false)
	c.attachedOn(id, "node-b")
	if vd := c.object(dir); len(vd.Spec.Evict) != 0 || len(vd.Status.Attachments) != 1 {
		t.Fatalf("%+v", vd.Spec)
	}
	for kind, name := range map[string]string{"VirtualDisk": id, "PersistentVolumeClaim": "evicted"} {
		c.eventually("an event of the "+kind, func() error {
			var list corev1.EventList
			if err := c.admin.List(t.Context(), &list, client.InNamespace("default")); err != nil {
				return err
			}
			for _, ev := range list.Items {
				about := ev.InvolvedObject
				if about.Kind == kind && about.Name == name && ev.Reason == "DiskEvicted" && strings.Contains(ev.Message, "from node node-a") {
					return nil
				}
			}
			return fmt.Errorf("none of %d", len(list.Items))
		})
	}
}

// A node that is gone holds nothing up; its disk is free for others after it was taken, also if its claim was taken back before.
func TestEvictGoneNode(t *testing.T) {
	c, e := newLUNCluster(t)
	id, before := c.claimed("gone", "lun", "node-a"), c.claimed("before", "lun", "node-a")
	c.stops["node-a"]()
	node := &corev1.Node{}
	node.Name = "node-a"
	if err := c.admin.Delete(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	vd := c.object(before)
	vd.Spec.Claims = nil
	if err := c.admin.Update(t.Context(), vd); err != nil {
		t.Fatal(err)
	}
	c.unclaimed(id, "node-a")
	for _, id := range []string{id, before} {
		c.eventually("another node claims it", func() error { return c.client.Claim(t.Context(), id, host.Claim{Node: "node-b"}) })
	}
	if e.done.Load() < 2 {
		t.Fatal("nobody took the disk from the node")
	}
}
