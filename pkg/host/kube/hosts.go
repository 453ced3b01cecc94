package kube

import (
	"context"
	"hash/fnv"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validation"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vmdk-csi/vmdk-csi/pkg/api/v1alpha1"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// nodes remembers for one request what the Node objects say.
type nodes struct {
	api  client.Reader
	seen map[string]nodeState
}

// nodeState: out is the administrator's word that the node is down (corev1.TaintNodeOutOfService).
type nodeState struct{ exists, ready, out bool }

// down: nothing that the node had runs there any more, by Kubernetes' word.
func (s nodeState) down() bool { return !s.exists || s.out }

func newNodes(api client.Reader) *nodes { return &nodes{api: api, seen: map[string]nodeState{}} }

// state of a node. A Node without a Ready condition is ready: nobody has said otherwise.
func (n *nodes) state(ctx context.Context, name string) (nodeState, error) {
	if s, ok := n.seen[name]; ok {
		return s, nil
	}
	var node corev1.Node
	s := nodeState{}
	if !objectName(name) {
		return s, nil
	}
	switch err := n.api.Get(ctx, client.ObjectKey{Name: name}, &node); {
	case apierrors.IsNotFound(err):
	case err != nil:
		return s, apiFault(err, "read node %s", name)
	default:
		s = stateOf(&node)
	}
	n.seen[name] = s
	return s, nil
}

func stateOf(node *corev1.Node) nodeState {
	s := nodeState{exists: true, ready: true}
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady {
			s.ready = c.Status == corev1.ConditionTrue
		}
	}
	s.out = slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeOutOfService })
	return s
}

// allNodes is the state of every node, in one request.
func allNodes(ctx context.Context, api client.Reader) (map[string]nodeState, error) {
	var list corev1.NodeList
	if err := api.List(ctx, &list, anyVersion()); err != nil {
		return nil, apiFault(err, "list nodes")
	}
	all := make(map[string]nodeState, len(list.Items))
	for i := range list.Items {
		all[list.Items[i].Name] = stateOf(&list.Items[i])
	}
	return all, nil
}

func (c *Client) datastore(ctx context.Context, name string) (*v1alpha1.Datastore, error) {
	ds := &v1alpha1.Datastore{}
	var err error
	if objectName(name) {
		err = c.api.Get(ctx, client.ObjectKey{Name: name}, ds)
	}
	if !objectName(name) || apierrors.IsNotFound(err) && !noDefinition(err) {
		return nil, fault.New(fault.NotFound, "See kubectl get datastores.vmdk-csi.io; the chart's value datastores makes them.",
			"datastore %q does not exist", bounded(name, 253))
	}
	if err != nil {
		return nil, apiFault(err, "read datastore %s", name)
	}
	return ds, nil
}

// objectName says whether an object can have the name: one that cannot does not exist, and is not sent in a URL.
func objectName(s string) bool { return len(validation.NameIsDNSSubdomain(s, false)) == 0 }

func hostStatus(ds *v1alpha1.Datastore, name string) *v1alpha1.DatastoreHostStatus {
	for i := range ds.Status.Hosts {
		if ds.Status.Hosts[i].Host == name {
			return &ds.Status.Hosts[i]
		}
	}
	return nil
}

// works says why host cannot work on ds now; nil when it can.
func (n *nodes) works(ctx context.Context, ds *v1alpha1.Datastore, host string) error {
	s, err := n.state(ctx, host)
	if err != nil {
		return err
	}
	h := hostStatus(ds, host)
	switch {
	case h == nil && !s.exists:
		return fault.New(fault.NotFound, "See kubectl get nodes.", "host %q does not exist", bounded(host, 253))
	case h == nil:
		return fault.New(fault.Exhausted, "Choose a node where vmdk-hostd serves the datastore (kubectl describe vds "+ds.Name+").",
			"node %s does not reach datastore %s", host, ds.Name)
	case !s.exists:
		return fault.New(fault.Unavailable, "", "node %s does not exist any more", host)
	case s.out:
		return fault.New(fault.Unavailable, "Take the taint away when the node is back.", "node %s is out of service", host)
	case !s.ready:
		return fault.New(fault.Unavailable, "", "node %s is not ready", host)
	case !h.Ready:
		return fault.New(fault.Unavailable, "", "node %s: datastore %s: %s", host, ds.Name, h.Reason)
	}
	return nil
}

