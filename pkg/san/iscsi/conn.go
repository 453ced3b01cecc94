package iscsi

import (
	"bufio"
	"cmp"
	"errors"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/scsi"
)

// conn is one connection in its full feature phase. Session.mu guards its fields but p and nc.
type conn struct {
	s  *Session
	nc net.Conn
	p  params

	out     []outgoing // before commands
	writing *task      // whose memory the writer uses now
	cmdSN   uint32
	maxSN   uint32 // the last that the target takes
	statSN  uint32 // the next that the target gives
	heard   time.Time
	pinged  bool
	dead    error
}

// outgoing is a PDU that waits to be written, and the task whose memory it uses.
type outgoing struct {
	pdu *pdu
	of  *task
}

func sortTasks(q []*task) {
	slices.SortFunc(q, func(a, b *task) int { return cmp.Compare(a.order, b.order) })
}

// serve runs a connection until it is lost or the session is closed, and tells why. All its goroutines are gone then.
func (s *Session) serve(nc net.Conn, p params) error {
	c := &conn{s: s, nc: nc, p: p, cmdSN: p.cmdSN, maxSN: p.maxSN, statSN: p.statSN, heard: time.Now()}
	s.mu.Lock()
	s.conn, s.why = c, nil
	s.mu.Unlock()
	var running sync.WaitGroup
	stop := make(chan struct{})
	running.Go(c.write)
	running.Go(func() { c.watch(stop) })
	err := c.read()
	c.lock(func() { c.kill(err) })
	close(stop)
	running.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conn, s.why = nil, c.dead
	return c.dead
}

func (c *conn) lock(f func()) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	f()
}

// kill ends the connection; needs the session's mutex.
func (c *conn) kill(why error) {
	if c.dead == nil {
		c.dead = why
		c.nc.Close()
		c.s.work.Broadcast()
	}
}

// watch pings a target that is silent, and gives up one that stays so or keeps a command too long. It also ends with the session.
func (c *conn) watch(stop chan struct{}) {
	tick := time.NewTicker(max(c.s.c.Timeout/8, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-c.s.ctx.Done():
			c.lock(func() { c.kill(errors.New("the session is closed")) })
			return
		case <-tick.C:
		}
		c.lock(func() {
			silent := time.Since(c.heard)
			for _, t := range c.s.sent {
				if time.Since(t.sentAt) > c.s.c.Command {
					c.kill(fault.New(fault.Timeout, "", "the target has not ended a command in %v", c.s.c.Command))
				}
			}
			switch {
			case silent > c.s.c.Timeout:
				c.kill(fault.New(fault.Timeout, "", "the target is silent for %v", c.s.c.Timeout))
			case silent > c.s.c.Timeout/2 && !c.pinged:
				c.pinged = true
				c.nop(c.s.nextTag(), noTag)
			}
		})
	}
}

// nextTag needs the session's mutex.
func (s *Session) nextTag() uint32 {
	for s.tag++; s.tag == noTag || s.sent[s.tag] != nil; s.tag++ {
	}
	return s.tag
}

// nop queues a NOP-Out (RFC 7143 section 11.18).
func (c *conn) nop(tag, target uint32) {
	p := &pdu{}
	p.head[0], p.head[1] = opNopOut|immediate, final
	c.setLUN(p)
	p.setU32(16, tag)
	p.setU32(20, target)
	c.out = append(c.out, outgoing{pdu: p})
	c.s.work.Signal()
}

func (c *conn) setLUN(p *pdu) { // SAM-5 section 4.7.7: peripheral addressing below 256, flat space above
	lun := c.s.c.LUN
	p.head[9] = byte(lun)
	if lun > 255 {
		p.head[8] = 0x40 | byte(lun>>8)
	}
}

