package driver

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// drainTime is how long calls that run may still take once a server is asked to stop.
const drainTime = 20 * time.Second

// Server is one gRPC server on one unix socket.
type Server struct {
	Endpoint   string // unix:///path, unix:/path or a path
	Identity   csi.IdentityServer
	Controller csi.ControllerServer // may be nil
	Node       csi.NodeServer       // may be nil
	Metrics    *Metrics             // may be nil
	// More registers other services (the kubelet's) with the same socket; may be nil.
	More func(*grpc.Server)
}

// SocketPath is the path in an endpoint. Kinds: Invalid.
func SocketPath(endpoint string) (string, error) {
	path := strings.TrimPrefix(strings.TrimPrefix(endpoint, "unix:"), "//")
	if path == "" || strings.Contains(path, "://") {
		return "", invalid("use unix:///path/to/csi.sock", "endpoint %q is no unix socket", endpoint)
	}
	return path, nil
}

// Serve listens and answers until ctx ends; calls that run then get drainTime to finish.
func (s *Server) Serve(ctx context.Context) error {
	path, err := SocketPath(s.Endpoint)
	if err != nil {
		return err
	}
	// A socket that a killed process left does not disappear by itself.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault.Wrap(err, "remove the old socket %s", path)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return fault.Wrap(err, "listen on %s", path)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return fault.Wrap(err, "make %s private", path)
	}
	return s.serve(ctx, l)
}

func (s *Server) serve(ctx context.Context, l net.Listener) error {
	chain := []grpc.UnaryServerInterceptor{logCalls, catchPanics}
	if s.Metrics != nil {
		chain = append([]grpc.UnaryServerInterceptor{s.Metrics.intercept}, chain...)
	}
	g := grpc.NewServer(grpc.ChainUnaryInterceptor(chain...))
	if s.Identity != nil {
		csi.RegisterIdentityServer(g, s.Identity)
	}
	if s.Controller != nil {
		csi.RegisterControllerServer(g, s.Controller)
	}
	if s.Node != nil {
		csi.RegisterNodeServer(g, s.Node)
	}
	if s.More != nil {
		s.More(g)
	}
	served := make(chan struct{})
	var stopping sync.WaitGroup
	stopping.Go(func() {
		select {
		case <-served:
			return
		case <-ctx.Done():
		}
		hard := time.AfterFunc(drainTime, g.Stop)
		g.GracefulStop()
		hard.Stop()
	})
	err := g.Serve(l)
	close(served)
	stopping.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return fault.Wrap(err, "serve %s", l.Addr())
}
