package nbd

import (
	"encoding/binary"
	"net"
)

// Replies are what is sent at once: headers, which stand in head, and data between them.
type replies struct {
	head []byte
	vec  net.Buffers
	held []*buffer // in vec; given back when it was sent
}

func (r *replies) reset() {
	for _, b := range r.held {
		b.put()
	}
	clear(r.held)
	r.head, r.vec, r.held = r.head[:0], r.vec[:0], r.held[:0]
	if cap(r.head) == 0 {
		// Never longer: what vec points into must not move.
		r.head = make([]byte, 0, maxBatch*(structuredSize+64))
		r.vec = make(net.Buffers, 0, rwBuffers)
	}
}

// Room appends n bytes to the headers and to what is sent.
func (r *replies) room(n int) []byte {
	at := len(r.head)
	if at+n > cap(r.head) {
		b := make([]byte, n)
		r.vec = append(r.vec, b)
		return b
	}
	r.head = r.head[:at+n]
	b := r.head[at:]
	if k := len(r.vec); k > 0 && at > 0 && len(r.vec[k-1]) > 0 && &r.vec[k-1][len(r.vec[k-1])-1] == &r.head[at-1] {
		r.vec[k-1] = r.vec[k-1][:len(r.vec[k-1])+n] // goes on where the last one ended
		return b
	}
	r.vec = append(r.vec, b)
	return b
}

func (r *replies) simple(cookie uint64, errno uint32) {
	b := r.room(simpleSize)
	binary.BigEndian.PutUint32(b, magicSimple)
	binary.BigEndian.PutUint32(b[4:], errno)
	binary.BigEndian.PutUint64(b[8:], cookie)
}

// Chunk begins a structured reply of n bytes, of which it returns the first few.
func (r *replies) chunk(cookie uint64, flags, kind uint16, n, few int) []byte {
	b := r.room(structuredSize + few)
	binary.BigEndian.PutUint32(b, magicStructured)
	binary.BigEndian.PutUint16(b[4:], flags)
	binary.BigEndian.PutUint16(b[6:], kind)
	binary.BigEndian.PutUint64(b[8:], cookie)
	binary.BigEndian.PutUint32(b[16:], uint32(n))
	return b[structuredSize:]
}

func (r *replies) failure(cookie uint64, errno uint32, why string) {
	why = why[:min(len(why), 512)]
	b := r.chunk(cookie, chunkDone, chunkError, 6+len(why), 6+len(why))
	binary.BigEndian.PutUint32(b, errno)
	binary.BigEndian.PutUint16(b[4:], uint16(len(why)))
	copy(b[6:], why)
}

// Data appends p, which is in a buffer that belongs to the replies from now on.
func (r *replies) data(b *buffer, p []byte) {
	r.held = append(r.held, b)
	if len(p) > 0 {
		r.vec = append(r.vec, p)
	}
}

// Send sends what there is and forgets it. After an error, and after a peer has not taken it for too long, the connection is closed:
// its reader finds that out.
func (c *conn) send(r *replies) {
	defer r.reset()
	if len(r.vec) == 0 || c.failed.Load() || c.export.Revoked != nil && c.export.Revoked.Err() != nil { // who is cut off hears nothing
		return
	}
	c.out.Lock()
	defer c.out.Unlock()
	_ = c.raw.SetWriteDeadline(deadline(c.s.o.Stall))
	var err error
	if c.tls {
		err = c.sendJoined(r.vec)
	} else {
		vec := r.vec // WriteTo eats it
		_, err = vec.WriteTo(c.nc)
	}
	if err != nil {
		c.failed.Store(true)
		c.raw.Close()
	}
}

// SendJoined writes pieces in as few records as possible.
func (c *conn) sendJoined(vec net.Buffers) error {
	c.scratch = c.scratch[:0]
	for _, p := range vec {
		if len(c.scratch)+len(p) > readAhead {
			if _, err := c.nc.Write(c.scratch); err != nil {
				return err
			}
			c.scratch = c.scratch[:0]
		}
		if len(p) > readAhead {
			if _, err := c.nc.Write(p); err != nil {
				return err
			}
			continue
		}
		c.scratch = append(c.scratch, p...)
	}
	if len(c.scratch) == 0 {
		return nil
	}
	_, err := c.nc.Write(c.scratch)
	return err
}
