package driver

import (
	"context"
	"runtime/debug"
	"strings"
	"time"

	"github.com/kubernetes-csi/csi-lib-utils/protosanitizer"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"k8s.io/klog/v2"
)

// Metrics are the driver's own, by method and code.
type Metrics struct {
	calls   *prometheus.CounterVec
	seconds *prometheus.HistogramVec
}

// NewMetrics registers the metrics with r.
func NewMetrics(r prometheus.Registerer) (*Metrics, error) {
	labels := []string{"method", "code"}
	m := &Metrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "vmdk_csi_calls_total",
			Help: "CSI calls answered, by method and gRPC code."}, labels),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "vmdk_csi_call_seconds",
			Help:    "Time from a CSI call to its answer, by method and gRPC code.",
			Buckets: []float64{.001, .005, .025, .1, .5, 1, 2.5, 5, 10, 30, 60, 300}}, labels),
	}
	for _, c := range []prometheus.Collector{m.calls, m.seconds} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *Metrics) intercept(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	start := time.Now()
	resp, err := next(ctx, req)
	method, code := shortMethod(info.FullMethod), codeName(err)
	m.calls.WithLabelValues(method, code).Inc()
	m.seconds.WithLabelValues(method, code).Observe(time.Since(start).Seconds())
	return resp, err
}

func shortMethod(full string) string { return full[strings.LastIndexByte(full, '/')+1:] }

// Questions that orchestrators ask all the time are logged at a higher verbosity.
var chatter = map[string]bool{"Probe": true, "NodeGetCapabilities": true, "ControllerGetCapabilities": true,
	"GetPluginInfo": true, "GetPluginCapabilities": true, "NodeGetVolumeStats": true, "GetCapacity": true, "NodeGetInfo": true,
	"GetInfo": true}

func logCalls(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	method := shortMethod(info.FullMethod)
	level := klog.Level(2)
	if chatter[method] {
		level = 5
	}
	start := time.Now()
	klog.V(level+1).InfoS("Call", "method", method, "request", protosanitizer.StripSecrets(req))
	resp, err := next(ctx, req)
	took := time.Since(start).Round(time.Millisecond)
	if err != nil {
		klog.InfoS("Call failed", "method", method, "took", took, "code", codeName(err), "err", err,
			"request", protosanitizer.StripSecrets(req))
	} else {
		klog.V(level).InfoS("Call answered", "method", method, "took", took, "request", protosanitizer.StripSecrets(req),
			"response", protosanitizer.StripSecrets(resp))
	}
	return resp, err
}

func catchPanics(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
	defer func() {
		if what := recover(); what != nil {
			klog.ErrorS(nil, "Panic", "method", info.FullMethod, "panic", what, "stack", string(debug.Stack()))
			resp, err = nil, panicked(shortMethod(info.FullMethod), what)
		}
	}()
	return next(ctx, req)
}
