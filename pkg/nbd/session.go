package nbd

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// ErrBroken says that a request was not answered, and may or may not have been done.
var errBroken = errors.New("the connection broke")

// Pending is a request on its way.
type pending struct {
	cmd, flags uint16
	off        int64
	length     uint32
	data       []byte // of a write, or where a read goes
	// Keep is told of the acknowledgement; nil for what need not be kept.
	keep   *Client
	memory *buffer // holds data, if it is to be kept
	mark   uint64  // of a flush: what it covers

	// Of the goroutine that receives, until done.
	got     int64 // bytes of a read
	extents []Extent
	err     error
	done    chan error
}

func newPending(cmd uint16, off int64, data []byte) *pending {
	return &pending{cmd: cmd, off: off, data: data, length: uint32(len(data)), done: make(chan error, 1)}
}

// Session is some connections to one instance of a server, which live and die together.
type session struct {
	negotiated
	client *Client
	lines  []*line
	turn   atomic.Uint32
	broken chan struct{} // closed when a connection broke
	gone   chan struct{} // closed when the client has given the session up
	once   sync.Once
	why    error
	wg     sync.WaitGroup // of the receivers
}

// Line is a connection of a session.
type line struct {
	s  *session
	nc net.Conn
	in *bufio.Reader

	send sync.Mutex
	head [requestSize]byte // guarded by send
	vec  [2][]byte         // guarded by send

	mu      sync.Mutex
	cookie  uint64
	waiting map[uint64]*pending
	dead    bool
}

// Open makes a session.
func (c *Client) open(ctx context.Context) (*session, error) {
	address, name := c.o.Address, c.o.Export
	if c.o.Find != nil {
		var err error
		if address, name, err = c.o.Find(ctx); err != nil {
			return nil, err
		}
	}
	c.mu.Lock()
	c.epoch++
	query := fmt.Sprintf("%s%s:%d", sessionQuery, c.id, c.epoch)
	c.mu.Unlock()
	s := &session{client: c, broken: make(chan struct{}), gone: make(chan struct{})}
	fail := func(err error) (*session, error) {
		for _, l := range s.lines {
			l.nc.Close()
		}
		return nil, err
	}
	for i := range c.o.Connections {
		nc, got, err := c.negotiate(ctx, address, name, query)
		if err != nil {
			return fail(c.staleTicket(err))
		}
		s.lines = append(s.lines, &line{s: s, nc: nc, in: bufio.NewReaderSize(nc, readAhead), waiting: map[uint64]*pending{}})
		switch {
		case i == 0:
			s.negotiated = *got
		case s.negotiated != *got:
			return fail(fault.New(fault.Unavailable, "", "the connections to %s do not lead to the same disk: the server was started anew meanwhile", address))
		}
		if s.flags&transMultiConn == 0 {
			break
		}
	}
	if s.flags&(transFlush|transReadOnly) == 0 {
		return fail(fault.New(fault.Unsupported, "Use a server that can flush.", "the NBD server at %s cannot make anything durable", address))
	}
	for _, l := range s.lines {
		s.wg.Add(1)
		go l.receive()
	}
	return s, nil
}

// StaleTicket is the failure of a connection. A name that was found and is refused may be a ticket of a server that was started anew
// since: there is another one to be had, unless this is the first session, whose caller wants to know.
func (c *Client) staleTicket(err error) error {
	if c.o.Find != nil && c.life != nil && (errors.Is(err, fault.Denied) || errors.Is(err, fault.NotFound)) {
		return fault.New(fault.Unavailable, "", "the server refused what was just found: %w", err)
	}
	return err
}

func (s *session) readOnly() bool { return s.flags&transReadOnly != 0 }

// Widen is the range in whole blocks of the server.
func (s *session) widen(off, n, size int64) (from, to int64) {
	b := int64(s.minBlock)
	return off / b * b, min((off+n+b-1)/b*b, size)
}

// Stop breaks the session.
func (s *session) stop(why error) {
	s.once.Do(func() {
		s.why = why
		for _, l := range s.lines {
			l.nc.Close()
		}
		close(s.broken)
	})
}

// Leave says good-bye and breaks the session.
func (s *session) leave() {
	for _, l := range s.lines {
		_ = l.nc.SetWriteDeadline(deadline(time.Second))
		l.send.Lock()
		(&request{cmd: cmdDisc}).encode(l.head[:])
		_, _ = l.nc.Write(l.head[:]) // it need not arrive
		l.send.Unlock()
	}
	s.stop(errBroken)
}

// RoundTrip sends k and waits for its answer.
func (s *session) roundTrip(k *pending) error {
	l := s.lines[s.turn.Add(1)%uint32(len(s.lines))]
	l.mu.Lock()
	if l.dead {
		l.mu.Unlock()
		return errBroken
	}
	l.cookie++
	cookie := l.cookie
	k.got, k.extents, k.err = 0, nil, nil
	l.waiting[cookie] = k
	l.mu.Unlock()

	r := request{flags: k.flags, cmd: k.cmd, cookie: cookie, off: uint64(k.off), length: k.length}
	l.send.Lock()
	r.encode(l.head[:])
	var err error
	if k.cmd == cmdWrite {
		l.vec = [2][]byte{l.head[:], k.data}
		vec := net.Buffers(l.vec[:])
		_, err = vec.WriteTo(l.nc)
	} else {
		_, err = l.nc.Write(l.head[:])
	}
	l.send.Unlock()
	if err != nil {
		s.stop(err)
	}
	return <-k.done
}

