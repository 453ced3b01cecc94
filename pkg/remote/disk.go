package remote

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/block"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/san"
)

// DiskConfig says which disk to use and how.
type DiskConfig struct {
	ClientConfig
	Volume   string
	ReadOnly bool
	// Order of transports that are asked for.
	Order []string
	// OpenLUN opens the path of this node to a LUN; nil: there is no SAN here. The Disk closes the file. A change that the file said to
	// have failed must not happen later.
	OpenLUN func(ctx context.Context, lun san.LUN) (fsx.File, error)
	// Changed is told of every change of the State, one call at a time. May be nil.
	Changed func(State)
	// Retry is how often SAN is tried while NBD serves, default 5 s; Patience how long requests wait for a server that is gone,
	// default 10 minutes.
	Retry, Patience time.Duration
}

// Disk is a disk of a remote datastore. See the package's documentation.
type Disk struct {
	c       DiskConfig
	client  *Client
	session int64
	seq     atomic.Int64 // of mapless
	asks    chan *ask
	life    context.Context //nolint:containedctx // ends with Close
	end     context.CancelFunc
	done    chan struct{} // closed when the keeper has ended
	close   func() error
	owed    *kept // of a LUN that is left: to be made again by NBD. The keeper's, and Close's after it

	mu      sync.Mutex
	way     *way          // nil while there is none
	inside  int           // requests on it
	closed  chan struct{} // not nil: new requests wait; closed when they may go on
	drained chan struct{} // not nil: somebody waits for inside == 0
	failed  error         // why the disk serves nothing any more
	state   State
	why     *fault.Fault // why SAN does not serve
}

var _ block.Device = (*Disk)(nil)

// OpenDisk opens the disk at the server and begins with the first transport of the order that works. Kinds: those of Datastore.Open,
// Unavailable, Denied; if NBD is not asked for, also why SAN is refused.
func OpenDisk(ctx context.Context, c DiskConfig) (*Disk, error) {
	if c.Retry == 0 {
		c.Retry = 5 * time.Second
	}
	if c.Patience == 0 {
		c.Patience = 10 * time.Minute
	}
	d := &Disk{c: c, client: NewClient(c.ClientConfig), session: time.Now().UnixNano(), asks: make(chan *ask), done: make(chan struct{})}
	d.c.Log = d.client.c.Log
	d.close = sync.OnceValue(d.shut)
	w, err := d.begin(ctx)
	if err != nil {
		d.client.Close()
		return nil, err
	}
	d.life, d.end = context.WithCancel(context.Background())
	d.way, d.state = w, d.stateOf(w)
	w.begin(d)
	d.tell()
	go d.keep()
	return d, nil
}

// busyTime is how long an opening waits for another operation on the disk.
const busyTime = 10 * time.Second

// begin opens the disk at the server, and is the way that it begins with.
func (d *Disk) begin(ctx context.Context) (*way, error) {
	busy, cancel := context.WithTimeout(ctx, busyTime)
	defer cancel()
	var last time.Duration
	for {
		_, err := d.client.open(ctx, d.body(true))
		if err == nil {
			return d.first(ctx)
		}
		if !errors.Is(err, fault.InProgress) || !pause(busy, &last) {
			return nil, err
		}
	}
}

// first is the way that an open disk begins with.
func (d *Disk) first(ctx context.Context) (*way, error) {
	if d.wantsSAN() {
		m, err := d.sanPath(ctx)
		if err == nil {
			var w *way
			if w, err = d.openSAN(ctx, m); err == nil {
				return w, nil
			}
		}
		d.why = fault.From(err)
		if !slices.Contains(d.c.Order, NBD) {
			return nil, err
		}
	}
	return d.openNBD(ctx)
}

func (d *Disk) body(fresh bool) diskBody {
	return diskBody{ID: d.c.Volume, ReadOnly: d.c.ReadOnly, Session: d.session, Fresh: fresh}
}

// mapless is the body of a request that is made while NBD serves, or nothing does: never by two goroutines beside a request for a map.
func (d *Disk) mapless() diskBody {
	b := d.body(false)
	b.Mapless, b.Seq = true, d.seq.Add(1)
	return b
}

// wantsSAN says whether SAN is asked for before NBD.
func (d *Disk) wantsSAN() bool {
	i, j := slices.Index(d.c.Order, SAN), slices.Index(d.c.Order, NBD)
	return i >= 0 && (j < 0 || i < j)
}

