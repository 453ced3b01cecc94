package kube_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/vmdk-csi/vmdk-csi/pkg/api/v1alpha1"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/kube"
)

// requests notes what a client asks the API server for.
type requests struct {
	mu  sync.Mutex
	all []string
}

func (r *requests) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, fmt.Sprintf(format, args...))
}

// take is what was asked since the last call.
func (r *requests) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer func() { r.all = nil }()
	return r.all
}

func (r *requests) through(c client.WithWatch) client.WithWatch {
	return interceptor.NewClient(c, interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
			r.note("get %T", o)
			return c.Get(ctx, key, o, opts...)
		},
		List: func(ctx context.Context, c client.WithWatch, l client.ObjectList, opts ...client.ListOption) error {
			o := (&client.ListOptions{}).ApplyOptions(opts).AsListOptions()
			r.note("list %T version %q limit %d fields %q", l, o.ResourceVersion, o.Limit, o.FieldSelector)
			return c.List(ctx, l, opts...)
		},
	})
}

func same(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s asks %q, want %q", what, got, want)
	}
}

// What is asked often does not grow with the nodes, and does not make etcd read everything.
func TestRequestsAreFew(t *testing.T) {
	c := newCluster(t, "node-a", "node-b", "node-c")
	r := &requests{}
	counted := kube.NewClient(kube.ClientParams{API: r.through(c.connect("vmdk-csi-controller"))})
	stores, err := counted.Datastores(t.Context())
	if err != nil || len(stores) != 2 || len(stores[0].Hosts) != 3 {
		t.Fatalf("%+v, %v", stores, err)
	}
	same(t, "Datastores", r.take(), `list *v1alpha1.DatastoreList version "" limit 0 fields ""`, `list *v1.NodeList version "0" limit 0 fields ""`)
	if err := counted.Reachable(t.Context()); err != nil {
		t.Fatal(err)
	}
	same(t, "Reachable", r.take(), `list *v1alpha1.DatastoreList version "" limit 1 fields ""`)

	c.stops["node-a"]()
	agent := kube.NewAgent(kube.AgentParams{API: r.through(c.connect("vmdk-csi-node")), Node: "node-a", Hostd: c.memory.On("node-a"),
		DatastoreEvery: time.Hour, Resync: time.Hour})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- agent.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	var asked []string
	c.eventually("the objects are compared", func() error {
		asked = append(asked, r.take()...)
		if !slices.Contains(asked, `list *v1alpha1.VirtualDiskList version "0" limit 0 fields ""`) { // the informer selects
			return fmt.Errorf("asked %q", asked)
		}
		return nil
	})
}

// A host without a Node is no host, whatever the object still says.
func TestDatastoresOfLostNodes(t *testing.T) {
	c := newCluster(t, "node-a", "node-gone")
	c.stops["node-gone"]()
	node := &corev1.Node{}
	node.Name = "node-gone"
	if err := c.admin.Delete(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	c.eventually("its Node is gone", func() error {
		stores, err := c.client.Datastores(t.Context())
		if err != nil {
			return err
		}
		for _, s := range stores {
			if slices.ContainsFunc(s.Hosts, func(h host.DatastoreHost) bool { return h.Host != "node-a" }) || len(s.Hosts) != 1 {
				return fmt.Errorf("%+v", s)
			}
		}
		return nil
	})
	var ds v1alpha1.Datastore
	if err := c.admin.Get(t.Context(), client.ObjectKey{Name: "shared"}, &ds); err != nil || len(ds.Status.Hosts) != 2 {
		t.Fatalf("the object: %+v, %v", ds.Status, err)
	}
}
