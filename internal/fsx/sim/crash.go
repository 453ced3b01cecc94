package sim

import (
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"
)

// exhaustive is up to how many unsynced operations every subset is tried.
const exhaustive = 10

// Crashes yields the states in which the file system can be found after the power failed at any point of the log:
// what was synced, with any subset of what was not. Points at which an operation was added give the subsets that hold
// it, points at which a promise was made (Mark) all subsets again. At most limit states per point: every subset if that
// is enough for up to ten unsynced operations, else a sample that always holds none, all, each one alone and all but
// one as far as limit allows; writes of several sectors are torn besides. The same log and seed give the same states.
func (s *FS) Crashes(limit int, seed int64) iter.Seq[*FS] { return s.CrashesFrom(0, limit, seed) }

// CrashesFrom is Crashes without the points before position from of the log (see Position).
func (s *FS) CrashesFrom(from, limit int, seed int64) iter.Seq[*FS] {
	s.mu.Lock()
	log, base, opts := slices.Clone(s.log), s.base, s.opts
	s.mu.Unlock()
	return func(yield func(*FS) bool) {
		if base == nil {
			panic("sim: Crashes without Record")
		}
		r := &replay{
			opts: opts, durable: base.clone(), limit: max(limit, 2), seed: seed, yield: yield,
			rng: rand.New(rand.NewPCG(uint64(seed), 0x766d646b)),
		}
		if from == 0 && !r.emit(nil, -1, "") {
			return
		}
		for i, op := range log {
			r.quiet = i < from
			if !r.next(op) {
				return
			}
		}
	}
}

// Position is the length of the log, events included.
func (s *FS) Position() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.log)
}

// Cut says which state of which crash this file system is.
func (s *FS) Cut() string { return s.cut }

// Events are the events before the crash, in order.
func (s *FS) Events() []any { return s.events }

// replay walks the log; its tree holds what is durable, pending what is not, in order.
type replay struct {
	opts    Options
	durable *tree
	pending []pendingOp
	events  []any
	last    *Op
	limit   int
	seed    int64
	rng     *rand.Rand
	quiet   bool // this point is not asked for
	yield   func(*FS) bool
}

type pendingOp struct {
	*Op
	doomed bool // a sync of it failed: the kernel forgot that it is dirty (fsync(2), ERRORS)
}

func (r *replay) next(op *Op) bool {
	r.last = op
	switch op.Kind {
	case opEvent:
		r.events = append(r.events, op.event)
		return !op.mark || r.subsets(false)
	case OpDatasync, OpSync:
		r.sync(op)
		return true
	case OpCreate, OpMkdir:
		if r.durable.inodes[op.target] == nil {
			r.durable.inodes[op.target] = newInode(op.target, op.Kind == OpMkdir)
			r.durable.next = max(r.durable.next, op.target+1)
		}
	}
	r.pending = append(r.pending, pendingOp{Op: op})
	return r.subsets(true)
}

// sync moves the operations of one file or directory from pending to durable.
func (r *replay) sync(op *Op) {
	kept := r.pending[:0]
	for _, p := range r.pending {
		switch {
		case p.inode != op.inode:
			kept = append(kept, p)
		case op.failed && op.Kind == OpDatasync:
			p.doomed = true
			kept = append(kept, p)
		case op.failed:
			kept = append(kept, p)
		case !p.doomed || r.rng.IntN(2) == 0:
			p.apply(r.durable)
		}
	}
	r.pending = kept
}

// subsets emits states of the present point; with newest only those that hold the last pending operation.
func (r *replay) subsets(newest bool) bool {
	if r.quiet {
		return true
	}
	k := len(r.pending)
	free := k
	if newest {
		free--
	}
	for _, keep := range r.choose(free) {
		if newest {
			keep = append(keep, true)
		}
		if !r.emit(keep, -1, "") {
			return false
		}
	}
	if newest {
		return r.tear(k-1, true) && r.tear(k-1, false)
	}
	for i := range k {
		if r.limit >= 64 && !r.tear(i, true) {
			return false
		}
	}
	return true
}

// choose picks subsets of n operations.
func (r *replay) choose(n int) [][]bool {
	var out [][]bool
	if n <= exhaustive && 1<<n <= r.limit {
		for mask := range 1 << n {
			keep := make([]bool, n, n+1)
			for i := range keep {
				keep[i] = mask>>i&1 == 1
			}
			out = append(out, keep)
		}
		return out
	}
	fill := func(v bool) []bool {
		keep := make([]bool, n, n+1)
		for i := range keep {
			keep[i] = v
		}
		return keep
	}
	out = append(out, fill(true), fill(false))
	for _, i := range r.rng.Perm(n) {
		for _, v := range []bool{true, false} {
			if len(out) < r.limit*3/4 {
				keep := fill(v)
				keep[i] = !v
				out = append(out, keep)
			}
		}
	}
	for len(out) < r.limit {
		keep := fill(false)
		for i := range keep {
			keep[i] = r.rng.IntN(2) == 1
		}
		out = append(out, keep)
	}
	return out
}

// tear emits states in which write i reached the medium only in part.
func (r *replay) tear(i int, others bool) bool {
	op := r.pending[i]
	if op.Kind != OpWrite || op.off/sectorSize == (op.off+op.n-1)/sectorSize {
		return true
	}
	if !others && len(r.pending) == 1 {
		return true // the same states again
	}
	keep := make([]bool, len(r.pending))
	for j := range keep {
		keep[j] = others || j == i
	}
	for _, how := range []string{"first sector", "last sector", "random sectors"} {
		if !r.emit(keep, i, how) {
			return false
		}
	}
	return true
}

// emit makes the state that keeps the chosen pending operations, with write torn written in part.
func (r *replay) emit(keep []bool, torn int, how string) bool {
	t := r.durable.clone()
	var lost []string
	for i, p := range r.pending {
		switch {
		case keep == nil || !keep[i]:
			lost = append(lost, fmt.Sprintf("#%d", p.Seq))
		case i == torn:
			r.applyTorn(t, p.Op, how)
		default:
			p.apply(t)
		}
	}
	t.recount()
	s := fromTree(r.opts, t)
	s.events = r.events[:len(r.events):len(r.events)]
	var text strings.Builder
	fmt.Fprintf(&text, "seed %d", r.seed)
	if r.last != nil {
		fmt.Fprintf(&text, ", cut after %v", r.last)
	}
	fmt.Fprintf(&text, ", %d unsynced, lost %v", len(r.pending), lost)
	if torn >= 0 {
		fmt.Fprintf(&text, ", torn to %s: %v", how, r.pending[torn].Op)
	}
	s.cut = text.String()
	return r.yield(s)
}

// applyTorn writes some sectors of a write; the size grows as if all were there.
func (r *replay) applyTorn(t *tree, op *Op, how string) {
	n := t.inodes[op.inode]
	if n == nil {
		return
	}
	n.own()
	n.size = max(n.size, op.off+op.n)
	first, last := op.off/sectorSize, (op.off+op.n-1)/sectorSize
	for sector := first; sector <= last; sector++ {
		var keep bool
		switch how {
		case "first sector":
			keep = sector == first
		case "last sector":
			keep = sector == last
		default:
			keep = r.rng.IntN(2) == 1
		}
		if !keep {
			continue
		}
		lo, hi := max(sector*sectorSize, op.off), min((sector+1)*sectorSize, op.off+op.n)
		n.writeAt(op.data[lo-op.off:hi-op.off], lo)
	}
}
