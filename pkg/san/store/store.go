package store

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// FormatOptions are the shape of a new store; zero values mean the defaults.
type FormatOptions struct {
	ExtentSize int64 // bytes
	AreaSize   int64 // bytes, of each of the two metadata areas
	Force      bool  // also where something is already
}

// Format makes an empty store on a LUN:
//
//  1. The places of both superblocks, the identity and the lease are zeroed, then a sync. (Crash: the old store, or none. An owner of
//     the old one finds its lease gone.)
//  2. The catalogue with an empty root directory goes into area 0, then a sync. (Crash: no store.)
//  3. Both superblocks name it, then a sync. (Crash: a store if either is there.)
func Format(lun fsx.File, o FormatOptions) (Info, error) {
	if o.ExtentSize == 0 {
		o.ExtentSize = DefaultExtentSize
	}
	if o.AreaSize == 0 {
		o.AreaSize = DefaultAreaSize
	}
	info, err := lun.Stat()
	if err != nil {
		return Info{}, err
	}
	l, err := newLayout(info.Size, o.ExtentSize, o.AreaSize)
	if err != nil {
		return Info{}, err
	}
	if err := lun.Lock(fsx.LockWrite); err != nil {
		return Info{}, err
	}
	if !o.Force {
		if err := mustBeEmpty(lun, &l); err != nil {
			return Info{}, err
		}
	}
	l.uuid = random16()
	for _, at := range []int64{superblock, nonceAt, leaseAt, l.copyAt()} {
		if err := lun.Zero(at, blockSize); err != nil {
			return Info{}, fault.Wrap(err, "format: clear the old superblocks")
		}
	}
	if err := lun.Datasync(); err != nil {
		return Info{}, fault.Wrap(err, "format")
	}
	root := &inode{number: rootInode, isDir: true, entries: map[string]uint64{}}
	c := catalogue{uuid: l.uuid, generation: 1, nextInode: rootInode + 1, nextGrant: 1, inodes: []*inode{root}}
	record, length := c.encode()
	s := super{layout: l, generation: 1, recordLen: length, recordCRC: le.Uint32(record[12:])}
	if _, err := lun.WriteAt(record, l.areaAt(0)); err != nil {
		return Info{}, fault.Wrap(err, "format: write the catalogue")
	}
	if err := lun.Datasync(); err != nil {
		return Info{}, fault.Wrap(err, "format")
	}
	if err := writeSupers(lun, &s); err != nil {
		return Info{}, err
	}
	return infoOf(&s, l.extents, 0, 2), nil
}

// mustBeEmpty refuses a LUN whose first MiB or whose end holds something: it may be a disk with a file system.
func mustBeEmpty(lun fsx.File, l *layout) error {
	p := fsx.AlignedBuffer(areaStart)
	for _, part := range []struct{ at, n int64 }{{0, areaStart}, {l.copyAt(), blockSize}} {
		if _, err := lun.ReadAt(p[:part.n], part.at); err != nil {
			return fault.Wrap(err, "format: look what is on the LUN")
		}
		for i, b := range p[:part.n] {
			if b != 0 {
				return fault.New(fault.Exists, "Format it with force (--force) if nothing on it is needed any more.",
					"the LUN is not empty: there is something at byte %d", part.at+int64(i))
			}
		}
	}
	return nil
}

// writeSupers writes both superblocks and makes them durable.
func writeSupers(lun fsx.File, s *super) error {
	p := s.encode()
	for _, at := range []int64{superblock, s.copyAt()} {
		if _, err := lun.WriteAt(p, at); err != nil {
			return fault.Wrap(err, "write the superblock")
		}
	}
	return fault.Wrap(lun.Datasync(), "sync the superblock")
}

// Options of Open.
type Options struct {
	ReadOnly bool // takes no lock and writes nothing; what others write meanwhile is not seen
}

