package nbd

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

const (
	readAhead   = 64 << 10       // of the stream of requests
	maxInFlight = 2 * maxPayload // bytes of payload of one connection
	maxWorkers  = 32             // of one connection
	smallCall   = 16 << 10       // the longest payload that goes with others in a batch
	maxBatch    = 16             // calls in a batch
	fastCall    = 40_000         // ns: what takes less is not worth another goroutine
	rwBuffers   = 2*maxBatch + 2 // of one reply to a batch
)

// Conn is one connection. Its fields up to the line are set by the handshake and do not change in the transmission phase.
type conn struct {
	s           *Server
	raw         net.Conn // what was accepted: for closing and deadlines
	nc          net.Conn // what is spoken through: raw, or TLS over it
	peer        Peer
	mustTLS     bool
	tls         bool
	clientFlags uint32
	structured  bool
	contexts    []selected
	export      *Export
	exportNamed string
	size        int64
	session     string // guarded by Server.mu

	// ------
	in        *bufio.Reader
	budget    *budget
	jobs      chan *batch
	workers   int // started; of the reader alone
	wg        sync.WaitGroup
	finishing atomic.Bool
	pace      atomic.Int64 // ns that a small call takes, smoothed

	out     sync.Mutex // one reply at a time
	failed  atomic.Bool
	scratch []byte // guarded by out: a TLS record's worth of replies
}

// Call is a request with what came with it.
type call struct {
	request
	payload *buffer // of a write
	errno   uint32  // not 0: refused already
	what    string  // why
}

// Batch is some calls that one goroutine serves after one another, and answers at once.
type batch struct {
	calls []call
	reply replies
}

var batches = sync.Pool{New: func() any { return &batch{calls: make([]call, 0, maxBatch)} }}

func newConn(s *Server, nc net.Conn) *conn {
	c := &conn{s: s, raw: nc, nc: nc, budget: newBudget(maxInFlight), jobs: make(chan *batch)}
	var local bool
	c.peer, local = peerOf(nc)
	c.mustTLS = !local
	if u, ok := nc.(*net.UnixConn); ok {
		_ = u.SetWriteBuffer(1 << 20) // less only costs time
		_ = u.SetReadBuffer(1 << 20)
	}
	return c
}

// Serve is the life of the connection.
func (c *conn) serve() {
	log := c.s.o.Log.With("peer", c.peer.Address)
	defer func() { c.export.close() }()
	greeted := sync.OnceFunc(c.s.greeted)
	defer greeted()
	ctx, cancel := context.WithTimeout(context.Background(), c.s.o.Handshake)
	defer cancel()
	_ = c.raw.SetDeadline(deadline(c.s.o.Handshake))
	if c.mustTLS && c.s.o.TLS == nil {
		log.Warn("nbd: refused: this server has no certificate, and the connection is no unix socket")
		return
	}
	if err := c.handshake(ctx); err != nil {
		if !errors.Is(err, errGone) {
			log.Warn("nbd: no agreement", "err", err)
		}
		return
	}
	greeted()
	if c.export.Revoked != nil {
		stop := context.AfterFunc(c.export.Revoked, func() { c.raw.Close() })
		defer stop()
	}
	_ = c.raw.SetDeadline(time.Time{})
	if c.s.isClosed() {
		return
	}
	c.in = bufio.NewReaderSize(c.nc, readAhead)
	err := c.transmit()
	close(c.jobs)
	c.wg.Wait()
	if err != nil && !c.finishing.Load() {
		log.Warn("nbd: the connection ended", "err", err)
	}
}

// Finish ends the reading of requests; those that were read are answered.
func (c *conn) finish() {
	c.finishing.Store(true)
	_ = c.raw.SetReadDeadline(time.Unix(1, 0))
}

// Transmit reads requests until the peer disconnects (nil) or breaks the rules.
func (c *conn) transmit() error {
	b := batches.Get().(*batch)
	for {
		k, err := c.next()
		if err != nil || k.cmd == cmdDisc {
			c.run(b)
			return err
		}
		alone := k.cmd != cmdRead && k.cmd != cmdWrite || k.length > smallCall || k.flags&cmdFUA != 0
		if alone && len(b.calls) > 0 {
			c.pass(b)
			b = batches.Get().(*batch)
		}
		b.calls = append(b.calls, k)
		if alone || len(b.calls) == maxBatch || c.in.Buffered() < requestSize || c.slow() {
			if alone || c.slow() {
				c.pass(b)
			} else {
				c.run(b)
			}
			b = batches.Get().(*batch)
		}
	}
}

func (c *conn) slow() bool { return c.pace.Load() > fastCall }

