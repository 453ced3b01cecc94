package csi

import (
	"context"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
	"github.com/vmdk-csi/vmdk-csi/pkg/driver"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/kube"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/wire"
)

// ControllerOptions are the command line of vmdk-csi-controller.
type ControllerOptions struct {
	Endpoint   string
	Kubernetes bool
	Kubeconfig string
	Hostd      string
	Health     string
}

// NewControllerCommand is the program vmdk-csi-controller.
func NewControllerCommand() *cobra.Command {
	o := &ControllerOptions{}
	cmd := &cobra.Command{
		Use:   "vmdk-csi-controller",
		Short: "The CSI controller service: makes claims into disks, by Kubernetes objects or by one hostd",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return o.Run(cmd.Context()) },
	}
	f := cmd.Flags()
	f.StringVar(&o.Endpoint, "endpoint", "unix:///csi/csi.sock", "socket of the CSI services")
	f.BoolVar(&o.Kubernetes, "kubernetes", true, "work through VirtualDisk objects")
	f.StringVar(&o.Kubeconfig, "kubeconfig", "", "how to reach Kubernetes; empty: the pod's service account")
	f.StringVar(&o.Hostd, "hostd", "", "work through this socket of a vmdk-hostd (with --kubernetes=false)")
	f.StringVar(&o.Health, "health-addr", "", "address for /healthz, /readyz and /metrics; empty: none")
	addLogFlags(f)
	return cmd
}

// Run serves until ctx ends.
func (o *ControllerOptions) Run(ctx context.Context) error {
	var p driver.Ports
	ready := func(ctx context.Context) error {
		_, err := p.Datastores(ctx)
		return err
	}
	switch {
	case o.Kubernetes && o.Hostd != "":
		return fault.New(fault.Invalid, "use one of them", "--kubernetes and --hostd are two ways to the hosts")
	case o.Kubernetes:
		api, err := connect(o.Kubeconfig)
		if err != nil {
			return err
		}
		objects := kube.NewClient(kube.ClientParams{API: api, Log: logger("kube")})
		p, ready = objects, objects.Reachable
	case o.Hostd == "":
		return fault.New(fault.Invalid, "name a vmdk-hostd's socket by --hostd", "--kubernetes=false needs a way to a host")
	default:
		hostd := wire.NewClient(o.Hostd)
		defer hostd.Close()
		p = hostd
	}
	server, registry, err := newServer(o.Endpoint, ready)
	if err != nil {
		return err
	}
	server.Controller = driver.NewController(p)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return server.Serve(ctx) })
	if o.Health != "" {
		h := &health{addr: o.Health, endpoint: o.Endpoint, ready: ready, gatherer: registry}
		g.Go(func() error { return h.serve(ctx) })
	}
	klog.InfoS("Controller service started", "endpoint", o.Endpoint, "kubernetes", o.Kubernetes, "version", cli.BuildVersion().Version)
	return g.Wait()
}

// connect makes the Kubernetes client that both programs use. It does not wait for the API server.
func connect(kubeconfig string) (client.WithWatch, error) {
	if kubeconfig == "" {
		return kube.InCluster()
	}
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fault.New(fault.Invalid, "check --kubeconfig", "kubeconfig %s: %w", kubeconfig, err)
	}
	return kube.Connect(config)
}