// Info describes a store.
type Info struct {
	UUID       string `json:"uuid"`
	Generation uint64 `json:"generation"`
	Size       int64  `json:"size"`       // bytes of the LUN that the store uses
	ExtentSize int64  `json:"extentSize"` // bytes
	AreaSize   int64  `json:"areaSize"`   // bytes of each metadata area
	Total      int64  `json:"total"`      // bytes for files
	Free       int64  `json:"free"`       // bytes
	Held       int64  `json:"held"`       // bytes that are freed and wait for grants to end
	Catalogue  int64  `json:"catalogue"`  // bytes of the record
	Files      int    `json:"files"`      // files and directories
	Grants     int    `json:"grants"`
}

func infoOf(s *super, free, heldExtents int64, files int) Info {
	return Info{UUID: s.uuid.String(), Generation: s.generation, Size: s.size, ExtentSize: s.extentSize, AreaSize: s.areaSize,
		Total: s.extents * s.extentSize, Free: free * s.extentSize, Held: heldExtents * s.extentSize, Catalogue: s.recordLen, Files: files - 1}
}

// Store is an open store. Its methods may be called concurrently.
type Store struct {
	lun      fsx.File
	layout   layout
	readOnly bool
	nonce    [16]byte

	mu        sync.Mutex // everything below; the runs and sizes of inodes change under their own lock as well
	inodes    map[uint64]*inode
	order     []*inode // by number; those without a name are dropped by the next commit
	nextInode uint64
	nextGrant uint64
	grants    []Grant
	used      *bitmap
	held      []held
	next      uint64 // the generation that the next commit will have
	touched   uint64 // the generation that has the last change
	super     super  // what is durable
	recorded  int64  // bytes of a record of what there is now
	poisoned  error
	dead      atomic.Bool // poisoned is set

	group group
}

// Open opens the store on a LUN, which stays the caller's to close after Store.Close.
//
//  1. The LUN is locked against a second owner on this machine. (Between machines its owner keeps others away.)
//  2. The superblock with the higher generation is taken, and the catalogue that it names, which must be whole.
//  3. Both superblocks are written again and made durable: of a pair that a crash, or a failed sync of an earlier owner, left
//     behind it is uncertain which one is on the medium, and the next commit overwrites the area that the other one names.
//  4. A new nonce is written, by which nodes recognize the LUN.
func Open(lun fsx.File, o Options) (*Store, error) {
	if !o.ReadOnly {
		if err := lun.Lock(fsx.LockWrite); err != nil {
			return nil, err
		}
	}
	sb, c, err := load(lun)
	if err != nil {
		return nil, err
	}
	s := &Store{lun: lun, layout: sb.layout, readOnly: o.ReadOnly, super: *sb, next: sb.generation + 1,
		inodes: map[uint64]*inode{}, order: c.inodes, nextInode: c.nextInode, nextGrant: c.nextGrant,
		grants: c.grants, held: c.held, used: newBitmap(sb.extents), recorded: sb.recordLen}
	s.group.init()
	for _, n := range c.inodes {
		s.inodes[n.number] = n
		for _, r := range n.runs {
			s.used.setAll(r.lun, r.n)
		}
	}
	for _, h := range s.held {
		s.used.setAll(h.lun, h.n)
	}
	s.releaseHeld()
	if o.ReadOnly {
		_, s.nonce, _ = ReadNonce(lun)
		return s, nil
	}
	if err := writeSupers(lun, sb); err != nil {
		return nil, err
	}
	s.nonce = random16()
	if _, err := lun.WriteAt(nonceBlock(sb.uuid, s.nonce), nonceAt); err != nil {
		return nil, fault.Wrap(err, "write the store's identity")
	}
	return s, nil
}

// load reads superblock and catalogue. A store that is read while its owner commits is read again.
func load(lun fsx.File) (*super, *catalogue, error) {
	var problems []string
	var sb *super
	for range 5 {
		var err error
		if sb, err = readSuper(lun); err != nil {
			return nil, nil, err
		}
		c, found, err := readCatalogue(lun, sb)
		if err != nil {
			return nil, nil, err
		}
		if len(found) == 0 {
			return sb, c, nil
		}
		again, err := readSuper(lun)
		if err == nil && again.generation == sb.generation {
			return nil, nil, damaged("store %s, generation %d: %s", sb.uuid, sb.generation, found[0])
		}
		problems = found
	}
	return nil, nil, fault.New(fault.InProgress, "Try again.", "the store's owner writes faster than it can be read: %s", problems[0])
}

