package kube_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strconv"
	"sync"
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

// servers are the APIs on which the tests run, one test at a time on each: most of a test is waiting.
var servers = make(chan *lazyServer, apis)

const apis = 4

// lazyServer is started by the first test that gets it; one after the other, since a start is work, and has deadlines.
type lazyServer struct{ *kubetest.Server }

var starts sync.Mutex

func (s *lazyServer) start() (err error) {
	starts.Lock()
	defer starts.Unlock()
	const attempts = 3
	for range attempts {
		if s.Server, err = kubetest.New(); err == nil {
			return nil
		}
	}
	return err
}

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) (code int) {
	crlog.SetLogger(logr.Discard())
	flag.Parse()
	if err := flag.Set("test.parallel", strconv.Itoa(apis)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for range apis {
		servers <- &lazyServer{}
	}
	defer func() {
		for range apis {
			s := <-servers
			if s.Server == nil {
				continue
			}
			if err := s.Stop(); err != nil {
				fmt.Fprintln(os.Stderr, "stop the API server:", err)
				code = 1
			}
		}
	}()
	return m.Run()
}

// takeServer is an API for this test alone, until all that the test cleans up itself is cleaned up. The test runs in parallel
// with others.
func takeServer(t *testing.T) *kubetest.Server {
	t.Helper()
	t.Parallel()
	s := <-servers
	t.Cleanup(func() { servers <- s })
	if s.Server == nil {
		if err := s.start(); err != nil {
			t.Fatalf("no Kubernetes API: %v", err)
		}
	}
	return s.Server
}

// cluster is nodes with a hostd in memory and an agent each, and a controller's client.
type cluster struct {
	t      *testing.T
	server *kubetest.Server
	admin  client.WithWatch
	client *kube.Client
	memory *hosttest.Memory
	agents map[string]*kube.Agent
	stops  map[string]func()
}

// patience is for a machine that compiles something else meanwhile.
const patience = 60 * time.Second

func (c *cluster) connect(account string) client.WithWatch {
	c.t.Helper()
	config := c.server.Config
	if account != "" {
		config = kubetest.As(config, account)
	}
	api, err := kube.Connect(config)
	if err != nil {
		c.t.Fatal(err)
	}
	return api
}

func newCluster(t *testing.T, nodes ...string) *cluster {
	t.Helper()
	c := &cluster{
		t: t, server: takeServer(t), memory: hosttest.NewMemory(nodes...), agents: map[string]*kube.Agent{}, stops: map[string]func(){},
	}
	c.admin = c.connect("")
	ctx := t.Context()
	if err := kubetest.AddNodes(ctx, c.server.Config, nodes...); err != nil {
		t.Fatal(err)
	}
	for name, scope := range map[string]string{"local": v1alpha1.ScopeNode, "shared": v1alpha1.ScopeShared} {
		ds := &v1alpha1.Datastore{}
		ds.Name, ds.Spec.Scope = name, scope
		if err := c.admin.Create(ctx, ds); client.IgnoreAlreadyExists(err) != nil {
			t.Fatal(err)
		}
	}
	c.client = kube.NewClient(kube.ClientParams{API: c.connect("vmdk-csi-controller"), ReleaseWait: time.Second})
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
	c.startAgentWith(kube.AgentParams{Node: node, Hostd: hostd})
}

// startAgentWith starts an agent that looks more often than it would in life.
func (c *cluster) startAgentWith(p kube.AgentParams) {
	c.t.Helper()
	p.API, p.DatastoreEvery, p.Resync = c.connect("vmdk-csi-node"), 200*time.Millisecond, time.Second
	node, agent := p.Node, kube.NewAgent(p)
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
	var snaps v1alpha1.DiskSnapshotList
	if err := c.admin.List(ctx, &snaps); err != nil {
		c.t.Fatal(err)
	}
	for i := range snaps.Items {
		c.forget(&snaps.Items[i])
		if err := c.admin.Delete(ctx, &snaps.Items[i]); client.IgnoreNotFound(err) != nil {
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

func (c *cluster) forget(vd client.Object) {
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