// pick chooses the host that works on a disk: want, when it can; for a shared datastore else any that can, spread by
// the disk's id; for a datastore of the nodes without a wish the one with most room.
func (c *Client) pick(ctx context.Context, ds *v1alpha1.Datastore, id, want string) (string, error) {
	n := newNodes(c.api)
	var why []string
	if want != "" {
		err := n.works(ctx, ds, want)
		if err == nil {
			return want, nil
		}
		if ds.Spec.Scope != v1alpha1.ScopeShared {
			return "", err
		}
		why = append(why, err.Error())
	}
	hosts := slices.Clone(ds.Status.Hosts)
	slices.SortFunc(hosts, func(a, b v1alpha1.DatastoreHostStatus) int {
		if ds.Spec.Scope != v1alpha1.ScopeShared && a.FreeBytes != b.FreeBytes {
			if a.FreeBytes > b.FreeBytes {
				return -1
			}
			return 1
		}
		if d := int64(spread(id, a.Host)) - int64(spread(id, b.Host)); d != 0 {
			return int(max(-1, min(1, d)))
		}
		return compare(a.Host, b.Host)
	})
	for _, h := range hosts {
		err := n.works(ctx, ds, h.Host)
		if err == nil {
			return h.Host, nil
		}
		if h.Host != want {
			why = append(why, err.Error())
		}
	}
	if len(why) == 0 {
		why = []string{"no host has reported it"}
	}
	return "", fault.New(fault.Unavailable, "See kubectl describe vds "+ds.Name+" and the pods vmdk-hostd and vmdk-csi-node.",
		"no host can work on datastore %s: %s", ds.Name, strings.Join(why, "; "))
}

// spread ranks a host for a disk (rendezvous hashing): hosts that come and go move few disks.
func spread(id, host string) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(id + "\x00" + host)) // hash.Hash: Write never returns an error
	return h.Sum32()
}

// place makes sure that a host works on the disk: it keeps the one named by the object while it can, or has the disk
// attached; for a shared datastore, and for a disk that was never made, it names another. want is a wish.
func (c *Client) place(ctx context.Context, vd *v1alpha1.VirtualDisk, want string) (*v1alpha1.VirtualDisk, error) {
	at := writer(vd)
	if vd.Status.UUID == "" {
		var err error
		if at, err = c.heldSource(ctx, vd.Spec.Source); err != nil {
			return nil, err
		}
	}
	if at != "" {
		return c.setHost(ctx, vd, at)
	}
	ds, err := c.datastore(ctx, vd.Spec.Datastore)
	if err != nil {
		return nil, err
	}
	n := newNodes(c.api)
	cannot := n.works(ctx, ds, vd.Spec.Host)
	if cannot == nil {
		return vd, nil
	}
	if ds.Spec.Scope != v1alpha1.ScopeShared {
		s, err := n.state(ctx, vd.Spec.Host)
		if err != nil {
			return nil, err
		}
		// The files of a node's own datastore are there and nowhere else. A disk that was never made has none that
		// anybody was told of, and a node that is gone will not make any; but its source is there and nowhere else.
		if s.exists || vd.Status.UUID != "" || vd.Spec.Source != nil {
			return vd, cannot
		}
	}
	picked, err := c.pick(ctx, ds, vd.Name, want)
	if err != nil {
		return vd, err
	}
	return c.setHost(ctx, vd, picked)
}

// writer is the host that has the disk open for writing, or the first that has it open at all. Who loses it has it no more.
func writer(vd *v1alpha1.VirtualDisk) string {
	at := ""
	for _, a := range vd.Status.Attachments {
		if slices.Contains(vd.Spec.Evict, a.Host) {
			continue
		}
		if !a.ReadOnly {
			return a.Host
		}
		if at == "" {
			at = a.Host
		}
	}
	return at
}

func (c *Client) setHost(ctx context.Context, vd *v1alpha1.VirtualDisk, host string) (*v1alpha1.VirtualDisk, error) {
	if vd.Spec.Host == host {
		return vd, nil
	}
	c.log.Info("another host works on the disk", "disk", vd.Name, "from", vd.Spec.Host, "to", host)
	return c.patch(ctx, vd, func(s *v1alpha1.VirtualDiskSpec) { s.Host = host })
}

// patch changes the disk's intent if it is still what vd says; else fault.InProgress.
func (c *Client) patch(ctx context.Context, vd *v1alpha1.VirtualDisk, change func(*v1alpha1.VirtualDiskSpec)) (*v1alpha1.VirtualDisk, error) {
	next := vd.DeepCopy()
	change(&next.Spec)
	patch := client.MergeFromWithOptions(vd, client.MergeFromWithOptimisticLock{})
	if err := c.api.Patch(ctx, next, patch); err != nil {
		return nil, apiFault(err, "change disk %s", vd.Name)
	}
	return next, nil
}
