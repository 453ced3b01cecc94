package csi

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
	"github.com/vmdk-csi/vmdk-csi/pkg/driver"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/kube"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/wire"
	"github.com/vmdk-csi/vmdk-csi/pkg/node"
)

// NodeOptions are the command line of vmdk-csi-node.
type NodeOptions struct {
	Endpoint   string
	Node       string
	Hostd      string
	PluginDir  string
	LinkDir    string
	Register   string
	Health     string
	Kubernetes bool
	Kubeconfig string
	Controller bool
}

// DefaultPluginDir is where the kubelet keeps a driver's files.
const DefaultPluginDir = "/var/lib/kubelet/plugins/" + driver.Name

// DefaultHostd is hostd's socket.
const DefaultHostd = "/run/vmdk-csi/hostd.sock"

// drainTime is how long the node waits for hostd to hold every disk before it ends.
const drainTime = 30 * time.Second

// NewNodeCommand is the program vmdk-csi-node.
func NewNodeCommand() *cobra.Command {
	o := &NodeOptions{}
	cmd := &cobra.Command{
		Use:   "vmdk-csi-node",
		Short: "The CSI node service: makes disks that the node's hostd serves usable for workloads",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return o.Run(cmd.Context()) },
	}
	name, _ := os.Hostname()
	if n := os.Getenv("NODE_NAME"); n != "" {
		name = n
	}
	f := cmd.Flags()
	f.StringVar(&o.Endpoint, "endpoint", "unix://"+DefaultPluginDir+"/csi.sock", "socket of the CSI services")
	f.StringVar(&o.Node, "node-name", name, "this node's name (default: $NODE_NAME, or the host's name)")
	f.StringVar(&o.Hostd, "hostd", DefaultHostd, "socket of the node's vmdk-hostd")
	f.StringVar(&o.PluginDir, "plugin-dir", DefaultPluginDir, "directory for the journal of staged volumes")
	f.StringVar(&o.LinkDir, "link-dir", "/run/vmdk-csi/by-id", "directory for the links to devices by disk uuid")
	f.StringVar(&o.Register, "kubelet-registration-dir", "", "the kubelet's plugins_registry; empty: no registration")
	f.StringVar(&o.Health, "health-addr", "", "address for /healthz, /readyz and /metrics; empty: none")
	f.BoolVar(&o.Kubernetes, "kubernetes", true, "work on the objects addressed to this node, and write their status")
	f.StringVar(&o.Kubeconfig, "kubeconfig", "", "how to reach Kubernetes; empty: the pod's service account")
	f.BoolVar(&o.Controller, "controller", false, "also serve the CSI controller service, by the node's own hostd (without Kubernetes)")
	addLogFlags(f)
	cmd.CompletionOptions.DisableDefaultCmd = true
	cmd.AddCommand(newFreezeHelperCommand())
	return cmd
}

func (o *NodeOptions) check() error {
	switch {
	case o.Node == "":
		return fault.New(fault.Invalid, "set --node-name", "the node has no name")
	case o.Kubernetes && o.Controller:
		return fault.New(fault.Invalid, "use --kubernetes=false, or run vmdk-csi-controller",
			"--controller serves volumes of one hostd, --kubernetes those of a cluster")
	}
	return nil
}

// Run serves until ctx ends and everything is handed over.
func (o *NodeOptions) Run(ctx context.Context) error {
	if err := o.check(); err != nil {
		return err
	}
	hostd := wire.NewClient(o.Hostd)
	defer hostd.Close()
	var recorder node.Recorder
	var agent *kube.Agent
	var service *node.Service // before the agent runs
	if o.Kubernetes {
		api, err := connect(o.Kubeconfig)
		if err != nil {
			return err
		}
		freeze := freezer(func(ctx context.Context, id string, deadline time.Time) (func(context.Context) error, error) {
			return service.Freeze(ctx, id, deadline)
		})
		agent = kube.NewAgent(kube.AgentParams{API: api, Node: o.Node, Hostd: hostd, Freezer: freeze, Log: logger("agent")})
		recorder = agent
	}
	stops, err := node.NewFreezer(ctx, node.FreezerConfig{Dir: filepath.Join(o.PluginDir, "freezes"), Command: freezeHelperCommand(),
		Log: logger("freezer")})
	if err != nil {
		return err
	}
	defer stops.Close()
	devices := Devices{Node: o.Node}
	holder := node.NewHolder(hostd, devices.Has, recorder, logger("holder"))
	defer holder.Close()
	service, err = node.New(node.Config{JournalDir: filepath.Join(o.PluginDir, "volumes"), LinkDir: o.LinkDir, Hostd: hostd,
		Holder: holder, Devices: devices, Mounts: node.NewKernelMounts(), FileSystems: node.Tools{}, Partitions: node.Tables{},
		Freezer: stops, Recorder: recorder, Log: logger("node")})
	if err != nil {
		return err
	}
	ready := func(context.Context) error { return holder.Reachable() }
	server, registry, err := newServer(o.Endpoint, ready)
	if err != nil {
		return err
	}
	if err := registry.Register(transports{holder}); err != nil {
		return err
	}
	server.Node = &driver.Node{ID: o.Node, Volumes: service}
	if o.Controller {
		server.Controller = driver.NewController(hostd)
	}

	// What the servers stand on ends after them.
	below, stopBelow := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBelow()
	var base errgroup.Group
	base.Go(func() error { holder.Run(below); return nil })
	if agent != nil {
		base.Go(func() error { return agent.Run(below) })
	}
	klog.InfoS("Node service started", "node", o.Node, "endpoint", o.Endpoint, "hostd", o.Hostd, "version", cli.BuildVersion().Version)
	err = o.serve(ctx, server, registry, ready)
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer cancel()
	if derr := holder.Drain(drain); derr != nil {
		klog.ErrorS(derr, "Ending without hostd holding every disk")
	}
	stopBelow()
	if berr := base.Wait(); err == nil {
		err = berr
	}
	return err
}

// serve serves who calls from outside, until ctx ends or a server fails.
func (o *NodeOptions) serve(ctx context.Context, server *driver.Server, registry *prometheus.Registry, ready func(context.Context) error) error {
	path, err := driver.SocketPath(o.Endpoint)
	if err != nil {
		return err
	}
	front, ctx := errgroup.WithContext(ctx)
	front.Go(func() error { return server.Serve(ctx) })
	alive := ready
	if o.Register != "" {
		r := newRegistrar(o.Register, path)
		front.Go(func() error { r.serve(ctx); return nil })
		alive = func(ctx context.Context) error { return errors.Join(ready(ctx), r.refused()) }
	}
	if o.Health != "" {
		h := &health{addr: o.Health, endpoint: o.Endpoint, ready: alive, gatherer: registry}
		front.Go(func() error { return h.serve(ctx) })
	}
	return front.Wait()
}

func newServer(endpoint string, ready func(context.Context) error) (*driver.Server, *prometheus.Registry, error) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	metrics, err := driver.NewMetrics(registry)
	if err != nil {
		return nil, nil, err
	}
	var identity csispec.IdentityServer = &driver.Identity{Version: cli.BuildVersion().Version, Ready: ready}
	return &driver.Server{Endpoint: endpoint, Identity: identity, Metrics: metrics}, registry, nil
}