// Identify tells which store is on a LUN, and what of it the superblock says (not Free, Held, Files and Grants). Kinds: NotFound (none),
// Damaged (also: the LUN was shrunk), Unsupported.
func Identify(lun fsx.File) (Info, error) {
	sb, err := readSuper(lun)
	if err != nil {
		return Info{}, err
	}
	return infoOf(sb, 0, 0, 1), nil
}

// readSuper is the newer of the two superblocks.
func readSuper(lun fsx.File) (*super, error) {
	info, err := lun.Stat()
	if err != nil {
		return nil, err
	}
	first, err := readSuperAt(lun, superblock, info.Size)
	if err != nil && !errors.Is(err, fault.Damaged) && !errors.Is(err, fault.NotFound) {
		return nil, err
	}
	var second *super
	if first != nil {
		second, _ = readSuperAt(lun, first.copyAt(), info.Size)
	} else if end := info.Size/blockSize*blockSize - blockSize; end > superblock {
		second, _ = readSuperAt(lun, end, info.Size) // the first is lost: the other one is where a LUN of this size has it
	}
	switch {
	case first == nil && second == nil:
		return nil, err
	case first == nil || second != nil && second.uuid == first.uuid && second.generation > first.generation:
		return second, nil
	}
	return first, nil
}

func readSuperAt(lun fsx.File, at, lunSize int64) (*super, error) {
	if at+blockSize > lunSize {
		return nil, fault.New(fault.NotFound, "Name another LUN.", "there is no store on this LUN: it has %d bytes", lunSize)
	}
	p := fsx.AlignedBuffer(blockSize)
	if _, err := lun.ReadAt(p, at); err != nil {
		return nil, fault.Wrap(err, "read the superblock")
	}
	return decodeSuper(p, lunSize)
}

func readCatalogue(lun fsx.File, s *super) (*catalogue, []string, error) {
	p := fsx.AlignedBuffer(int((s.recordLen + blockSize - 1) / blockSize * blockSize))
	if _, err := lun.ReadAt(p, s.areaAt(s.area)); err != nil {
		return nil, nil, fault.Wrap(err, "read the catalogue")
	}
	c, problems := decodeRecord(p[:s.recordLen], s)
	return c, problems, nil
}

// Root opens the root directory.
func (s *Store) Root() fsx.Dir {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &dir{s: s, n: s.inodes[rootInode]}
}

// Info tells about the store.
func (s *Store) Info() Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	waiting := int64(0)
	for _, h := range s.held {
		waiting += int64(h.n)
	}
	i := infoOf(&s.super, s.used.free, waiting, len(s.inodes))
	i.Grants = len(s.grants)
	return i
}

// UUID is the store's.
func (s *Store) UUID() UUID { return s.layout.uuid }

// Nonce is what the owner of the store drew when it opened it (ReadNonce).
func (s *Store) Nonce() [16]byte { return s.nonce }

// Size is the part of the LUN that the store uses, in bytes.
func (s *Store) Size() int64 { return s.layout.size }

// Flush makes durable what was written to the LUN, by whomever and by whichever path: its cache is one.
func (s *Store) Flush() error { return fault.Wrap(s.lun.Datasync(), "flush the LUN") }

// Close commits what was not, if nothing failed, and gives the LUN's lock back. Open files and directories end with it.
func (s *Store) Close() error {
	if s.readOnly {
		return nil
	}
	s.mu.Lock()
	clean := s.poisoned == nil
	s.mu.Unlock()
	var err error
	if clean {
		err = s.commit()
	}
	s.mu.Lock()
	if s.poisoned == nil {
		s.poisoned = fault.New(fault.Poisoned, "Open the store anew.", "the store was closed")
		s.dead.Store(true)
	}
	s.mu.Unlock()
	return errors.Join(err, s.lun.Lock(fsx.Unlock))
}

func (s *Store) String() string { return fmt.Sprintf("lun store %s", s.layout.uuid) }
