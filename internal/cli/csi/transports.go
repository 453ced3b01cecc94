package csi

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/vmdk-csi/vmdk-csi/pkg/node"
)

var (
	descTransport = prometheus.NewDesc("vmdk_csi_disk_transport", "1 for the transport by which a disk of this node is reached now.",
		[]string{"disk", "transport"}, nil)
	descFallbacks = prometheus.NewDesc("vmdk_csi_transport_fallbacks_total",
		"How often a disk of this node came to be reached by a transport behind the one that was asked for first.", nil, nil)
)

// transports asks the Holder at each scrape.
type transports struct{ h *node.Holder }

// Describe implements prometheus.Collector.
func (transports) Describe(ch chan<- *prometheus.Desc) {
	ch <- descTransport
	ch <- descFallbacks
}

// Collect implements prometheus.Collector.
func (t transports) Collect(ch chan<- prometheus.Metric) {
	by, fallbacks := t.h.Transports()
	for id, name := range by {
		ch <- prometheus.MustNewConstMetric(descTransport, prometheus.GaugeValue, 1, id, name)
	}
	ch <- prometheus.MustNewConstMetric(descFallbacks, prometheus.CounterValue, float64(fallbacks))
}
