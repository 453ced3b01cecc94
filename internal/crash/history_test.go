package crash

import (
	"fmt"
	"slices"

	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
)

const sector = 512

// event is what the caller started or was promised; sim keeps it in its log.
type event struct {
	op     string   // open, create, attach, write, flush, grow, expand, delete, crash
	done   bool     // promised; else started
	off, n int64    // write: bytes
	stamp  byte     // write: value, 0 for a discard
	size   int64    // expand, create: bytes
	uuid   string   // open and create, done: the identity of the datastore, of the disk
	cid    vmdk.CID // attach: of the content before
}

func (e event) String() string {
	state := "starts"
	if e.done {
		state = "is done"
	}
	switch e.op {
	case "write":
		return fmt.Sprintf("write %d at [%d,+%d) %s", e.stamp, e.off, e.n, state)
	case "create", "expand":
		return fmt.Sprintf("%s %d MiB %s", e.op, e.size>>20, state)
	}
	return e.op + " " + state
}

type presence int

const (
	absent presence = iota
	maybe
	present
)

// cell is one sector: the values written to it, oldest first, and which of them is the oldest that may still be read.
type cell struct {
	values  []byte
	acked   int // index of the last acknowledged one
	durable int // index of the last flushed one
}

// promise is what must hold after the events that led to it.
type promise struct {
	store   string // identity of the datastore, once promised
	disk    presence
	uuid    string
	size    int64 // bytes, at least
	growing int64 // bytes, a larger size that is possible too
	grown   int64 // bytes, capacity that the engine alone promised
	cells   map[int64]*cell
	known   content
}

// content is what a content ID stands for: the sectors whose values are certain.
type content struct {
	cid   vmdk.CID
	cells map[int64]byte
	since map[int64]bool // sectors written to since
}

func newPromise() *promise {
	return &promise{cells: map[int64]*cell{}, known: content{since: map[int64]bool{}}}
}

// after is the promise that the events make.
func after(events []any) *promise {
	p := newPromise()
	for _, e := range events {
		p.add(e.(event))
	}
	return p
}

func (p *promise) add(e event) {
	switch e.op {
	case "open":
		p.store = e.uuid
	case "create":
		p.create(e)
	case "attach":
		p.know(e.cid)
	case "grow":
		p.grown = e.size
	case "write":
		for s := e.off / sector; s < (e.off+e.n)/sector; s++ {
			c := p.cell(s)
			if e.done {
				c.acked = len(c.values) - 1
			} else {
				c.values = append(c.values, e.stamp)
				p.known.since[s] = true
			}
		}
	case "flush":
		// No write runs beside a flush here, so what was acknowledged when it began is what is now.
		for _, c := range p.cells {
			if e.done {
				c.durable = c.acked
			}
		}
	case "crash": // what was acknowledged only may be lost: a later flush does not bring it back
		for _, c := range p.cells {
			c.acked = c.durable
		}
	case "expand":
		if e.done {
			p.size, p.growing = max(p.size, e.size), 0
		} else {
			p.growing = max(e.size, p.growing)
		}
	case "delete":
		if e.done {
			store := p.store
			*p = *newPromise()
			p.store = store
		} else if p.disk == present {
			p.disk = maybe
		}
	}
}

func (p *promise) create(e event) {
	switch {
	case e.done:
		p.disk, p.uuid = present, e.uuid
		p.size = max(p.size, e.size)
	case p.disk == absent:
		p.disk = maybe
		p.size = e.size
	}
}

func (p *promise) cell(s int64) *cell {
	c := p.cells[s]
	if c == nil {
		c = &cell{values: []byte{0}}
		p.cells[s] = c
	}
	return c
}

// know remembers the content that stands under cid from now on.
func (p *promise) know(cid vmdk.CID) {
	p.known = content{cid: cid, cells: map[int64]byte{}, since: map[int64]bool{}}
	for s, c := range p.cells {
		if c.durable == len(c.values)-1 {
			p.known.cells[s] = c.values[c.durable]
		} else {
			p.known.cells[s] = unsure
		}
	}
}

// unsure stands for a sector of which a crash decided the value; no stamp is as large.
const unsure = 255

// before is what sector s read under the known content ID.
func (c *content) before(s int64) byte { return c.cells[s] }

// allows tells whether a sector may read as stamp.
func (p *promise) allows(s int64, stamp byte) bool {
	c := p.cells[s]
	if c == nil {
		return stamp == 0
	}
	return slices.Contains(c.values[c.durable:], stamp)
}

func (p *promise) allowed(s int64) []byte {
	if c := p.cells[s]; c != nil {
		return c.values[c.durable:]
	}
	return []byte{0}
}

// settle turns what was acknowledged into what is kept: the process died, its successor has the pending table.
func (p *promise) settle() {
	for _, c := range p.cells {
		c.durable = c.acked
	}
}
