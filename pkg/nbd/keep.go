package nbd

// Kept is a change that was acknowledged and is not known to be durable.
type kept struct {
	cmd, flags uint16
	off        int64
	length     uint32
	memory     *buffer // the data of a write
	seq        uint64
}

// Pending is the change as a request that is sent again.
func (x *kept) pending() *pending {
	k := newPending(x.cmd, x.off, nil)
	k.length, k.flags = x.length, x.flags
	if x.memory != nil {
		k.data = x.memory.b[:x.length]
	}
	return k
}

// KeptOverhead is about what one entry takes besides its data.
const keptOverhead = 128

// Keeping is what is kept, in the order of acknowledgement. Of overlapping changes that is the order in which they were issued.
type keeping struct {
	all   []kept
	last  uint64 // seq of the newest
	bytes int64
}

func (x *kept) size() int64 {
	n := int64(keptOverhead)
	if x.memory != nil {
		n += int64(len(x.memory.b))
	}
	return n
}

func (q *keeping) add(x kept) {
	q.last++
	x.seq = q.last
	q.all = append(q.all, x)
	q.bytes += x.size()
}

// Forget drops what is not newer than mark.
func (q *keeping) forget(mark uint64) {
	n := 0
	for n < len(q.all) && q.all[n].seq <= mark {
		q.bytes -= q.all[n].size()
		q.all[n].memory.put()
		q.all[n] = kept{}
		n++
	}
	if q.all = q.all[n:]; len(q.all) == 0 {
		q.all = nil
	}
}

// Acknowledged is called by the goroutine that received the acknowledgement of k: steps 1 and 2 of the package's comment.
func (c *Client) acknowledged(k *pending) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k.cmd == cmdFlush {
		c.kept.forget(k.mark)
		return
	}
	c.kept.add(kept{cmd: k.cmd, flags: k.flags, off: k.off, length: k.length, memory: k.memory})
}