// Receive reads answers until the connection breaks.
func (l *line) receive() {
	defer l.s.wg.Done()
	for {
		if err := l.next(); err != nil {
			l.s.stop(err)
			break
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dead = true
	for _, k := range l.waiting {
		k.done <- errBroken
	}
	l.waiting = nil
}

func (l *line) find(cookie uint64) (*pending, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if k := l.waiting[cookie]; k != nil {
		return k, nil
	}
	return nil, fault.New(fault.Unavailable, "", "the server answers what nobody asked")
}

// Finish tells the caller.
func (l *line) finish(cookie uint64, k *pending) {
	l.mu.Lock()
	delete(l.waiting, cookie)
	l.mu.Unlock()
	if k.err == nil && k.keep != nil {
		k.keep.acknowledged(k)
	}
	k.done <- k.err
}

// Next reads one answer, or one piece of it.
func (l *line) next() error {
	b, err := l.in.Peek(simpleSize)
	if err != nil {
		return err
	}
	magic := binary.BigEndian.Uint32(b)
	switch magic {
	case magicSimple:
		errno, cookie := binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint64(b[8:])
		_, _ = l.in.Discard(simpleSize) // it was peeked
		k, err := l.find(cookie)
		if err != nil {
			return err
		}
		return l.simple(cookie, k, errno)
	case magicStructured:
		if b, err = l.in.Peek(structuredSize); err != nil {
			return err
		}
		h := chunkHead{binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint16(b[6:]), binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint32(b[16:])}
		_, _ = l.in.Discard(structuredSize) // it was peeked
		return l.chunk(h)
	}
	return fault.New(fault.Unavailable, "", "what the server sends is no answer: %#x", magic)
}

func (l *line) simple(cookie uint64, k *pending, errno uint32) error {
	if errno == 0 && k.cmd == cmdBlockStatus || errno == 0 && k.cmd == cmdRead && l.s.structured {
		return fault.New(fault.Unavailable, "", "the server answers without saying what was asked")
	}
	k.err = faultOf(errno, commandNames[k.cmd], "")
	if errno == 0 && k.cmd == cmdRead {
		if _, err := io.ReadFull(l.in, k.data); err != nil {
			return err
		}
	}
	l.finish(cookie, k)
	return nil
}

type chunkHead struct {
	flags, kind uint16
	cookie      uint64
	length      uint32
}

// MaxChunk bounds what a server may send besides data.
const maxChunk = 1 << 20

// Chunk reads a piece of a structured reply (proto.md, "Structured reply chunk types").
func (l *line) chunk(h chunkHead) error {
	k, err := l.find(h.cookie)
	if err != nil {
		return err
	}
	if h.kind == chunkData {
		err = l.dataChunk(k, h.length)
	} else {
		if h.length > maxChunk {
			return fault.New(fault.Unavailable, "", "the server sends a chunk of %d bytes", h.length)
		}
		b := make([]byte, h.length)
		if _, err := io.ReadFull(l.in, b); err != nil {
			return err
		}
		err = k.smallChunk(h.kind, b, l.s.contextID)
	}
	if err != nil {
		return err
	}
	if h.flags&chunkDone == 0 {
		return nil
	}
	if k.err == nil && k.cmd == cmdRead && k.got != int64(k.length) {
		return fault.New(fault.Unavailable, "", "the server sent %d of %d bytes", k.got, k.length)
	}
	l.finish(h.cookie, k)
	return nil
}

func (l *line) dataChunk(k *pending, n uint32) error {
	var b [8]byte
	if n <= 8 {
		return fault.New(fault.Unavailable, "", "the server sends an empty chunk")
	}
	if _, err := io.ReadFull(l.in, b[:]); err != nil {
		return err
	}
	p, err := k.part(binary.BigEndian.Uint64(b[:]), n-8)
	if err != nil {
		return err
	}
	_, err = io.ReadFull(l.in, p)
	return err
}

// Part is where n bytes of the disk at off belong.
func (k *pending) part(off uint64, n uint32) ([]byte, error) {
	at := off - uint64(k.off)
	if k.cmd != cmdRead || off < uint64(k.off) || at > uint64(k.length) || uint64(n) > uint64(k.length)-at {
		return nil, fault.New(fault.Unavailable, "", "the server sends data that nobody asked")
	}
	k.got += int64(n)
	return k.data[at : at+uint64(n)], nil
}

func (k *pending) smallChunk(kind uint16, b []byte, context uint32) error {
	p := parser{b: b}
	switch {
	case kind == chunkNone && len(b) == 0:
	case kind == chunkHole:
		off, n := p.u64(), p.u32()
		if p.done() {
			part, err := k.part(off, n)
			clear(part)
			return err
		}
	case kind == chunkBlockStatus && k.cmd == cmdBlockStatus:
		if p.u32() == context && len(p.b)%8 == 0 {
			for len(p.b) > 0 {
				k.extents = append(k.extents, Extent{int64(p.u32()), p.u32()})
			}
		}
	case kind&(1<<15) != 0: // an error, also of a kind that we do not know
		errno, n := p.u32(), p.u16()
		text := string(p.take(uint32(n)))
		if p.bad || errno == 0 {
			return fault.New(fault.Unavailable, "", "the server sends an error that is none")
		}
		if k.err == nil {
			k.err = faultOf(errno, commandNames[k.cmd], text)
		}
		return nil
	default:
		return fault.New(fault.Unavailable, "", "the server sends a chunk of the unknown kind %d", kind)
	}
	if p.bad {
		return fault.New(fault.Unavailable, "", "the server sends a chunk that is too short")
	}
	return nil
}
