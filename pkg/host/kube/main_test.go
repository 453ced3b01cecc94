package kube_test

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"
	crlog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/go-logr/logr"

	"github.com/vmdk-csi/vmdk-csi/internal/kubetest"
	"github.com/vmdk-csi/vmdk-csi/pkg/api/v1alpha1"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/hosttest"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/kube"
)

// server is the API that all tests of this package share; each test has disk names of its own, and takes the cluster's
// nodes and datastores as newCluster makes them.
var server *kubetest.Server

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) (code int) {
	crlog.SetLogger(logr.Discard())
	var err error
	if server, err = kubetest.New(); err != nil {
		fmt.Fprintln(os.Stderr, "no Kubernetes API:", err)
		return 1
	}
	defer func() {
		if err := server.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, "stop the API server:", err)
			code = 1
		}
	}()
	return m.Run()
}

// cluster is nodes with a hostd in memory and an agent each, and a controller's client.
type cluster struct {
	t      *testing.T
	admin  client.WithWatch
	client *kube.Client
	memory *hosttest.Memory
	agents map[string]*kube.Agent
	stops  map[string]func()
}

// patience is for a machine that compiles something else meanwhile.
const patience = 60 * time.Second

func connect(t *testing.T, account string) client.WithWatch {
	t.Helper()
	config := server.Config
	if account != "" {
		config = kubetest.As(config, account)
	}
	c, err := kube.Connect(config)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func newCluster(t *testing.T, nodes ...string) *cluster {
	t.Helper()
	c := &cluster{
		t: t, admin: connect(t, ""), memory: hosttest.NewMemory(nodes...), agents: map[string]*kube.Agent{}, stops: map[string]func(){},
	}
	ctx := t.Context()
	if err := kubetest.AddNodes(ctx, server.Config, nodes...); err != nil {
		t.Fatal(err)
	}
	for name, scope := range map[string]string{"local": v1alpha1.ScopeNode, "shared": v1alpha1.ScopeShared} {
		ds := &v1alpha1.Datastore{}
		ds.Name, ds.Spec.Scope = name, scope
		if err := c.admin.Create(ctx, ds); client.IgnoreAlreadyExists(err) != nil {
			t.Fatal(err)
		}
	}
	c.client = kube.NewClient(kube.ClientParams{API: connect(t, "vmdk-csi-controller"), ReleaseWait: time.Second})
	for _, n := range nodes {
		c.startAgent(n, c.memory.On(n))
	}
	c.eventually("every host reports its datastores", func() error {
		stores, err := c.client.Datastores(ctx)
		if err != nil {
			return err
		}
		ready := 0
		for _, d := range stores {
			for _, h := range d.Hosts {
				if h.Ready {
					ready++
				}
			}
		}
		if ready < 2*len(nodes) {
			return fmt.Errorf("ready: %d of %d: %+v", ready, 2*len(nodes), stores)
		}
		return nil
	})
	t.Cleanup(c.clear)
	return c
}

func (c *cluster) startAgent(node string, hostd kube.Hostd) {
	c.t.Helper()
	agent := kube.NewAgent(kube.AgentParams{
		API: connect(c.t, "vmdk-csi-node"), Node: node, Hostd: hostd, DatastoreEvery: 200 * time.Millisecond, Resync: time.Second,
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := agent.Run(ctx); err != nil {
			c.t.Errorf("agent of %s: %v", node, err)
		}
	}()
	c.agents[node] = agent
	c.stops[node] = func() { cancel(); <-done; delete(c.stops, node) }
}

// clear removes what the test left, so that the next one starts with an empty cluster.
func (c *cluster) clear() {
	for _, stop := range c.stops {
		stop()
	}
	c.memory.Close()
	ctx := context.Background()
	var disks v1alpha1.VirtualDiskList
	if err := c.admin.List(ctx, &disks); err != nil {
		c.t.Fatal(err)
	}
	for i := range disks.Items {
		vd := &disks.Items[i]
		c.forget(vd)
		if err := c.admin.Delete(ctx, vd); client.IgnoreNotFound(err) != nil {
			c.t.Error(err)
		}
	}
	var stores v1alpha1.DatastoreList
	if err := c.admin.List(ctx, &stores); err != nil {
		c.t.Fatal(err)
	}
	for i := range stores.Items {
		if err := c.admin.Delete(ctx, &stores.Items[i]); client.IgnoreNotFound(err) != nil {
			c.t.Error(err)
		}
	}
}

func (c *cluster) forget(vd *v1alpha1.VirtualDisk) {
	patch := client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"finalizers":null}}`))
	if err := c.admin.Patch(context.Background(), vd, patch); client.IgnoreNotFound(err) != nil {
		c.t.Error(err)
	}
}

func (c *cluster) eventually(what string, check func() error) {
	c.t.Helper()
	deadline := time.Now().Add(patience)
	var err error
	for time.Now().Before(deadline) {
		if err = check(); err == nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	c.t.Fatalf("%s: not within %s: %v", what, patience, err)
}

func (c *cluster) object(id string) *v1alpha1.VirtualDisk {
	c.t.Helper()
	vd := &v1alpha1.VirtualDisk{}
	if err := c.admin.Get(context.Background(), client.ObjectKey{Name: id}, vd); err != nil {
		c.t.Fatal(err)
	}
	return vd
}

func spec(name, datastore, node string) host.DiskSpec {
	return host.DiskSpec{Name: name, Datastore: datastore, Size: 64 << 20, Format: host.Thin, Type: host.MonolithicFlat, Host: node}
}

func (c *cluster) create(s host.DiskSpec) host.Disk {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	d, err := c.client.Create(ctx, s)
	if err != nil {
		c.t.Fatalf("create %s: %v", s.Name, err)
	}
	return d
}
