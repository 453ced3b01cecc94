package kube

import (
	"context"
	"log/slog"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vmdk-csi/vmdk-csi/pkg/api/v1alpha1"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// ClientParams are what a Client needs.
type ClientParams struct {
	// API must read through the server (Connect), not from a cache.
	API client.WithWatch
	// ReleaseWait is how long Unclaim waits for a node to let a disk go before it answers InUse; 0 is 5 seconds.
	ReleaseWait time.Duration
	Log         *slog.Logger
}

// Client is the controller's way to the hosts: host.Disks, host.Snapshots, host.Claims and host.Datastores by objects.
type Client struct {
	api         client.WithWatch
	releaseWait time.Duration
	log         *slog.Logger
}

var (
	_ host.Disks      = (*Client)(nil)
	_ host.Snapshots  = (*Client)(nil)
	_ host.Claims     = (*Client)(nil)
	_ host.Datastores = (*Client)(nil)
)

// anyVersion lists what the API server has in memory, which spares etcd a read of everything. It may be behind a little:
// for counts, and for those who look again.
func anyVersion() client.ListOption {
	return &client.ListOptions{Raw: &metav1.ListOptions{ResourceVersion: "0"}}
}

// NewClient makes a Client. It holds nothing that must be closed.
func NewClient(p ClientParams) *Client {
	c := &Client{api: p.API, releaseWait: p.ReleaseWait, log: p.Log}
	if c.releaseWait == 0 {
		c.releaseWait = 5 * time.Second
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	return c
}

// Get describes one disk.
func (c *Client) Get(ctx context.Context, id string) (host.Disk, error) {
	vd, err := c.must(ctx, id)
	if err != nil {
		return host.Disk{}, err
	}
	if err := damage(vd); err != nil {
		return host.Disk{}, err
	}
	return c.disk(ctx, vd)
}

// must reads a disk that has to exist.
func (c *Client) must(ctx context.Context, id string) (*v1alpha1.VirtualDisk, error) {
	if !host.ValidDiskID(id) {
		return nil, notFound(id)
	}
	vd, err := c.read(ctx, id)
	if err == nil && vd == nil {
		err = notFound(id)
	}
	return vd, err
}

func notFound(id string) error {
	return fault.New(fault.NotFound, "See kubectl get virtualdisks.", "disk %q does not exist", bounded(id, 64))
}

func isRetired(id string) error {
	return fault.New(fault.NotFound, "Restore one of its snapshots into a new disk.", "disk %s was deleted; only its snapshots are left", id)
}

// damage is why a disk that was made cannot be used, if so.
func damage(vd *v1alpha1.VirtualDisk) error {
	if vd.Status.UUID == "" || vd.Status.Phase != v1alpha1.PhaseFailed {
		return nil
	}
	if cond := condition(vd, v1alpha1.ConditionReady); cond != nil && cond.Status == metav1.ConditionFalse {
		f := fault.From(faultOf(cond))
		return fault.New(fault.Damaged, f.Remedy, "%s", f.Message)
	}
	return nil
}

// disk adds to the object what its datastore and its snapshots know: a snapshot is its disk's from when it is Ready, which
// the disk's status says a little later.
func (c *Client) disk(ctx context.Context, vd *v1alpha1.VirtualDisk) (host.Disk, error) {
	ds, err := c.datastore(ctx, vd.Spec.Datastore)
	if err != nil && fault.KindOf(err) != fault.NotFound {
		return host.Disk{}, err
	}
	made, err := c.snapshotObjects(ctx, vd.Name)
	if err != nil {
		return host.Disk{}, err
	}
	d := diskOf(vd, ds != nil && ds.Spec.Scope == v1alpha1.ScopeShared)
	d.Snapshots = nil
	for i := range made {
		if made[i].Status.CID != "" && made[i].Spec.UUID == vd.Status.UUID {
			d.Snapshots = append(d.Snapshots, made[i].Name)
		}
	}
	return d, nil
}

// List returns disks in order of id; a token is the id that the last page ended with. A retired disk is no volume.
func (c *Client) List(ctx context.Context, limit int, token string) ([]host.Disk, string, error) {
	if err := host.CheckList(limit, token); err != nil {
		return nil, "", err
	}
	shared := map[string]bool{}
	var stores v1alpha1.DatastoreList
	if err := c.api.List(ctx, &stores); err != nil {
		return nil, "", apiFault(err, "list datastores")
	}
	for _, ds := range stores.Items {
		shared[ds.Name] = ds.Spec.Scope == v1alpha1.ScopeShared
	}
	all, err := c.objects(ctx)
	if err != nil {
		return nil, "", err
	}
	// The API's own continue tokens expire with etcd's compaction; names do not, and a name is all that order needs.
	slices.SortFunc(all, func(a, b v1alpha1.VirtualDisk) int { return compare(a.Name, b.Name) })
	var out []host.Disk
	for i := range all {
		if all[i].Name <= token || retired(&all[i]) {
			continue
		}
		if limit > 0 && len(out) == limit {
			return out, out[limit-1].ID, nil
		}
		out = append(out, diskOf(&all[i], shared[all[i].Spec.Datastore]))
	}
	return out, "", nil
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// objects lists every VirtualDisk, in portions that the API server likes.
func (c *Client) objects(ctx context.Context) ([]v1alpha1.VirtualDisk, error) {
	var all []v1alpha1.VirtualDisk
	next := ""
	for {
		var page v1alpha1.VirtualDiskList
		if err := c.api.List(ctx, &page, client.Limit(500), client.Continue(next)); err != nil {
			return nil, apiFault(err, "list disks")
		}
		all = append(all, page.Items...)
		if next = page.Continue; next == "" {
			return all, nil
		}
	}
}

// Reachable says why the API does not serve the project's objects to this process; nil: it does. It is asked every few
// seconds, and costs one small request.
func (c *Client) Reachable(ctx context.Context) error {
	err := c.api.List(ctx, &v1alpha1.DatastoreList{}, client.Limit(1))
	return apiFault(err, "list datastores")
}

// Datastores lists them as the hosts report; a host whose Node is gone or not ready is not ready here either.
func (c *Client) Datastores(ctx context.Context) ([]host.Datastore, error) {
	var stores v1alpha1.DatastoreList
	if err := c.api.List(ctx, &stores); err != nil {
		return nil, apiFault(err, "list datastores")
	}
	nodes, err := allNodes(ctx, c.api)
	if err != nil {
		return nil, err
	}
	var out []host.Datastore
	for i := range stores.Items {
		ds := &stores.Items[i]
		d := host.Datastore{Name: ds.Name, Kind: host.DatastoreKind(ds.Spec.Kind), Scope: host.Scope(ds.Spec.Scope)}
		for _, h := range ds.Status.Hosts {
			state := nodes[h.Host]
			if !state.exists {
				continue
			}
			dh := host.DatastoreHost{Host: h.Host, Ready: h.Ready && state.ready, Reason: h.Reason, Total: h.TotalBytes, Free: h.FreeBytes}
			if h.Ready && !state.ready {
				dh.Reason = "Kubernetes says that node " + h.Host + " is not ready."
			}
			d.Hosts = append(d.Hosts, dh)
		}
		slices.SortFunc(d.Hosts, func(a, b host.DatastoreHost) int { return compare(a.Host, b.Host) })
		out = append(out, d)
	}
	slices.SortFunc(out, func(a, b host.Datastore) int { return compare(a.Name, b.Name) })
	return out, nil
}
