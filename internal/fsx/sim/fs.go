package sim

import (
	"fmt"
	"maps"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
)

// Options of a file system; the zero value is a roomy one that can do everything.
type Options struct {
	Capacity    int64  // bytes, 0: 1 TiB; used in pages of 4 KiB
	MaxLinks    uint64 // names per file, 0: 65000
	NoHardLinks bool   // link fails as on FAT
}

const rootInode = 1

// tree is a set of inodes; number 1 is the root directory.
type tree struct {
	inodes map[uint64]*inode
	next   uint64 // number of the next inode
}

func newTree() *tree {
	t := &tree{inodes: map[uint64]*inode{}, next: rootInode + 1}
	t.inodes[rootInode] = newInode(rootInode, true)
	t.inodes[rootInode].links = 1
	return t
}

func (t *tree) add(isDir bool) *inode {
	n := newInode(t.next, isDir)
	t.inodes[n.number] = n
	t.next++
	return n
}

// clone is a tree of its own that shares all content.
func (t *tree) clone() *tree {
	c := &tree{inodes: make(map[uint64]*inode, len(t.inodes)), next: t.next}
	for i, n := range t.inodes {
		c.inodes[i] = n.share()
	}
	return c
}

// recount sets the link counts from the entries and drops what no entry reaches, as a mount after a crash does.
func (t *tree) recount() {
	for _, n := range t.inodes {
		n.links = 0
	}
	var visit func(n *inode)
	visit = func(n *inode) {
		n.links++
		if !n.isDir || n.links > 1 {
			return
		}
		for name, i := range n.entries {
			if child := t.inodes[i]; child != nil {
				visit(child)
			} else {
				n.own()
				delete(n.entries, name)
			}
		}
	}
	visit(t.inodes[rootInode])
	for i, n := range t.inodes {
		if n.links == 0 {
			delete(t.inodes, i)
		}
	}
}

func (t *tree) usedPages() int64 {
	used := int64(0)
	for _, n := range t.inodes {
		used += int64(len(n.pages))
	}
	return used
}

// FS is a file system in memory.
type FS struct {
	mu   sync.Mutex
	opts Options
	tree *tree
	used int64 // pages

	recording bool
	base      *tree // durable when Record was called
	log       []*Op
	ops       int // mutating operations since New or Record
	sites     map[string]int
	dropped   map[string]bool
	fails     []failRule
	failed    int  // position of the first injected failure
	dead      bool // FailFrom has set in
	locks     map[uint64]map[*file]fsx.LockMode

	cut    string // what Crashes did to make this one
	events []any
}

// New makes an empty file system.
func New(o Options) *FS {
	if o.Capacity == 0 {
		o.Capacity = 1 << 40
	}
	if o.MaxLinks == 0 {
		o.MaxLinks = 65000
	}
	return fromTree(o, newTree())
}

func fromTree(o Options, t *tree) *FS {
	return &FS{
		opts: o, tree: t, used: t.usedPages(),
		sites: map[string]int{}, dropped: map[string]bool{}, locks: map[uint64]map[*file]fsx.LockMode{},
	}
}

// Root opens the root directory.
func (s *FS) Root() fsx.Dir { return &dir{fs: s, inode: rootInode, path: ""} }

// Copy is an independent file system with the same content, durable, without log, locks and failure rules.
func (s *FS) Copy() *FS {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tree.clone()
	t.recount()
	return fromTree(s.opts, t)
}

// Survivor is what the process that recorded leaves when it dies while the machine lives: all of it, with the events.
func (s *FS) Survivor() *FS {
	c := s.Copy()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.log {
		if o.Kind == opEvent {
			c.events = append(c.events, o.event)
		}
	}
	c.cut = fmt.Sprintf("the process died after %d operations", s.ops)
	return c
}

// Equal tells whether two file systems have the same names with the same content.
func (s *FS) Equal(o *FS) bool {
	a, b := s.Copy().tree, o.Copy().tree
	pairs := map[uint64]uint64{}
	var same func(x, y *inode) bool
	same = func(x, y *inode) bool {
		if was, ok := pairs[x.number]; ok {
			return was == y.number
		}
		pairs[x.number] = y.number
		if x.isDir != y.isDir || x.links != y.links || len(x.entries) != len(y.entries) {
			return false
		}
		if !x.isDir {
			return x.equal(y)
		}
		for name, i := range x.entries {
			j, ok := y.entries[name]
			if !ok || !same(a.inodes[i], b.inodes[j]) {
				return false
			}
		}
		return true
	}
	return same(a.inodes[rootInode], b.inodes[rootInode])
}

// Record declares everything durable and logs from here on.
func (s *FS) Record() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.base, s.log, s.recording, s.ops = s.tree.clone(), nil, true, 0
	s.sites = map[string]int{}
}

// Begin notes that the caller starts something; a crash from here on may show it.
func (s *FS) Begin(event any) { s.note(event, false) }

// Mark notes a promise: something was acknowledged. Every crash from here on is judged by it, so the states that
// were possible before are enumerated again.
func (s *FS) Mark(event any) { s.note(event, true) }

func (s *FS) note(event any, mark bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.recording {
		s.log = append(s.log, &Op{Seq: len(s.log), Kind: opEvent, event: event, mark: mark})
	}
}

// Log is what was recorded, events left out.
func (s *FS) Log() []*Op {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(s.log), func(o *Op) bool { return o.Kind == opEvent })
}

// Ops counts the mutating operations since New or Record: the range of n for FailAt.
func (s *FS) Ops() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ops
}

// SyncSites are the lines of code that called Datasync or Sync, and how often.
func (s *FS) SyncSites() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.sites)
}

// DropSync makes every Datasync and Sync called from site succeed without doing anything.
func (s *FS) DropSync(site string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dropped[site] = true
}

// record appends an operation that took place. Called with mu held.
func (s *FS) record(o *Op) {
	if !s.recording {
		return
	}
	o.Seq = len(s.log)
	if o.Site == "" {
		o.Site = callSite()
	}
	s.log = append(s.log, o)
}

// charge takes pages from the capacity. Called with mu held.
func (s *FS) charge(pages int64) error {
	if (s.used+pages)*pageSize > s.opts.Capacity {
		return unix.ENOSPC
	}
	s.used += pages
	return nil
}

// release frees an inode that has neither name nor opener. Called with mu held.
func (s *FS) release(n *inode) {
	if n.links > 0 || n.opens > 0 {
		return
	}
	s.used -= int64(len(n.pages))
	delete(s.tree.inodes, n.number)
}
