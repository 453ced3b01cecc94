package worker

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/block"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// Disk is an open disk as a worker needs it; chain.Chain is one.
type Disk interface {
	block.Device
	// Grow makes the disk at least size bytes large.
	Grow(ctx context.Context, size int64) error
	// Close closes it; without an error it was closed cleanly.
	Close() error
}

// OpenRequest is what an Opener opens.
type OpenRequest struct {
	ID       string
	Dir      fsx.Dir // the disk's directory; open as long as the disk is
	Links    []chain.Ref
	ReadOnly bool
	// Format says how a flat disk holds its space: a thick one keeps it when the guest discards.
	Format  vmdk.Format
	Pending chain.Pending // nil if read-only
	// Takeover: the disk was served by a process that died, on this run of the machine. What it wrote is as it left it;
	// Pending has what it acknowledged beyond that.
	Takeover bool
	// Rebind is what descriptors must say before the chain is opened: a merge was committed by a worker that died.
	Rebind []chain.Identity
	// NoLocks takes no byte locks.
	NoLocks bool
}

// Opener opens a disk.
type Opener func(ctx context.Context, r OpenRequest) (Disk, error)

// OpenChain is the Opener of a real worker. Data goes past the page cache and the extents are locked, as qemu does it.
func OpenChain(_ context.Context, r OpenRequest) (Disk, error) {
	if len(r.Rebind) > 0 {
		if err := chain.Rebind(r.Dir, r.Rebind); err != nil {
			return nil, err
		}
	}
	links := append([]chain.Ref(nil), r.Links...)
	if r.Takeover && len(links) > 0 {
		// The predecessor may have died while it grew the head: the descriptor says how far it came, and who asked for
		// the growth asks again. It may name further extents: their names are bound to the directory by Link's own rules.
		links[len(links)-1].Size, links[len(links)-1].ExtentNames = 0, nil
	}
	return chain.Open(r.Dir, links, chain.Options{ReadOnly: r.ReadOnly, Direct: true, Pending: r.Pending,
		Takeover: r.Takeover && !r.ReadOnly, Format: r.Format, Locks: !r.NoLocks})
}

// guard keeps a failed sync in the table before anybody hears of it, keeps a poisoned disk from being closed as a clean
// one, and tells of failed requests.
type guard struct {
	Disk
	poisoned atomic.Bool
	poison   func()
	trouble  func(error)

	mu   sync.Mutex
	last fault.Kind // of the trouble told last
	told time.Time
}

// tellEvery is how often a trouble of one kind is told: a full datastore fails every write of a busy disk.
const tellEvery = time.Minute

func (g *guard) tell(err error) {
	g.mu.Lock()
	kind := fault.KindOf(err)
	again := kind != g.last || time.Since(g.told) >= tellEvery
	if again {
		g.last, g.told = kind, time.Now()
	}
	g.mu.Unlock()
	if again {
		g.trouble(err)
	}
}

func (g *guard) note(err error, flush bool) error {
	if err != nil && fault.KindOf(err) != fault.Unsupported { // a discard that cannot be is no trouble
		g.tell(err)
	}
	if err != nil && (flush || fault.KindOf(err) == fault.Poisoned) && g.poisoned.CompareAndSwap(false, true) {
		g.poison()
	}
	return err
}

func (g *guard) ReadAt(p []byte, off int64) (int, error) {
	if g.poisoned.Load() {
		return 0, errPoisoned()
	}
	n, err := g.Disk.ReadAt(p, off)
	return n, g.note(err, false)
}

func (g *guard) WriteAt(p []byte, off int64) (int, error) {
	if g.poisoned.Load() {
		return 0, errPoisoned()
	}
	n, err := g.Disk.WriteAt(p, off)
	return n, g.note(err, false)
}

func (g *guard) Discard(off, n int64) error {
	if g.poisoned.Load() {
		return errPoisoned()
	}
	return g.note(g.Disk.Discard(off, n), false)
}

func (g *guard) WriteZeroes(off, n int64) error {
	if g.poisoned.Load() {
		return errPoisoned()
	}
	return g.note(g.Disk.WriteZeroes(off, n), false)
}

func (g *guard) Flush() error {
	if g.poisoned.Load() {
		return errPoisoned()
	}
	return g.note(g.Disk.Flush(), true)
}

func (g *guard) Grow(ctx context.Context, size int64) error {
	if g.poisoned.Load() {
		return errPoisoned()
	}
	return g.note(g.Disk.Grow(ctx, size), false)
}

// Close closes a poisoned disk as death would. A chain that took the disk over from the worker whose sync failed knows
// nothing of that failure, and would take the unclean mark away, by which the release finds what to check.
func (g *guard) Close() error {
	if !g.poisoned.Load() {
		return g.Disk.Close()
	}
	if d, ok := g.Disk.(abandoner); ok {
		return errors.Join(errPoisoned(), d.Abandon())
	}
	return errors.Join(errPoisoned(), g.Disk.Close())
}

// abandoner is a Disk that Close marks as clean.
type abandoner interface {
	// Abandon closes the files and nothing else.
	Abandon() error
}

var _ abandoner = (*chain.Chain)(nil)

func errPoisoned() error {
	return fault.New(fault.Poisoned, "detach the disk, check it, and attach it again", "an earlier sync of this disk failed")
}

// settle waits until no write of a dead process is on its way to a file of d. A read through the page cache makes NFS wait
// for the direct writes of the same file (nfs_start_io_read, fs/nfs/io.c); local file systems never let a process die
// with one in flight, and answer at once.
func settle(d fsx.Dir) error {
	names, err := d.List()
	if err != nil {
		return err
	}
	for _, name := range names {
		st, err := d.Stat(name)
		if err != nil || !st.Mode.IsRegular() {
			continue
		}
		f, err := d.Open(name, fsx.ReadOnly)
		if err != nil {
			continue // not ours to read; what the chain needs it opens itself, and says why it cannot
		}
		var b [1]byte
		_, _ = f.ReadAt(b[:], 0) // the wait is what matters
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}