// Pass gives the batch to another goroutine, waiting for one if all are busy.
func (c *conn) pass(b *batch) {
	select {
	case c.jobs <- b:
		return
	default:
	}
	if c.workers < maxWorkers {
		c.workers++
		c.wg.Add(1)
		go func() {
			defer c.wg.Done()
			c.run(b)
			for b := range c.jobs {
				c.run(b)
			}
		}()
		return
	}
	c.jobs <- b
}

// Next reads a request and its payload.
func (c *conn) next() (call, error) {
	var k call
	h, err := c.in.Peek(requestSize)
	switch {
	case err != nil && len(h) == 0:
		return call{request: request{cmd: cmdDisc}}, nil // gone between two requests: as good as a disconnect
	case err != nil:
		return k, fault.New(fault.Unavailable, "", "the peer left in the middle of a request: %w", err)
	case !k.decode(h):
		return k, fault.New(fault.Invalid, "", "what the peer sends is no request")
	}
	_, _ = c.in.Discard(requestSize) // it was peeked
	k.errno, k.what = c.check(&k.request)
	n := c.payload(&k)
	if n == 0 {
		return k, nil
	}
	if k.cmd == cmdWrite && k.length > maxPayload {
		return k, fault.New(fault.Invalid, "", "the peer writes %d bytes at once, and was told a limit of %d", k.length, maxPayload)
	}
	c.take(n)
	if k.cmd != cmdWrite {
		return k, nil
	}
	k.payload = getBuffer(int(k.length))
	if err := c.readPayload(k.payload.b[:k.length]); err != nil {
		k.payload.put()
		c.give(n)
		return k, fault.New(fault.Unavailable, "", "the peer left in the middle of a write: %w", err)
	}
	return k, nil
}

// Payload is how many bytes of the budget a call holds.
func (c *conn) payload(k *call) int64 {
	if k.cmd == cmdWrite || k.cmd == cmdRead && k.errno == 0 {
		return int64(k.length)
	}
	return 0
}

// Take waits for room for a call. A batch that was not run yet holds nothing of the server's budget: no connection waits for itself.
func (c *conn) take(n int64) {
	c.budget.take(n)
	if n > smallCall {
		c.s.budget.take(n)
	}
}

func (c *conn) give(n int64) {
	if n > smallCall {
		c.s.budget.give(n)
	}
	c.budget.give(n)
}

func (c *conn) readPayload(p []byte) error {
	if c.in.Buffered() >= len(p) {
		_, err := io.ReadFull(c.in, p)
		return err
	}
	_ = c.raw.SetReadDeadline(deadline(c.s.o.Stall))
	if _, err := io.ReadFull(c.in, p); err != nil {
		return err
	}
	_ = c.raw.SetReadDeadline(time.Time{})
	if c.finishing.Load() { // its deadline was just overwritten
		c.finish()
	}
	return nil
}

// KnownFlags are those that each command may have.
var knownFlags = map[uint16]uint16{
	cmdRead: cmdFUA | cmdDF, cmdWrite: cmdFUA, cmdDisc: 0xffff, cmdFlush: cmdFUA, cmdTrim: cmdFUA, cmdCache: cmdFUA,
	cmdWriteZeroes: cmdFUA | cmdNoHole | cmdFastZero, cmdBlockStatus: cmdFUA | cmdReqOne,
}

// Check is why a request is refused before anything is done, 0 if it is not (proto.md, "Request types", "Error values").
func (c *conn) check(r *request) (errno uint32, why string) {
	if r.cmd == cmdDisc {
		return 0, ""
	}
	known, ok := knownFlags[r.cmd]
	writes := r.cmd == cmdWrite || r.cmd == cmdTrim || r.cmd == cmdWriteZeroes
	outside := r.off > uint64(c.size) || uint64(r.length) > uint64(c.size)-r.off
	mask := uint64(c.export.minBlock(c.size) - 1)
	switch {
	case !ok:
		return errnoInvalid, "unknown command"
	case r.flags&^known != 0, r.flags&cmdDF != 0 && !c.structured:
		return errnoInvalid, "unknown flags"
	case r.cmd == cmdFlush:
		return 0, ""
	case writes && c.export.ReadOnly:
		return errnoPerm, "the export is read-only"
	case outside && (r.cmd == cmdWrite || r.cmd == cmdWriteZeroes):
		return errnoNoSpace, "outside of the disk"
	case outside:
		return errnoInvalid, "outside of the disk"
	case (r.off|uint64(r.length))&mask != 0:
		return errnoInvalid, "not a multiple of the block size"
	case r.cmd == cmdRead && r.length > maxPayload:
		return errnoInvalid, "more than can be read at once"
	case r.cmd == cmdBlockStatus && (len(c.contexts) == 0 || r.length == 0):
		return errnoInvalid, "no context was selected, or no range"
	}
	return 0, ""
}
