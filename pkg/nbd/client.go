package nbd

import (
	"context"
	"crypto/tls"
	"iter"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/block"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// ClientOptions say which export a Client uses, and how.
type ClientOptions struct {
	// Network and Address as of net.Dial: "unix" and a path, "tcp" and HOST:PORT.
	Network, Address string
	// TLS is used if it is not nil; else the server must not force it.
	TLS *tls.Config
	// Export is the name, "" the default. Find, if not nil, is asked for address and name instead, for each session anew: a server
	// that was started anew may have forgotten the last ticket, and its successor may be elsewhere.
	Export string
	Find   func(ctx context.Context) (address, export string, err error)
	// Connections to use where the server allows several; default 4.
	Connections int
	// Patience is how long requests wait for a server that is gone, default two minutes. Then the device fails for good.
	Patience time.Duration
	// KeepBytes bounds what is kept of changes that no flush has covered; default 64 MiB.
	KeepBytes int64
	Log       *slog.Logger
}

// Client is a disk that a server serves. See the package's comment for what it promises.
type Client struct {
	o      ClientOptions
	id     string
	size   atomic.Int64
	ranges ranges
	press  sync.Mutex // one flush for room at a time
	done   chan struct{}
	life   context.Context //nolint:containedctx // ends with Close
	end    context.CancelFunc

	mu     sync.Mutex
	cur    *session      // nil while there is none
	ready  chan struct{} // closed when cur is there, or failed
	failed error
	kept   keeping
	epoch  uint64
}

var _ block.Device = (*Client)(nil)

// Connect opens an export. It does not wait for a server that is not there. Kinds: NotFound, Denied (the name, ticket or certificate is
// refused), Unavailable (nobody answers), Unsupported (the server cannot do what a disk must).
func Connect(ctx context.Context, o ClientOptions) (*Client, error) {
	if o.Connections == 0 {
		o.Connections = 4
	}
	if o.Patience == 0 {
		o.Patience = 2 * time.Minute
	}
	if o.KeepBytes == 0 {
		o.KeepBytes = 64 << 20
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	c := &Client{o: o, id: randomID(), done: make(chan struct{}), ready: make(chan struct{})}
	c.ranges.free = sync.NewCond(&c.ranges.mu)
	s, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	c.life, c.end = context.WithCancel(context.Background())
	c.publish(s)
	go c.watch(s)
	return c, nil
}

// Close ends the connections. It flushes nothing: what no Flush has covered is as durable as the server makes it.
func (c *Client) Close() error {
	c.fail(fault.New(fault.Unavailable, "", "the disk was closed"))
	c.end()
	<-c.done
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kept.forget(c.kept.last)
	return nil
}

// Size implements block.Device. It grows when a session begins with a larger disk.
func (c *Client) Size() int64 { return c.size.Load() }

// ReadOnly says that the server takes no changes.
func (c *Client) ReadOnly() bool {
	s, err := c.session()
	return err == nil && s.readOnly()
}

func (c *Client) check(off, n int64) error {
	if err := c.failure(); err != nil {
		return err
	}
	return block.CheckRange(c.Size(), off, n)
}

// ReadAt implements block.Device.
func (c *Client) ReadAt(p []byte, off int64) (int, error) {
	if err := c.check(off, int64(len(p))); err != nil {
		return 0, err
	}
	s, err := c.session()
	if err != nil {
		return 0, err
	}
	for done := 0; done < len(p); {
		n := min(len(p)-done, s.maxPiece)
		if err := c.readPiece(s, p[done:done+n], off+int64(done)); err != nil {
			return done, fault.Wrap(err, "read %d bytes at %d", n, off+int64(done))
		}
		done += n
	}
	return len(p), nil
}

func (c *Client) readPiece(s *session, p []byte, off int64) error {
	from, to := s.widen(off, int64(len(p)), c.size.Load())
	if from == off && to == off+int64(len(p)) {
		return c.do(newPending(cmdRead, off, p))
	}
	b := make([]byte, to-from)
	if err := c.do(newPending(cmdRead, from, b)); err != nil {
		return err
	}
	copy(p, b[off-from:])
	return nil
}

// WriteAt implements block.Device.
func (c *Client) WriteAt(p []byte, off int64) (int, error) {
	s, err := c.beginChange(off, int64(len(p)))
	if err != nil {
		return 0, err
	}
	for done := 0; done < len(p); {
		n := min(len(p)-done, s.maxPiece)
		if err := c.writePiece(s, p[done:done+n], off+int64(done)); err != nil {
			return done, fault.Wrap(err, "write %d bytes at %d", n, off+int64(done))
		}
		done += n
	}
	return len(p), nil
}

// BeginChange checks a change, and makes room for keeping it.
func (c *Client) beginChange(off, n int64) (*session, error) {
	if err := c.check(off, n); err != nil {
		return nil, err
	}
	s, err := c.session()
	if err != nil {
		return nil, err
	}
	if s.readOnly() {
		return nil, fault.New(fault.ReadOnly, "Open the disk for writing.", "the NBD server serves the disk read-only")
	}
	return s, c.makeRoom()
}

func (c *Client) keptBytes() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.kept.bytes
}

func (c *Client) makeRoom() error {
	if c.keptBytes() < c.o.KeepBytes {
		return nil
	}
	c.press.Lock()
	defer c.press.Unlock()
	if c.keptBytes() < c.o.KeepBytes {
		return nil
	}
	return c.Flush()
}

func (c *Client) writePiece(s *session, p []byte, off int64) error {
	from, to := s.widen(off, int64(len(p)), c.size.Load())
	leave := c.ranges.enter(from, to-from)
	defer leave()
	b := getBuffer(int(to - from))
	data := b.b[:to-from]
	if from != off || to != off+int64(len(p)) { // the range is ours: nobody changes it between reading and writing
		if err := c.do(newPending(cmdRead, from, data)); err != nil {
			b.put()
			return err
		}
	}
	copy(data[off-from:], p)
	k := newPending(cmdWrite, from, data)
	k.keep, k.memory = c, b
	return c.finishChange(k)
}

// FinishChange sends a change. What it holds in memory is kept when it succeeded.
func (c *Client) finishChange(k *pending) error {
	err := c.do(k)
	if err != nil {
		k.memory.put()
	}
	return err
}

// Discard implements block.Device: the range must read as zeros afterwards, which a trim does not promise.
func (c *Client) Discard(off, n int64) error { return c.zero(off, n, 0) }

// WriteZeroes implements block.Device.
func (c *Client) WriteZeroes(off, n int64) error { return c.zero(off, n, cmdNoHole) }

// MaxZeroes is what is zeroed by one request.
const maxZeroes = 1 << 30

func (c *Client) zero(off, n int64, flags uint16) error {
	s, err := c.beginChange(off, n)
	if err != nil {
		return err
	}
	if s.flags&transWriteZeroes == 0 {
		if flags == 0 {
			return fault.New(fault.Unsupported, "", "the NBD server cannot zero ranges")
		}
		return c.writeZeros(off, n)
	}
	block := int64(s.minBlock)
	for n > 0 {
		k := min(n, maxZeroes)
		if off%block != 0 || k < block { // parts of blocks are written
			k = min(n, block-off%block)
			err = c.writeZeros(off, k)
		} else {
			k = k / block * block
			err = c.zeroPiece(off, k, flags)
		}
		if err != nil {
			return fault.Wrap(err, "zero %d bytes at %d", k, off)
		}
		off, n = off+k, n-k
	}
	return nil
}

func (c *Client) zeroPiece(off, n int64, flags uint16) error {
	leave := c.ranges.enter(off, n)
	defer leave()
	k := newPending(cmdWriteZeroes, off, nil)
	k.length, k.flags, k.keep = uint32(n), flags, c
	return c.finishChange(k)
}

func (c *Client) writeZeros(off, n int64) error {
	b := make([]byte, min(n, 1<<20))
	for n > 0 {
		p := b[:min(n, int64(len(b)))]
		if _, err := c.WriteAt(p, off); err != nil {
			return err
		}
		off, n = off+int64(len(p)), n-int64(len(p))
	}
	return nil
}

// Flush implements block.Device. Once it has failed, the device has.
func (c *Client) Flush() error {
	if err := c.failure(); err != nil {
		return err
	}
	k := newPending(cmdFlush, 0, nil)
	k.keep = c
	c.mu.Lock()
	k.mark = c.kept.last
	c.mu.Unlock()
	s, err := c.session()
	if err != nil || s.readOnly() {
		return err
	}
	if err := c.do(k); err != nil {
		c.fail(fault.New(fault.Poisoned, "Detach the disk, check it, and attach it again.", "a flush failed, what it should have stored is uncertain: %w", err))
		return c.failure()
	}
	return c.failure() // a concurrent flush failed: this one proves nothing either
}

// Allocation asks for base:allocation; everything is data where the server does not tell.
func (c *Client) Allocation(off, n int64) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		for end := off + n; off < end; {
			list, err := c.status(off, min(end-off, maxZeroes))
			for _, x := range list {
				x.Length = min(x.Length, end-off)
				off += x.Length
				if !yield(x, nil) {
					return
				}
			}
			if err != nil {
				yield(Extent{}, err)
				return
			}
		}
	}
}

func (c *Client) status(off, n int64) ([]Extent, error) {
	if err := c.check(off, n); err != nil {
		return nil, err
	}
	s, err := c.session()
	if err != nil {
		return nil, err
	}
	if !s.allocation {
		return []Extent{{Length: n}}, nil
	}
	from, to := s.widen(off, n, c.size.Load())
	k := newPending(cmdBlockStatus, from, nil)
	k.length = uint32(to - from)
	if err := c.do(k); err != nil {
		return nil, err
	}
	for _, x := range k.extents {
		if x.Length <= 0 {
			k.extents = nil // nonsense
			break
		}
	}
	if len(k.extents) == 0 || k.extents[0].Length <= off-from {
		return []Extent{{Length: n}}, nil
	}
	k.extents[0].Length -= off - from
	return k.extents, nil
}
