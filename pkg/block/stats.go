package block

import (
	"sync/atomic"
	"time"
)

// Operations, the indexes of Counters.Ops.
const (
	OpRead = iota
	OpWrite
	OpFlush
	OpDiscard
	OpZeroes
	opCount
)

// OpNames are the operations as metric labels.
var OpNames = [opCount]string{"read", "write", "flush", "discard", "write_zeroes"}

// OpCounters counts one operation.
type OpCounters struct {
	Requests uint64        `json:"requests"`
	Errors   uint64        `json:"errors"`
	Bytes    uint64        `json:"bytes"` // of requests that succeeded
	Time     time.Duration `json:"time"`  // sum over requests
}

// Counters is what Stats counted since it was made.
type Counters struct {
	Ops      [opCount]OpCounters `json:"ops"`
	InFlight int64               `json:"inFlight"`
}

// Stats is a Device that counts.
type Stats struct {
	d        Device
	ops      [opCount]struct{ requests, errors, bytes, nanos atomic.Uint64 }
	inFlight atomic.Int64
}

// NewStats counts what goes to d.
func NewStats(d Device) *Stats { return &Stats{d: d} }

// Counters reads the counters; each is exact, together they are not one instant.
func (s *Stats) Counters() Counters {
	c := Counters{InFlight: s.inFlight.Load()}
	for i := range s.ops {
		o := &s.ops[i]
		c.Ops[i] = OpCounters{o.requests.Load(), o.errors.Load(), o.bytes.Load(), time.Duration(o.nanos.Load())}
	}
	return c
}

// count runs one request.
func (s *Stats) count(op int, bytes int64, call func() error) error {
	s.inFlight.Add(1)
	start := time.Now()
	err := call()
	o := &s.ops[op]
	o.nanos.Add(uint64(time.Since(start)))
	o.requests.Add(1)
	if err != nil {
		o.errors.Add(1)
	} else {
		o.bytes.Add(uint64(bytes))
	}
	s.inFlight.Add(-1)
	return err
}

// ReadAt implements Device.
func (s *Stats) ReadAt(p []byte, off int64) (n int, err error) {
	err = s.count(OpRead, int64(len(p)), func() error { n, err = s.d.ReadAt(p, off); return err })
	return n, err
}

// WriteAt implements Device.
func (s *Stats) WriteAt(p []byte, off int64) (n int, err error) {
	err = s.count(OpWrite, int64(len(p)), func() error { n, err = s.d.WriteAt(p, off); return err })
	return n, err
}

// Flush implements Device.
func (s *Stats) Flush() error { return s.count(OpFlush, 0, s.d.Flush) }

// Discard implements Device.
func (s *Stats) Discard(off, n int64) error {
	return s.count(OpDiscard, n, func() error { return s.d.Discard(off, n) })
}

// WriteZeroes implements Device.
func (s *Stats) WriteZeroes(off, n int64) error {
	return s.count(OpZeroes, n, func() error { return s.d.WriteZeroes(off, n) })
}

// Size implements Device.
func (s *Stats) Size() int64 { return s.d.Size() }