// write is the goroutine that sends.
func (c *conn) write() {
	s := c.s
	for {
		s.mu.Lock()
		for c.dead == nil && len(c.out) == 0 && !c.open() {
			s.work.Wait()
		}
		if c.dead != nil {
			s.mu.Unlock()
			return
		}
		var o outgoing
		if len(c.out) > 0 {
			o, c.out = c.out[0], c.out[1:]
		} else {
			o = c.start()
		}
		o.pdu.setU32(28, c.statSN)
		if op := o.pdu.opcode(); op == opNopOut {
			o.pdu.setU32(24, c.cmdSN)
		}
		c.writing = o.of
		s.mu.Unlock()

		bufs := net.Buffers(c.p.pieces(o.pdu))
		_, err := bufs.WriteTo(c.nc)

		s.mu.Lock()
		c.writing = nil
		if o.of != nil && o.of.finished { // answered while it was being written
			delete(s.sent, o.of.tag)
			s.end(o.of)
		}
		if err != nil {
			c.kill(fault.New(fault.Unavailable, "", "write to the target: %w", err))
		}
		s.mu.Unlock()
	}
}

// open tells that a command may be sent: the window is open (section 4.2.2.1).
func (c *conn) open() bool { return len(c.s.queue) > 0 && int32(c.maxSN-c.cmdSN) >= 0 }

// start makes the PDU of the first command of the queue.
func (c *conn) start() outgoing {
	s := c.s
	t := s.queue[0]
	s.queue = s.queue[1:]
	t.tag, t.sentAt, t.result = s.nextTag(), time.Now(), scsi.Result{}
	s.sent[t.tag] = t
	p := &pdu{}
	c.setLUN(p)
	p.setU32(16, t.tag)
	p.setU32(24, c.cmdSN)
	if t.reset { // section 11.5: LOGICAL UNIT RESET is function 5
		p.head[0], p.head[1] = opTask|immediate, final|5
		p.setU32(20, noTag)
		return outgoing{pdu: p, of: t}
	}
	c.cmdSN++
	p.head[0], p.head[1] = opCommand, final|1 // simple task
	switch {
	case len(t.cmd.In) > 0:
		p.head[1] |= 0x40
		p.setU32(20, uint32(len(t.cmd.In)))
	case len(t.cmd.Out) > 0:
		p.head[1] |= 0x20
		p.setU32(20, uint32(len(t.cmd.Out)))
		if c.p.immediate {
			p.data = t.cmd.Out[:min(len(t.cmd.Out), c.p.firstBurst, c.p.targetSegment)]
		}
	}
	copy(p.head[32:], t.cmd.CDB)
	return outgoing{pdu: p, of: t}
}

// read is the goroutine that receives; it returns why it ended.
func (c *conn) read() error {
	in := bufio.NewReaderSize(c.nc, 64<<10)
	var p pdu
	for {
		if err := c.p.read(in, &p, c.place); err != nil {
			return fault.New(fault.Unavailable, "", "read from the target: %w", err)
		}
		var err error
		c.lock(func() { err = c.handle(&p) })
		if err != nil {
			return err
		}
	}
}

// place is where the data of a Data-In goes: into the memory of its command.
func (c *conn) place(p *pdu) (b []byte, err error) {
	if p.opcode() != opDataIn {
		return nil, nil
	}
	c.lock(func() {
		t := c.s.sent[p.tag()]
		off, n := int(p.u32(40)), p.segment()
		if t == nil || t.finished || off < 0 || off+n > len(t.cmd.In) {
			err = fault.New(fault.Unavailable, "", "the target sent %d bytes at %d that nobody asked for", n, off)
			return
		}
		b = t.cmd.In[off : off+n]
		t.result.N = max(t.result.N, off+n)
	})
	return b, err
}

