package csi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/vmdk-csi/vmdk-csi/pkg/driver"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// health answers over HTTP:
//
//	/healthz  200 while the driver's own socket answers. What else is wrong stands in the text: a kubelet that killed
//	          the node plugin because hostd is away would take the disks' last holder.
//	/readyz   200 while everything works that the process needs (the CSI Probe)
//	/metrics  Prometheus
type health struct {
	addr     string
	endpoint string
	ready    func(context.Context) error // what stands in the text of /healthz
	gatherer prometheus.Gatherer
}

const probeTime = 5 * time.Second

func (h *health) serve(ctx context.Context) error {
	path, err := driver.SocketPath(h.endpoint)
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"))
	if err != nil {
		return fault.Wrap(err, "health endpoint")
	}
	defer conn.Close()
	identity := csispec.NewIdentityClient(conn)
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), probeTime)
		defer cancel()
		if _, err := identity.GetPluginInfo(ctx, &csispec.GetPluginInfoRequest{}); err != nil {
			http.Error(w, "the driver's socket does not answer: "+err.Error(), http.StatusServiceUnavailable)
			return
		}
		if err := h.ready(ctx); err != nil {
			fmt.Fprintf(w, "alive, not ready: %v\n", err)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), probeTime)
		defer cancel()
		if _, err := identity.Probe(ctx, &csispec.ProbeRequest{}); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.Handle("/metrics", promhttp.HandlerFor(h.gatherer, promhttp.HandlerOpts{}))
	return serveHTTP(ctx, h.addr, mux)
}

func serveHTTP(ctx context.Context, addr string, handler http.Handler) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return fault.Wrap(err, "health endpoint")
	}
	s := &http.Server{Handler: handler, ReadHeaderTimeout: probeTime}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	select {
	case err := <-served:
		return fault.Wrap(err, "health endpoint")
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), probeTime)
	defer cancel()
	err = s.Shutdown(stop)
	if serr := <-served; !errors.Is(serr, http.ErrServerClosed) {
		err = errors.Join(err, serr)
	}
	return fault.Wrap(err, "stop the health endpoint")
}
