package san

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/block"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/store"
)

// Client is the metadata server as a node sees it: a Server, or whatever carries requests to one.
type Client interface {
	Renew(ctx context.Context, grant, generation uint64, digest string) (Renewal, error)
	Return(ctx context.Context, grant, generation uint64) error
}

// MapperConfig is what a node makes a Mapper with.
type MapperConfig struct {
	// LUNs are those of the map, in its order, opened by a path of the node's own, past its page cache (fsx.OpenDevice with
	// Direct). They stay the caller's to close after the Mapper.
	LUNs []fsx.File
	// Sent is when the request for the map was sent, by Clock.
	Sent  time.Duration
	Clock Clock // nil: BootTime
	// Client may be nil where the map does not end.
	Client Client
}

// Mapper is a disk on a LUN. It is a block.Device.
type Mapper struct {
	m      *Map
	luns   []fsx.File
	clock  Clock
	client Client

	mu       sync.Mutex
	until    time.Duration // end of the lease
	gone     error         // why there is no map any more
	recalled bool
	changed  chan struct{} // closed and replaced with every change of these, and when active becomes 0
	dead     chan struct{} // closed when the map is gone
	active   int           // requests under way
}

var (
	_ block.Device = (*Mapper)(nil)
	_ Client       = (*Server)(nil)
)

// NewMapper validates a map and makes sure that the paths lead to its LUNs: the store's owner has written a number into the
// identity block that the map repeats. Kinds: Invalid (the map), Precondition (another LUN, a smaller one, or an owner that was
// replaced meanwhile), and what reading the LUN gives.
func NewMapper(m *Map, c MapperConfig) (*Mapper, error) {
	if err := m.Validate(); err != nil {
		return nil, err
	}
	if c.Clock == nil {
		c.Clock = BootTime{}
	}
	if len(c.LUNs) != len(m.LUNs) {
		return nil, fault.New(fault.Invalid, "", "%d LUNs are open for a map of %d", len(c.LUNs), len(m.LUNs))
	}
	for i, l := range m.LUNs {
		if err := checkLUN(c.LUNs[i], l); err != nil {
			return nil, err
		}
	}
	d := &Mapper{m: m, luns: c.LUNs, clock: c.Clock, client: c.Client, until: c.Sent + m.Lease, changed: make(chan struct{}), dead: make(chan struct{})}
	return d, nil
}

func checkLUN(lun fsx.File, want LUN) error {
	wrong := func(format string, args ...any) error {
		return fault.New(fault.Precondition, "Check the zoning and which device is named; another transport serves the disk meanwhile.", format, args...)
	}
	info, err := lun.Stat()
	if err != nil {
		return err
	}
	if info.Size < want.Bytes {
		return wrong("the LUN here has %d bytes, the map is of one with %d", info.Size, want.Bytes)
	}
	u, nonce, err := store.ReadNonce(lun)
	if errors.Is(err, fault.NotFound) {
		return wrong("the LUN here is not that of store %s: %w", want.Store, err)
	}
	if err != nil {
		return err
	}
	if u.String() != want.Store || store.UUID(nonce).String() != want.Nonce {
		return wrong("the LUN here is of store %s as %s, the map is of %s as %s", u, store.UUID(nonce), want.Store, want.Nonce)
	}
	return nil
}

// Size implements block.Device.
func (d *Mapper) Size() int64 { return d.m.Size }

// Map is what the mapper works with.
func (d *Mapper) Map() *Map { return d.m }

// begin lets a request through while there is enough left of the lease for it, waits for a renewal when there is not, and
// fails when the map is gone.
func (d *Mapper) begin() error {
	d.mu.Lock()
	for {
		now := d.clock.Now()
		if d.gone == nil && now >= d.until {
			d.drop(fault.New(fault.Unavailable, "Get a new map, or use another transport.", "the lease of the block map of %s has ended", d.m.Volume))
		}
		if d.gone != nil {
			defer d.mu.Unlock()
			return d.gone
		}
		if d.until-now >= d.m.MaxIO {
			d.active++
			d.mu.Unlock()
			return nil
		}
		changed, left := d.changed, d.until-now
		d.mu.Unlock()
		select {
		case <-changed:
		case <-d.clock.After(left):
		}
		d.mu.Lock()
	}
}