// stateOf is the state with w. Called before the keeper runs, by it, or with mu held.
func (d *Disk) stateOf(w *way) State {
	s := State{Transport: w.name, Size: w.Size()}
	for _, n := range d.c.Order {
		switch n {
		case w.name:
			return s
		case SAN:
			s.Skipped = append(s.Skipped, Skip{n, d.why})
		default:
			s.Skipped = append(s.Skipped, Skip{n, fault.New(fault.Unsupported, "", "disks of datastore %s are reached by %s or %s", d.c.Datastore, SAN, NBD)})
		}
	}
	return s
}

func (d *Disk) tell() {
	if d.c.Changed != nil {
		d.c.Changed(d.State())
	}
}

// State is how the disk is reached now.
func (d *Disk) State() State {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.state
	s.Skipped = slices.Clone(s.Skipped)
	return s
}

// do makes a request by the way that there is, and again by the next one if the LUN fails it.
func (d *Disk) do(request func(w *way) error) error {
	for {
		w, err := d.enter()
		if err != nil {
			return err
		}
		err = request(w)
		if err != nil && w.mapper != nil && lunFailed(err) {
			d.spoil(w, err)
			d.leave()
			continue
		}
		d.leave()
		return err
	}
}

// lunFailed tells a failure of the LUN or the map from a request that would fail anywhere.
func lunFailed(err error) bool {
	switch fault.KindOf(err) {
	case fault.OutOfRange, fault.ReadOnly, fault.Invalid, fault.Unsupported:
		return false
	}
	return true
}

// ReadAt implements block.Device.
func (d *Disk) ReadAt(p []byte, off int64) (n int, err error) {
	err = d.do(func(w *way) (err error) { n, err = w.ReadAt(p, off); return err })
	return n, err
}

// WriteAt implements block.Device.
func (d *Disk) WriteAt(p []byte, off int64) (n int, err error) {
	err = d.do(func(w *way) (err error) { n, err = w.WriteAt(p, off); return err })
	return n, err
}

// Flush implements block.Device.
func (d *Disk) Flush() error { return d.do(func(w *way) error { return w.Flush() }) }

// Discard implements block.Device.
func (d *Disk) Discard(off, n int64) error {
	return d.do(func(w *way) error { return w.Discard(off, n) })
}

// WriteZeroes implements block.Device.
func (d *Disk) WriteZeroes(off, n int64) error {
	return d.do(func(w *way) error { return w.WriteZeroes(off, n) })
}

// Size implements block.Device.
func (d *Disk) Size() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.state.Size
}

// Grow asks the server for the size now, which must be size at least. Kinds: Precondition.
func (d *Disk) Grow(ctx context.Context, size int64) error {
	r, err := d.client.open(ctx, d.body(false))
	switch {
	case err != nil:
		return err
	case r.Size < size:
		return fault.New(fault.Precondition, "Expand it first.", "disk %s has %d bytes at its server, asked for are %d", d.c.Volume, r.Size, size)
	case d.Size() >= r.Size:
		return nil
	}
	if err := d.ask(ctx, d.renew); err != nil {
		return err
	}
	if d.Size() < size {
		return fault.New(fault.InProgress, "Try again.", "disk %s is still served with %d bytes", d.c.Volume, d.Size())
	}
	return nil
}

// Close flushes, gives the block map back and ends the connections. It does not release the disk: Client.CloseVolume does.
func (d *Disk) Close() error { return d.close() }

// closeTime bounds what Close waits for a server besides a flush over NBD.
const closeTime = 10 * time.Second

func (d *Disk) shut() error {
	d.end()
	<-d.done
	defer d.client.Close()
	d.hold()
	d.mu.Lock()
	w, err := d.way, d.failed
	d.way = nil
	d.mu.Unlock()
	if w != nil {
		ctx, cancel := context.WithTimeout(context.Background(), closeTime)
		defer cancel()
		err = errors.Join(err, w.finish(ctx, d))
	} else if d.owed.some() {
		ctx, cancel := context.WithTimeout(context.Background(), closeTime)
		defer cancel()
		err = errors.Join(err, d.pay(ctx, d.owed))
	}
	d.fail(fault.New(fault.Unavailable, "", "the disk was closed"))
	return err
}
