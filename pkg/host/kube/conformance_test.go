package kube_test

import (
	"context"
	"fmt"
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vmdk-csi/vmdk-csi/pkg/api/v1alpha1"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/hosttest"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/kube"
)

// TestConformance runs the port's suite: what the controller calls goes through objects and the agent, what the node service
// calls to hostd, which is in memory.
func TestConformance(t *testing.T) {
	hosttest.Run(t, subject)
	t.Run("Snapshots", func(t *testing.T) { hosttest.RunSnapshots(t, subject) })
}

func subject(t *testing.T) hosttest.Subject {
	c := newCluster(t, "node-a", "node-b")
	return hosttest.Subject{
		Host: &wholePort{Client: c.client, Attacher: c.memory, Keeper: c.memory, cluster: c},
		Node: "node-a", Datastore: "local", OtherDatastore: "shared", Session: hosttest.NoKernel,
	}
}

// wholePort is the controller's and the node service's half.
type wholePort struct {
	*kube.Client
	host.Attacher
	host.Keeper
	cluster *cluster
}

// Create makes a disk without a wish where the suite attaches it.
func (w *wholePort) Create(ctx context.Context, spec host.DiskSpec) (host.Disk, error) {
	if spec.Host == "" {
		spec.Host = "node-a"
	}
	return w.Client.Create(ctx, spec)
}

// Attach is an attach by the node service, which notices the agent; the object says so soon.
func (w *wholePort) Attach(ctx context.Context, req host.AttachRequest, dev host.Device) (host.Attachment, error) {
	a, err := w.Attacher.Attach(ctx, req, dev)
	if err == nil {
		w.cluster.agents["node-a"].Attached(ctx, a)
		w.settled(req.ID, 1)
	}
	return a, err
}

func (w *wholePort) Detach(ctx context.Context, id string) error {
	err := w.Attacher.Detach(ctx, id)
	if err == nil {
		w.cluster.agents["node-a"].Detached(ctx, id)
		w.settled(id, 0)
	}
	return err
}

// settled waits until the disk's object, if it has one, shows n attachments.
func (w *wholePort) settled(id string, n int) {
	w.cluster.t.Helper()
	w.cluster.eventually(fmt.Sprintf("%d attachments", n), func() error {
		vd := &v1alpha1.VirtualDisk{}
		err := w.cluster.admin.Get(context.Background(), client.ObjectKey{Name: id}, vd)
		if client.IgnoreNotFound(err) != nil {
			return err
		}
		if err == nil && len(vd.Status.Attachments) != n {
			return fmt.Errorf("attachments: %+v", vd.Status.Attachments)
		}
		return nil
	})
}
