package csi

import (
	"context"
	"path/filepath"

	"google.golang.org/grpc"
	"k8s.io/klog/v2"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/vmdk-csi/vmdk-csi/pkg/driver"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// registrar tells the kubelet, which watches a directory for sockets, where the driver's socket is (kubelet,
// pkg/kubelet/pluginmanager/pluginwatcher/README.md).
type registrar struct {
	registration.UnimplementedRegistrationServer
	endpoint string     // as the kubelet sees it: the directory has the same path in the container
	refused  chan error // capacity 1
}

// serveRegistration serves the registration socket until ctx ends or the kubelet refuses the driver. A process that is
// started again makes a new socket, at which the kubelet asks again.
func serveRegistration(ctx context.Context, dir, endpoint string) error {
	path, err := driver.SocketPath(endpoint)
	if err != nil {
		return err
	}
	r := &registrar{endpoint: path, refused: make(chan error, 1)}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s := driver.Server{Endpoint: filepath.Join(dir, driver.Name+"-reg.sock"), More: func(g *grpc.Server) {
		registration.RegisterRegistrationServer(g, r)
	}}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx) }()
	select {
	case err := <-served:
		return err
	case err := <-r.refused:
		cancel(err)
		<-served
		return err
	}
}

func (r *registrar) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{Type: registration.CSIPlugin, Name: driver.Name, Endpoint: r.endpoint,
		SupportedVersions: []string{"1.0.0"}}, nil
}

func (r *registrar) NotifyRegistrationStatus(_ context.Context, s *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	if s.GetPluginRegistered() {
		klog.InfoS("The kubelet registered the driver", "driver", driver.Name)
		return &registration.RegistrationStatusResponse{}, nil
	}
	select {
	case r.refused <- fault.New(fault.Precondition, "see the kubelet's log", "the kubelet refused the driver: %s", s.GetError()):
	default:
	}
	return &registration.RegistrationStatusResponse{}, nil
}
