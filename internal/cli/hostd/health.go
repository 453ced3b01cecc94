package hostd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

const probeTime = 5 * time.Second

// serveHealth answers over HTTP:
//
//	/healthz  200 while the process runs
//	/readyz   200 once every disk of a predecessor is served here and the socket is this process's. A datastore that is
//	          missing does not matter: the others are served, and an upgrade must not wait for it. /readyz?verbose
//	          names those that are not ready.
//	/metrics  Prometheus
func serveHealth(ctx context.Context, addr string, b *built, m *metrics, ready *atomic.Bool) error {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), m.pause, scraped{b})
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, r *http.Request) {
		if !ready.Load() {
			http.Error(w, "taking over the disks of the former hostd", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
		if !r.URL.Query().Has("verbose") { // the probe does not wait for a datastore that is slow to answer
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), 2*probeTime)
		defer cancel()
		list, err := b.host.Datastores(ctx)
		if err != nil {
			fmt.Fprintf(w, "datastores: %v\n", err)
		}
		for _, d := range list {
			for _, on := range d.Hosts {
				if !on.Ready {
					fmt.Fprintf(w, "datastore %s is not ready: %s\n", d.Name, on.Reason)
				}
			}
		}
	})
	mux.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return fault.Wrap(err, "health endpoint")
	}
	s := &http.Server{Handler: mux, ReadHeaderTimeout: probeTime}
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-ctx.Done()
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), probeTime)
		defer cancel()
		_ = s.Shutdown(last) // what does not end in time is cut off
		_ = s.Close()
	}()
	err = s.Serve(l)
	if errors.Is(err, http.ErrServerClosed) {
		<-done
		return nil
	}
	return fault.Wrap(err, "health endpoint")
}
