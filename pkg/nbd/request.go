package nbd

import (
	"encoding/binary"
	"errors"
	"io"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

const (
	// Reads from that length on are looked at for holes; below, asking costs more than sending zeros.
	sparseRead = 64 << 10
	// A hole that is shorter is sent as data.
	leastHole = 32 << 10
	// What is sent as one piece of a longer read.
	readPiece = 256 << 10
	// Descriptors in one answer to a BLOCK_STATUS; a client asks on from where it ends.
	maxExtents = 4096
	// How much of a CACHE request is read.
	maxCache = 64 << 20
)

// Run serves the calls of a batch and answers them.
func (c *conn) run(b *batch) {
	if len(b.calls) > 0 {
		k := &b.calls[0]
		small := k.length <= smallCall && (k.cmd == cmdRead || k.cmd == cmdWrite) && k.flags&cmdFUA == 0
		begin := time.Now()
		r := &b.reply
		r.reset()
		for i := range b.calls {
			k := &b.calls[i]
			c.do(k, r)
			k.payload.put()
		}
		if small {
			c.measure(time.Since(begin), len(b.calls))
		}
		c.send(r)
		for i := range b.calls {
			if n := c.payload(&b.calls[i]); n > 0 {
				c.give(n)
			}
		}
	}
	clear(b.calls)
	b.calls = b.calls[:0]
	batches.Put(b)
}

// Measure smooths how long small calls take. One that stands out counts as ten times the limit, so that it is soon forgotten.
func (c *conn) measure(d time.Duration, calls int) {
	each := min(int64(d)/int64(calls), 10*fastCall)
	c.pace.Store((c.pace.Load()*7 + each) / 8)
}

// Do serves one call and appends its reply.
func (c *conn) do(k *call, r *replies) {
	switch {
	case k.errno != 0:
		c.fail(k, r, k.errno, k.what)
	case k.cmd == cmdRead:
		c.read(k, r)
	case k.cmd == cmdBlockStatus:
		c.blockStatus(k, r)
	default:
		if err := c.change(k); err != nil {
			c.fail(k, r, errnoOf(err), c.problem(k, err))
			return
		}
		r.simple(k.cookie, 0) // also where structured replies are on: there is no payload (proto.md, "Structured reply chunk message")
	}
}

// Problem logs what went wrong on our side and is what the peer is told.
func (c *conn) problem(k *call, err error) string {
	c.s.o.Log.Error("nbd: a request failed", "peer", c.peer.Address, "command", commandNames[k.cmd], "offset", k.off, "length", k.length, "err", err)
	return err.Error()
}

func (c *conn) fail(k *call, r *replies, errno uint32, why string) {
	if c.structured && (k.cmd == cmdRead || k.cmd == cmdBlockStatus || why != "") {
		r.failure(k.cookie, errno, why)
		return
	}
	r.simple(k.cookie, errno)
}

// Change does what has no answer but yes or no.
func (c *conn) change(k *call) (err error) {
	d, off, n := c.export.Device, int64(k.off), int64(k.length)
	switch k.cmd {
	case cmdFlush:
		return d.Flush()
	case cmdCache:
		return c.cache(off, min(n, maxCache))
	case cmdWrite:
		_, err = d.WriteAt(k.payload.b[:n], off)
	case cmdTrim:
		if err = d.Discard(off, n); errors.Is(err, fault.Unsupported) {
			err = nil // a hint that cannot be followed (proto.md, "NBD_CMD_TRIM")
		}
	case cmdWriteZeroes:
		err = c.zeroes(k.flags, off, n)
	}
	if err == nil && k.flags&cmdFUA != 0 {
		err = d.Flush()
	}
	return err
}

// Zeroes gives the space back, unless that is not wanted or not possible. None of the ways writes zeros byte by byte but
// WriteZeroes where the file system knows no other; who asks for a fast way is refused then.
func (c *conn) zeroes(flags uint16, off, n int64) error {
	d := c.export.Device
	if flags&cmdNoHole == 0 {
		if err := d.Discard(off, n); !errors.Is(err, fault.Unsupported) {
			return err
		}
		if flags&cmdFastZero != 0 {
			return fault.New(fault.Unsupported, "", "the file system cannot punch holes: writing zeros is no faster than that")
		}
	}
	return d.WriteZeroes(off, n)
}

func (c *conn) cache(off, n int64) error {
	b := getBuffer(int(min(n, 1<<20)))
	defer b.put()
	for n > 0 && !c.failed.Load() {
		p := b.b[:min(n, int64(len(b.b)))]
		if err := c.readAt(p, off); err != nil {
			return err
		}
		off, n = off+int64(len(p)), n-int64(len(p))
	}
	return nil
}

func (c *conn) readAt(p []byte, off int64) error {
	n, err := c.export.Device.ReadAt(p, off)
	if n == len(p) && (err == nil || errors.Is(err, io.EOF)) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = fault.New(fault.Internal, "", "%d of %d bytes were read", n, len(p))
	}
	return err
}

