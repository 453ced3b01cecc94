package hostd

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics is what is observed as it happens.
type metrics struct{ pause prometheus.Histogram }

func newMetrics() *metrics {
	return &metrics{pause: prometheus.NewHistogram(prometheus.HistogramOpts{
		Name:    "vmdk_hostd_snapshot_pause_seconds",
		Help:    "How long snapshots kept the requests of attached disks waiting.",
		Buckets: prometheus.ExponentialBuckets(0.001, 2, 14), // 1 ms to 8 s
	})}
}

func (m *metrics) paused(d time.Duration) { m.pause.Observe(d.Seconds()) }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("vmdk_hostd_"+name, help, labels, nil)
}

var (
	descAttached = desc("attached_disks", "Disks that are attached on this node.")
	descRestarts = desc("worker_restarts", "Restarts of a disk's worker since its attach.", "disk")
	descReady    = desc("datastore_ready", "1 if the datastore can be used.", "datastore")
	descTotal    = desc("datastore_size_bytes", "Size of the datastore.", "datastore")
	descFree     = desc("datastore_free_bytes", "Free space of the datastore.", "datastore")

	descTransport = desc("disk_transport", "1 for the transport that reaches an attached disk now.", "disk", "transport")
	descSkipped   = desc("disk_transport_skipped", "1 for a transport that was asked for before it and does not serve.", "disk", "transport", "kind")
	descFalls     = desc("transport_falls_total", "Changes of attached disks from their LUN to the network.")
	descOwner     = desc("lun_owner", "1 if this host is the metadata server of the datastore's LUN.", "datastore")
	descMaps      = desc("block_maps", "Block maps that nodes have of the LUN that this host serves.", "datastore")

	descSnapshots = desc("snapshots_total", "Snapshots that were made.")
	descDeleted   = desc("snapshots_deleted_total", "Snapshots that were deleted.")
	descMerges    = desc("consolidations_total", "Pairs of links that were merged into one.")
	descCopied    = desc("consolidated_bytes_total", "Bytes that merges of links copied.")
	descFreed     = desc("freed_bytes_total", "Bytes that merges of links gave back to their datastores.")
)

// scraped asks the host at each scrape.
type scraped struct{ b *built }

// Describe implements prometheus.Collector.
func (m scraped) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descAttached, descRestarts, descReady, descTotal, descFree, descSnapshots, descDeleted, descMerges, descCopied, descFreed,
		descTransport, descSkipped, descFalls, descOwner, descMaps,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m scraped) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), probeTime)
	defer cancel()
	c := m.b.luns.counters(m.b.base.Counters())
	for d, n := range map[*prometheus.Desc]int64{
		descSnapshots: c.Snapshots, descDeleted: c.SnapshotsDeleted, descMerges: c.Merges, descCopied: c.Copied, descFreed: c.Freed,
	} {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n))
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	if atts, err := m.b.host.Attachments(ctx); err == nil {
		gauge(descAttached, float64(len(atts)))
		for _, a := range atts {
			gauge(descRestarts, float64(a.Restarts), a.ID)
			gauge(descTransport, 1, a.ID, a.Transport)
			for _, skip := range a.Skipped {
				gauge(descSkipped, 1, a.ID, skip.Transport, string(skip.Kind))
			}
		}
	}
	m.collectLUNs(ch, gauge)
	list, err := m.b.host.Datastores(ctx)
	if err != nil {
		return
	}
	for _, d := range list {
		for _, on := range d.Hosts {
			ready := 0.0
			if on.Ready {
				ready = 1
				gauge(descTotal, float64(on.Total), d.Name)
				gauge(descFree, float64(on.Free), d.Name)
			}
			gauge(descReady, ready, d.Name)
		}
	}
}

// collectLUNs tells which LUNs are served here.
func (m scraped) collectLUNs(ch chan<- prometheus.Metric, gauge func(*prometheus.Desc, float64, ...string)) {
	if m.b.luns == nil {
		return
	}
	ch <- prometheus.MustNewConstMetric(descFalls, prometheus.CounterValue, float64(m.b.remote.falls.Load()))
	for name, o := range m.b.luns.owners {
		s, err := o.Server()
		if err != nil {
			gauge(descOwner, 0, name)
			continue
		}
		gauge(descOwner, 1, name)
		gauge(descMaps, float64(len(s.Maps().Outstanding())), name)
	}
}