func (d *Mapper) end() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.active--; d.active == 0 {
		d.tell()
	}
}

// tell wakes whoever waits for a change. Called with mu held.
func (d *Mapper) tell() {
	close(d.changed)
	d.changed = make(chan struct{})
}

// drop forgets the map; the first reason stays. Called with mu held.
func (d *Mapper) drop(why error) {
	if d.gone == nil {
		d.gone = why
		close(d.dead)
		d.tell()
	}
}

// each visits the extents of a range, which must lie inside.
func (d *Mapper) each(off, n int64, visit func(x Extent, at, part int64) error) error {
	i, _ := slices.BinarySearchFunc(d.m.Extents, off, func(x Extent, off int64) int { return cmp.Compare(x.Off+x.Len, off+1) })
	for end := off + n; off < end; i++ {
		x := d.m.Extents[i]
		part := min(x.Off+x.Len, end) - off
		if err := visit(x, x.Place+off-x.Off, part); err != nil {
			return err
		}
		off += part
	}
	return nil
}

// ReadAt implements block.Device.
func (d *Mapper) ReadAt(p []byte, off int64) (int, error) {
	if err := block.CheckRange(d.m.Size, off, int64(len(p))); err != nil {
		return 0, err
	}
	if err := d.begin(); err != nil {
		return 0, err
	}
	defer d.end()
	done := int64(0)
	err := d.each(off, int64(len(p)), func(x Extent, at, n int64) error {
		part := p[done:][:n]
		done += n
		if x.Zero {
			clear(part)
			return nil
		}
		_, err := d.luns[x.LUN].ReadAt(part, at)
		return err
	})
	if err != nil {
		return 0, fault.Wrap(err, "read %s", d.m.Volume)
	}
	return len(p), nil
}

// change is a request that changes the disk.
func (d *Mapper) change(what string, off, n int64, do func(x Extent, at, part int64) error) error {
	if err := block.CheckRange(d.m.Size, off, n); err != nil {
		return err
	}
	if d.m.Mode != ReadWrite {
		return fault.New(fault.ReadOnly, "", "%s %s: its block map is read-only", what, d.m.Volume)
	}
	if err := d.begin(); err != nil {
		return err
	}
	defer d.end()
	return fault.Wrap(d.each(off, n, do), "%s %s", what, d.m.Volume)
}

// WriteAt implements block.Device.
func (d *Mapper) WriteAt(p []byte, off int64) (int, error) {
	done := int64(0)
	err := d.change("write", off, int64(len(p)), func(x Extent, at, n int64) error {
		part := p[done:][:n]
		done += n
		_, err := d.luns[x.LUN].WriteAt(part, at)
		return err
	})
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// WriteZeroes implements block.Device.
func (d *Mapper) WriteZeroes(off, n int64) error {
	return d.change("zero", off, n, func(x Extent, at, part int64) error { return d.luns[x.LUN].Zero(at, part) })
}

// Discard implements block.Device: a disk that is eagerly zeroed has no space to give back, and reads zeros afterwards.
func (d *Mapper) Discard(off, n int64) error { return d.WriteZeroes(off, n) }

// Flush implements block.Device: it reaches the LUN, not the server. A failed one takes the map away.
func (d *Mapper) Flush() error {
	if err := d.begin(); err != nil {
		return err
	}
	defer d.end()
	if d.m.Mode != ReadWrite {
		return nil
	}
	for _, l := range d.luns {
		if err := l.Datasync(); err != nil {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.drop(fault.New(fault.Poisoned, "Detach the disk, check it, and attach it again.",
				"a flush of %s failed, what it should have stored is uncertain: %w", d.m.Volume, err))
			return d.gone
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if errors.Is(d.gone, fault.Poisoned) { // one beside it failed: this one proves nothing either
		return d.gone
	}
	return nil
}