func (c *conn) read(k *call, r *replies) {
	off, n := int64(k.off), int64(k.length)
	if k.flags&cmdFUA != 0 { // proto.md: what is read must be durable
		if err := c.export.Device.Flush(); err != nil {
			c.fail(k, r, errnoOf(err), c.problem(k, err))
			return
		}
	}
	if c.structured && n >= sparseRead && k.flags&cmdDF == 0 {
		c.readPieces(k, r, off, n)
		return
	}
	b := getBuffer(int(n))
	p := b.b[:n]
	if err := c.readAt(p, off); err != nil {
		b.put()
		c.fail(k, r, errnoOf(err), c.problem(k, err))
		return
	}
	switch {
	case !c.structured:
		r.simple(k.cookie, 0)
	case n == 0: // a chunk of data may not be empty
		r.chunk(k.cookie, chunkDone, chunkNone, 0, 0)
	default:
		binary.BigEndian.PutUint64(r.chunk(k.cookie, chunkDone, chunkData, 8+len(p), 8), uint64(off))
	}
	r.data(b, p)
}

// ReadPieces answers a read by chunks, each sent before the next is read: holes as holes, data while it is still in the
// processor's cache.
func (c *conn) readPieces(k *call, r *replies, off, n int64) {
	end := off + n
	err := c.pieces(off, n, func(hole bool, off, n int64) error {
		for n > 0 {
			if c.send(r); c.failed.Load() {
				return errGone
			}
			size := n
			if !hole {
				size = min(n, readPiece)
			}
			flags := uint16(0)
			if off+size == end {
				flags = chunkDone
			}
			if hole {
				b := r.chunk(k.cookie, flags, chunkHole, 12, 12)
				binary.BigEndian.PutUint64(b, uint64(off))
				binary.BigEndian.PutUint32(b[8:], uint32(size))
				return nil
			}
			b := getBuffer(int(size))
			p := b.b[:size]
			if err := c.readAt(p, off); err != nil {
				b.put()
				return err
			}
			binary.BigEndian.PutUint64(r.chunk(k.cookie, flags, chunkData, 8+len(p), 8), uint64(off))
			r.data(b, p)
			off, n = off+size, n-size
		}
		return nil
	})
	if err != nil && !c.failed.Load() {
		r.failure(k.cookie, errnoOf(err), c.problem(k, err))
	}
}

// Pieces calls do for what is in [off, off+n), in order.
func (c *conn) pieces(off, n int64, do func(hole bool, off, n int64) error) error {
	end := off + n
	if c.export.Allocation == nil {
		return do(false, off, n)
	}
	from := off // of data that was not given to do yet
	for x, err := range c.export.Allocation(off, n) {
		if err != nil {
			return err
		}
		x.Length = min(x.Length, end-off)
		if x.Length >= leastHole && x.Flags&StateZero != 0 {
			if from < off {
				if err := do(false, from, off-from); err != nil {
					return err
				}
			}
			if err := do(true, off, x.Length); err != nil {
				return err
			}
			from = off + x.Length
		}
		off += x.Length
	}
	if from < end {
		return do(false, from, end-from)
	}
	return nil
}

func (c *conn) blockStatus(k *call, r *replies) {
	for i, x := range c.contexts {
		list, err := describe(x.Context, int64(k.off), int64(k.length), k.flags&cmdReqOne != 0)
		if err != nil {
			r.failure(k.cookie, errnoOf(err), c.problem(k, err))
			return
		}
		flags := uint16(0)
		if i == len(c.contexts)-1 {
			flags = chunkDone
		}
		b := r.chunk(k.cookie, flags, chunkBlockStatus, 4+8*len(list), 4+8*len(list))
		binary.BigEndian.PutUint32(b, x.id)
		for i, e := range list {
			binary.BigEndian.PutUint32(b[4+8*i:], uint32(e.Length))
			binary.BigEndian.PutUint32(b[8+8*i:], e.Flags)
		}
	}
}

// Describe lists the status of a range, joining what is equal; one extent if only one is wanted.
func describe(x Context, off, n int64, one bool) ([]Extent, error) {
	var list []Extent
	for e, err := range x.Status(off, n) {
		if err != nil {
			return nil, err
		}
		e.Length = min(e.Length, n)
		if last := len(list) - 1; last >= 0 && list[last].Flags == e.Flags {
			list[last].Length += e.Length
		} else if len(list) == maxExtents || one && len(list) == 1 {
			return list, nil
		} else if e.Length > 0 {
			list = append(list, e)
		}
		if n -= e.Length; n <= 0 {
			return list, nil
		}
	}
	if len(list) == 0 {
		return nil, fault.New(fault.Internal, "", "the context %s says nothing about %d bytes at %d", x.Name, n, off)
	}
	return list, nil
}
