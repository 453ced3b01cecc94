package main

import (
	"math"
	"slices"
	"time"
)

// Percentile is the p-th percentile (0..100) by nearest rank: always one of the values. 0 of nothing.
func percentile[T int64 | float64 | time.Duration](values []T, p float64) T {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	rank := int(math.Ceil(p / 100 * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// Median is the 50th percentile.
func median[T int64 | float64 | time.Duration](values []T) T { return percentile(values, 50) }

// Op is one request of a load; times are since the load began.
type op struct{ start, end time.Duration }

func (o op) latency() time.Duration { return o.end - o.start }

// Window is what happened to a load within a stretch of time.
type window struct {
	ops       int             // ended in it
	latencies []time.Duration // of what ended in it
	longest   time.Duration   // of what was under way at any time in it
	length    time.Duration
}

// Look makes the window [from, to) of ops.
func look(ops []op, from, to time.Duration) window {
	w := window{length: to - from}
	for _, o := range ops {
		if o.end <= from || o.start >= to {
			continue
		}
		w.longest = max(w.longest, o.latency())
		if o.end < to {
			w.ops++
			w.latencies = append(w.latencies, o.latency())
		}
	}
	return w
}

// Rate is the requests per second.
func (w window) rate() float64 {
	if w.length <= 0 {
		return 0
	}
	return float64(w.ops) / w.length.Seconds()
}

// Speed is bytes in a time as MiB/s.
func speed(bytes int64, d time.Duration) float64 {
	if d <= 0 {
		return 0
	}
	return float64(bytes) / (1 << 20) / d.Seconds()
}
