package crash

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// deed is what the caller of a story started or was promised; sim keeps it in its log. It is event for several disks and
// their snapshots.
type deed struct {
	op     string // create, write, flush, snapshot, unsnapshot, restore, clone, delete, expand, crash
	done   bool   // promised; else started
	disk   string // name
	snap   string // name; snapshot, unsnapshot, restore
	from   string // clone: name of the source
	off, n int64  // write: bytes
	stamp  byte   // write: value, 0 for a discard
	size   int64  // create, restore, clone, expand: bytes
}

func (d deed) String() string {
	words := []string{d.op}
	for _, w := range []string{d.snap, d.from, d.disk} {
		if w != "" {
			words = append(words, w)
		}
	}
	if d.op == "write" {
		words = append(words, fmt.Sprintf("%d at [%d,+%d)", d.stamp, d.off, d.n))
	}
	if d.size > 0 {
		words = append(words, fmt.Sprintf("%d MiB", d.size>>20))
	}
	if d.done {
		return strings.Join(words, " ") + " is done"
	}
	return strings.Join(words, " ") + " starts"
}

// ledger is what must hold of all disks and snapshots after the deeds that led to it.
type ledger struct {
	disks map[string]*volumePromise
	snaps map[string]*pointPromise
}

// volumePromise is promise for one of several disks.
type volumePromise struct {
	there   presence
	size    int64 // bytes
	growing int64 // bytes, a larger size that is possible too
	cells   map[int64]*cell
}

// pointPromise is what a snapshot must read as: a snapshot is a promise about every sector, so the content is exact.
type pointPromise struct {
	there presence
	disk  string
	size  int64 // bytes; one of them while the disk grows
	large int64
	cells map[int64][]byte // allowed values
}

func newLedger() *ledger {
	return &ledger{disks: map[string]*volumePromise{}, snaps: map[string]*pointPromise{}}
}

// told is the ledger after the deeds.
func told(deeds []any) *ledger {
	l := newLedger()
	for _, d := range deeds {
		l.add(d.(deed))
	}
	return l
}

func (l *ledger) add(d deed) {
	v := l.disks[d.disk]
	switch d.op {
	case "create":
		l.appear(d, nil)
	case "restore":
		if p := l.snaps[d.snap]; p != nil {
			l.appear(d, p.cells)
		}
	case "clone":
		l.appear(d, l.disks[d.from].acknowledged())
	case "write":
		v.write(d)
	case "flush":
		// No write runs beside a flush here, so what was acknowledged when it began is what is now.
		for _, c := range v.cells {
			c.durable = c.acked
		}
	case "crash": // what was acknowledged only may be lost: a later flush does not bring it back
		for _, v := range l.disks {
			for _, c := range v.cells {
				c.acked = c.durable
			}
		}
	case "snapshot":
		l.snapshot(d)
	case "unsnapshot":
		if d.done {
			delete(l.snaps, d.snap)
		} else if p := l.snaps[d.snap]; p != nil && p.there == present {
			p.there = maybe
		}
	case "expand":
		if d.done {
			v.size, v.growing = max(v.size, d.size), 0
		} else {
			v.growing = max(d.size, v.growing)
		}
	case "delete":
		if d.done {
			delete(l.disks, d.disk)
		} else if v != nil && v.there == present {
			v.there = maybe
		}
	}
}

// appear is a disk that is made with content.
func (l *ledger) appear(d deed, content map[int64][]byte) {
	v := l.disks[d.disk]
	if v == nil {
		v = &volumePromise{there: maybe, size: d.size, cells: map[int64]*cell{}}
		for s, values := range content {
			v.cells[s] = &cell{values: slices.Clone(values), acked: len(values) - 1}
		}
		l.disks[d.disk] = v
	}
	if d.done {
		v.there = present
	}
}

// snapshot: the point in time has everything that was acknowledged when it was asked for, and makes it durable.
func (l *ledger) snapshot(d deed) {
	v, p := l.disks[d.disk], l.snaps[d.snap]
	if p == nil {
		p = &pointPromise{there: maybe, disk: d.disk, size: v.size, large: v.growing, cells: v.acknowledged()}
		l.snaps[d.snap] = p
	}
	if d.done {
		p.there = present
		for _, c := range v.cells {
			c.durable = c.acked
		}
	}
}

func (v *volumePromise) write(d deed) {
	for s := d.off / sector; s < (d.off+d.n)/sector; s++ {
		c := v.cells[s]
		if c == nil {
			c = &cell{values: []byte{0}}
			v.cells[s] = c
		}
		if d.done {
			c.acked = len(c.values) - 1
		} else {
			c.values = append(c.values, d.stamp)
		}
	}
}

// acknowledged is what every sector that was ever written may read as, to somebody who reads now.
func (v *volumePromise) acknowledged() map[int64][]byte {
	out := map[int64][]byte{}
	for s, c := range v.cells {
		out[s] = slices.Clone(c.values[c.acked:])
	}
	return out
}

// readable is what every sector that was ever written may read as after a crash.
func (v *volumePromise) readable() map[int64][]byte {
	out := map[int64][]byte{}
	for s, c := range v.cells {
		out[s] = c.values[c.durable:]
	}
	return out
}

// settle turns what was acknowledged into what is kept: the process died, its successor has the pending table.
func (l *ledger) settle() {
	for _, v := range l.disks {
		for _, c := range v.cells {
			c.durable = c.acked
		}
	}
}

// names are the disks and snapshots that must or may be there, in order.
func (l *ledger) names() (disks, snaps []string) {
	return slices.Sorted(maps.Keys(l.disks)), slices.Sorted(maps.Keys(l.snaps))
}
