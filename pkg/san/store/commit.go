package store

import (
	"bytes"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// group lets callers that want a commit at the same time share one.
type group struct {
	mu       sync.Mutex
	cond     *sync.Cond
	running  bool
	started  uint64 // commits begun
	finished uint64 // commits ended
	err      error  // of the last one
}

func (g *group) init() { g.cond = sync.NewCond(&g.mu) }

// do returns once a run of work that began after the call is over. A later run covers what an earlier one should have done.
func (g *group) do(work func() error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	want := g.started + 1
	for g.running && g.finished < want {
		g.cond.Wait()
	}
	if g.finished >= want {
		return g.err
	}
	g.running = true
	g.started++
	g.mu.Unlock()
	err := work()
	g.mu.Lock()
	g.running, g.finished, g.err = false, g.started, err
	g.cond.Broadcast()
	return err
}

// commit makes everything that was done to the store before the call durable.
func (s *Store) commit() error { return s.group.do(s.write) }

// write is one commit:
//
//  1. Freeze: the catalogue as it is now becomes a record; extents freed from here on belong to the next generation.
//  2. Superblock and identity block must be those written last: nobody else owns the LUN.
//  3. The record goes into the area that the superblock does not name.
//  4. Sync. The record is durable, and so are the data and the zeros of every extent that it names. (Crash before the end of 5:
//     the old catalogue, whose extents nobody gave to another file.)
//  5. Both superblocks name the new record, then a sync. (Crash: either; both catalogues are whole.)
//  6. What was freed by this generation may be used again, unless an older grant names it.
//
// A failure before 4 changes nothing, and the next commit tries again. One in 4 or 5 poisons the store.
func (s *Store) write() error {
	s.mu.Lock()
	if s.poisoned != nil {
		s.mu.Unlock()
		return s.poisoned
	}
	record, sb := s.freeze()
	s.mu.Unlock()
	if sb.recordLen > s.layout.areaSize {
		return fault.New(fault.Exhausted, "Delete snapshots or disks, or copy them to a store with larger metadata areas.",
			"the catalogue needs %d bytes, its areas have %d", sb.recordLen, s.layout.areaSize)
	}
	if err := s.stillOurs(); err != nil {
		return s.poison(err)
	}
	if _, err := s.lun.WriteAt(record, s.layout.areaAt(sb.area)); err != nil {
		return fault.Wrap(err, "write the catalogue")
	}
	if err := s.lun.Datasync(); err != nil {
		return s.poison(err)
	}
	if err := writeSupers(s.lun, &sb); err != nil {
		return s.poison(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.super = sb
	s.releaseHeld()
	return nil
}

// freeze makes the record of what there is now. Called with mu held.
func (s *Store) freeze() ([]byte, super) {
	s.order = slices.DeleteFunc(s.order, func(n *inode) bool { return n.links == 0 })
	c := catalogue{uuid: s.layout.uuid, generation: s.next, nextInode: s.nextInode, nextGrant: s.nextGrant, inodes: s.order, grants: s.grants}
	for _, h := range s.held {
		if s.grantOlderThan(h.generation) {
			c.held = append(c.held, h)
		}
	}
	record, length := c.encode()
	s.recorded = length
	s.next++
	return record, super{layout: s.layout, generation: c.generation, area: 1 - s.super.area, recordLen: length, recordCRC: le.Uint32(record[12:])}
}

// stillOurs compares the superblock with what was written last, and the identity block, which another owner writes first.
func (s *Store) stillOurs() error {
	p := fsx.AlignedBuffer(2 * blockSize)
	if _, err := s.lun.ReadAt(p, superblock); err != nil {
		return fault.Wrap(err, "read the superblock")
	}
	if !bytes.Equal(p[:blockSize], s.super.encode()) || !bytes.Equal(p[blockSize:], nonceBlock(s.layout.uuid, s.nonce)) {
		return fault.New(fault.InUse, "One process owns a store: stop the other one.", "store %s has got another owner", s.layout.uuid)
	}
	return nil
}

func (s *Store) poison(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.poisoned == nil {
		s.poisoned = fault.New(fault.Poisoned, "Open the store anew.", "store %s: a commit failed, what it should have stored is uncertain: %w",
			s.layout.uuid, err)
		s.dead.Store(true)
	}
	return s.poisoned
}

// change runs a change of the namespace or of an inode's places; it refuses where none can be committed.
func (s *Store) change(grows int64, do func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.mayChange(grows); err != nil {
		return err
	}
	return do()
}

// mayChange tells whether a record that is larger by grows bytes has room: an eighth of the area is kept for deletions, which
// can make a record longer too. Called with mu held.
func (s *Store) mayChange(grows int64) error {
	switch {
	case s.readOnly:
		return fsx.Failure("change", s.String(), unix.EROFS)
	case s.poisoned != nil:
		return s.poisoned
	case grows > 0 && s.recorded+grows > s.layout.areaSize/8*7:
		return fault.New(fault.Exhausted, "Delete snapshots or disks, or copy them to a store with larger metadata areas.",
			"the catalogue of %s has no room left", s)
	}
	return nil
}

// touch notes that the next commit has something new of n. Called with mu held.
func (s *Store) touch(n *inode, grows int64) {
	n.changed, n.encoded, s.touched = s.next, nil, s.next
	s.recorded += grows
}

// durable tells whether all that the catalogue should say of n is on the medium.
func (s *Store) durable(n *inode) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return n.changed <= s.super.generation
}

// Sync makes everything that was done to the store durable, if anything was: what the death of its owner would undo else.
func (s *Store) Sync() error {
	s.mu.Lock()
	err := s.poisoned
	dirty := s.touched > s.super.generation
	s.mu.Unlock()
	if err != nil || !dirty {
		return err
	}
	return s.commit()
}

// free gives extents back: after the commit that no longer names them. Called with mu held.
func (s *Store) free(generation uint64, runs []run) {
	for _, r := range runs {
		if r.n > 0 {
			s.held = append(s.held, held{generation, r.lun, r.n})
		}
	}
}

// releaseHeld makes those extents free whose freeing is durable and which no older grant names. Called with mu held.
func (s *Store) releaseHeld() {
	s.held = slices.DeleteFunc(s.held, func(h held) bool {
		if h.generation > s.super.generation || s.grantOlderThan(h.generation) {
			return false
		}
		s.used.clearAll(h.lun, h.n)
		return true
	})
}

// take allocates n extents in few runs, the first at want if that is free, or none. It does not zero them. One that is given
// up before a file has it is free at once (giveUp).
func (s *Store) take(what string, n, want int64) ([]run, error) {
	s.mu.Lock()
	short := s.used.free < n && len(s.held) > 0
	s.mu.Unlock()
	if short {
		if err := s.commit(); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.mayChange(runSize); err != nil {
		return nil, err
	}
	if s.used.free < n {
		return nil, fsx.Failure("allocate", what, unix.ENOSPC)
	}
	var out []run
	for n > 0 {
		from, got := s.used.take(want, uint32(min(n, 1<<31)))
		out = append(out, run{lun: from, n: got})
		n -= int64(got)
		want = int64(from) + int64(got)
	}
	return out, nil
}

func (s *Store) giveUp(runs []run) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range runs {
		s.used.clearAll(r.lun, r.n)
	}
}