// handle needs the session's mutex.
func (c *conn) handle(p *pdu) error {
	c.heard, c.pinged = time.Now(), false
	if op := p.opcode(); op != opDataIn || p.head[1]&1 != 0 {
		if newest := p.u32(32); int32(newest-c.maxSN) > 0 {
			c.maxSN = newest
			c.s.work.Signal()
		}
	}
	t := c.s.sent[p.tag()]
	switch op := p.opcode(); {
	case op == opNopIn:
		return c.nopIn(p)
	case op == opAsync && p.head[36] == 0: // sense data about the unit: the next command brings it again
		c.statSN = p.u32(24) + 1
		return nil
	case op == opAsync:
		return fault.New(fault.Unavailable, "", "the target ends the connection (event %d)", p.head[36])
	case op == opReject:
		return fault.New(fault.Unavailable, "", "the target rejects a PDU (reason %#x)", p.head[2])
	case t == nil || t.finished:
		return fault.New(fault.Unavailable, "", "the target answers a command that it was not given (opcode %#x)", op)
	case op == opDataIn && p.head[1]&1 != 0: // with the status
		c.statSN = p.u32(24) + 1
		c.finish(t, scsi.Status(p.head[3]), nil)
	case op == opDataIn:
	case op == opResponse:
		c.statSN = p.u32(24) + 1
		return c.response(t, p)
	case op == opTaskResponse && t.reset:
		c.statSN = p.u32(24) + 1
		if p.head[2] != 0 {
			t.err = fault.New(fault.Unsupported, "", "the target does not reset the unit (response %d)", p.head[2])
		}
		c.finish(t, scsi.Good, nil)
	case op == opR2T:
		return c.transfer(t, p)
	default:
		return fault.New(fault.Unavailable, "", "the target sent opcode %#x", op)
	}
	return nil
}

func (c *conn) nopIn(p *pdu) error {
	if p.tag() != noTag {
		c.statSN = p.u32(24) + 1
	}
	if target := p.u32(20); target != noTag {
		c.nop(noTag, target)
	}
	return nil
}

// response is section 11.4.
func (c *conn) response(t *task, p *pdu) error {
	if p.head[2] != 0 {
		t.err = fault.New(fault.Unavailable, "Try again.", "the target failed at the command (response %#x)", p.head[2])
	}
	var sense []byte
	if len(p.data) > 2 {
		n := int(p.data[0])<<8 | int(p.data[1])
		sense = slices.Clone(p.data[2:min(2+n, len(p.data))])
	}
	c.finish(t, scsi.Status(p.head[3]), sense)
	return nil
}

// finish ends a task, as soon as the writer does not use its memory.
func (c *conn) finish(t *task, status scsi.Status, sense []byte) {
	t.result.Status, t.result.Sense = status, sense
	t.finished = true
	if t.cmd.Saw != nil && t.err == nil {
		t.cmd.Saw(t.result)
	}
	c.out = slices.DeleteFunc(c.out, func(o outgoing) bool { return o.of == t })
	if c.writing != t {
		delete(c.s.sent, t.tag)
		c.s.end(t)
	}
}

// transfer answers a request for data (sections 11.7 and 11.8).
func (c *conn) transfer(t *task, p *pdu) error {
	off, n, target := int(p.u32(40)), int(p.u32(44)), p.u32(20)
	if n <= 0 || off+n > len(t.cmd.Out) || n > c.p.maxBurst {
		return fault.New(fault.Unavailable, "", "the target asks for %d bytes at %d of a command with %d", n, off, len(t.cmd.Out))
	}
	for sn := uint32(0); n > 0; sn++ {
		k := min(n, c.p.targetSegment)
		d := &pdu{data: t.cmd.Out[off : off+k]}
		d.head[0] = opDataOut
		if k == n {
			d.head[1] = final
		}
		c.setLUN(d)
		d.setU32(16, t.tag)
		d.setU32(20, target)
		d.setU32(36, sn)
		d.setU32(40, uint32(off))
		c.out = append(c.out, outgoing{d, t})
		off, n = off+k, n-k
	}
	c.s.work.Signal()
	return nil
}
