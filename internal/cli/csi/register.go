package csi

import (
	"context"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/grpc"
	"k8s.io/klog/v2"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/vmdk-csi/vmdk-csi/pkg/driver"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// registrar tells the kubelet, which watches a directory for sockets, where the driver's socket is (kubelet,
// pkg/kubelet/pluginmanager/pluginwatcher/README.md).
//
// A kubelet that cannot register the driver (the API server is away) says so and asks no more at that socket: it counts
// as seen before it is registered (pkg/kubelet/pluginmanager/operationexecutor/operation_generator.go,
// GenerateRegisterPluginFunc). At a new socket it asks again. The upstream registrar ends itself for that; this process
// holds descriptors of disks, and makes a new socket instead.
type registrar struct {
	registration.UnimplementedRegistrationServer
	socket string        // the driver's, as the kubelet sees it: the directory has the same path in the container
	dir    string        // that the kubelet watches
	pause  time.Duration // before the first new socket; it doubles up to longestPause

	told chan struct{} // capacity 1: the kubelet said something

	mu      sync.Mutex
	trouble error // why the driver is not registered; nil: it is, or nobody said otherwise
}

const longestPause = time.Minute

func newRegistrar(dir, socket string) *registrar {
	return &registrar{socket: socket, dir: dir, pause: time.Second, told: make(chan struct{}, 1)}
}

// serve serves the registration socket until ctx ends. Whatever fails is told and tried again: without a registration
// there are no new volumes on this node, but those that are there go on.
func (r *registrar) serve(ctx context.Context) {
	pause := r.pause
	for ctx.Err() == nil {
		err := r.serveSocket(ctx, &pause)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			r.set(fault.Wrap(err, "the kubelet cannot ask for the driver"))
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
		}
		pause = min(2*pause, longestPause)
	}
}

// serveSocket serves one socket until ctx ends, or for a pause after the kubelet refused the driver there.
func (r *registrar) serveSocket(ctx context.Context, pause *time.Duration) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := driver.Server{Endpoint: filepath.Join(r.dir, driver.Name+"-reg.sock"), More: func(g *grpc.Server) {
		registration.RegisterRegistrationServer(g, r)
	}}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx) }()
	var again <-chan time.Time
	for {
		select {
		case err := <-served:
			return err
		case <-r.told:
			again = nil
			if r.refused() == nil {
				*pause = r.pause
			} else {
				again = time.After(*pause)
			}
		case <-again:
			cancel()
			return <-served
		}
	}
}

// refused is why the driver is not registered, nil if it is or if nobody has said otherwise.
func (r *registrar) refused() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.trouble
}

func (r *registrar) set(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		klog.ErrorS(err, "The driver is not registered; trying again", "driver", driver.Name)
	} else {
		klog.InfoS("The kubelet registered the driver", "driver", driver.Name)
	}
	r.trouble = err
}

func (r *registrar) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{Type: registration.CSIPlugin, Name: driver.Name, Endpoint: r.socket,
		SupportedVersions: []string{"1.0.0"}}, nil
}

func (r *registrar) NotifyRegistrationStatus(_ context.Context, s *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	var err error
	if !s.GetPluginRegistered() {
		err = fault.New(fault.Precondition, "see the kubelet's log", "the kubelet refused the driver: %s", s.GetError())
	}
	r.set(err)
	select {
	case r.told <- struct{}{}:
	default: // not looked at yet, and then this is seen
	}
	return &registration.RegistrationStatusResponse{}, nil
}
