package iscsi

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/scsi"
)

// Config says which logical unit of which target is meant, and who asks.
type Config struct {
	Portal    string // host:port
	Target    string // the target's iSCSI name
	Initiator string // ours; the target's access lists and its reservations know us by it
	LUN       uint16 // 0..16383

	User, Secret             string // CHAP: what we prove; "": no authentication
	TargetUser, TargetSecret string // CHAP: what the target must prove; TargetSecret "": nothing

	Digests bool // ask for CRC32C of headers and data

	// Timeout is how long the target may be silent, and a login take; default 10s. Command is how long one command may take; default 30s.
	// Recover is for how long a lost connection is a pause; default 2 minutes.
	Timeout, Command, Recover time.Duration

	// ISID identifies the session with Initiator: with the same one a target takes us for who we were. Zero: a random one.
	ISID [6]byte
	Dial func(ctx context.Context, network, address string) (net.Conn, error) `json:"-"` // nil: a net.Dialer's
	Log  *slog.Logger                                                         // nil: silence
}

func (c *Config) dial(ctx context.Context, address string) (net.Conn, error) {
	if c.Dial != nil {
		return c.Dial(ctx, "tcp", address)
	}
	d := net.Dialer{Timeout: c.Timeout}
	return d.DialContext(ctx, "tcp", address)
}

func (c *Config) check() error {
	for _, x := range []struct {
		what  string
		wrong bool
	}{{"a portal", c.Portal == ""}, {"a target name", c.Target == ""}, {"an initiator name", c.Initiator == ""}, {"a LUN up to 16383", c.LUN > 16383},
		{"a CHAP secret of at least 12 bytes", c.User != "" && len(c.Secret) < 12}, {"a CHAP name of its own before the target's secret", c.User == "" && c.TargetSecret != ""}} {
		if x.wrong {
			return fault.New(fault.Invalid, "", "an iSCSI session needs %s", x.what)
		}
	}
	for d, standard := range map[*time.Duration]time.Duration{&c.Timeout: 10 * time.Second, &c.Command: 30 * time.Second, &c.Recover: 2 * time.Minute} {
		if *d <= 0 {
			*d = standard
		}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.ISID == [6]byte{} {
		if _, err := rand.Read(c.ISID[1:4]); err != nil {
			return err
		}
		c.ISID[0] = 0x80 // type "random" (RFC 7143 section 11.12.5)
	}
	return nil
}

// Session is an open session with a target; see the package's documentation.
type Session struct {
	c      Config
	ctx    context.Context // ends when the session is closed
	cancel context.CancelFunc
	ended  chan struct{} // the goroutine that connects is gone

	mu    sync.Mutex
	work  *sync.Cond // the writer has something to do
	queue []*task    // not sent, or to be sent again
	sent  map[uint32]*task
	tag   uint32
	conn  *conn // nil while there is none
	why   error // why there is none
}

var _ scsi.Transport = (*Session)(nil)

// task is a command on its way.
type task struct {
	cmd      scsi.Command
	reset    bool // not a command but the task management function LOGICAL UNIT RESET
	done     chan struct{}
	result   scsi.Result
	err      error
	order    uint64 // in which commands were given
	tag      uint32
	sentAt   time.Time
	finished bool // done is closed as soon as the writer does not use its memory
	gaveUp   error
}

// Open logs in once, so that what is wrong is told at once. Kinds: Invalid, Unavailable, Denied, NotFound, Unsupported.
func Open(ctx context.Context, c Config) (*Session, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	nc, p, err := connect(ctx, &c, c.ISID)
	if err != nil {
		return nil, err
	}
	s := &Session{c: c, ended: make(chan struct{}), sent: map[uint32]*task{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.work = sync.NewCond(&s.mu)
	go s.run(nc, p)
	return s, nil
}

// Close ends the session; commands that wait fail.
func (s *Session) Close() error {
	s.cancel()
	<-s.ended
	return nil
}

// ISID is what identifies the session beside the initiator's name.
func (s *Session) ISID() [6]byte { return s.c.ISID }

// run keeps a connection up.
func (s *Session) run(nc net.Conn, p params) {
	defer close(s.ended)
	lost := time.Now()
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		if nc != nil {
			err := s.serve(nc, p)
			lost, wait = time.Now(), 50*time.Millisecond
			s.requeue(err)
			s.c.Log.Warn("iSCSI connection lost", "target", s.c.Target, "portal", s.c.Portal, "error", err)
		}
		var err error
		if nc, p, err = connect(s.ctx, &s.c, s.c.ISID); err == nil {
			s.c.Log.Info("iSCSI session is up again", "target", s.c.Target, "portal", s.c.Portal)
			continue
		}
		if s.ctx.Err() != nil {
			s.failAll(fault.New(fault.Unavailable, "", "the iSCSI session is closed"))
			return
		}
		s.mu.Lock()
		s.why = err
		s.mu.Unlock()
		if time.Since(lost) > s.c.Recover {
			s.failAll(fault.Wrap(err, "no connection for %v", s.c.Recover))
		}
		select {
		case <-s.ctx.Done():
		case <-time.After(wait):
		}
	}
}

// requeue takes what a lost connection left: what can be repeated is to be sent again, in the order in which it was given.
func (s *Session) requeue(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var again []*task
	for tag, t := range s.sent {
		delete(s.sent, tag)
		switch {
		case t.finished:
			s.end(t)
		case t.gaveUp != nil:
			s.fail(t, t.gaveUp)
		case !t.cmd.Repeatable || t.reset:
			s.fail(t, fault.New(fault.Unavailable, "Look what the unit says, then decide.", "the connection was lost, the command's outcome is unknown: %w", why))
		default:
			again = append(again, t)
		}
	}
	s.queue = append(again, s.queue...)
	sortTasks(s.queue)
}

func (s *Session) failAll(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.queue {
		s.fail(t, why)
	}
	s.queue = nil
}

func (s *Session) fail(t *task, err error) {
	t.err = err
	s.end(t)
}

func (s *Session) end(t *task) { close(t.done) }

// Do implements scsi.Transport. When ctx ends while the target has the command, the connection is given up: only that ends the command
// for certain.
func (s *Session) Do(ctx context.Context, cmd scsi.Command) (scsi.Result, error) {
	if len(cmd.CDB) == 0 || len(cmd.CDB) > 16 || len(cmd.In) > 0 && len(cmd.Out) > 0 {
		return scsi.Result{}, fault.New(fault.Invalid, "", "a command of %d bytes, with %d bytes out and %d in", len(cmd.CDB), len(cmd.Out), len(cmd.In))
	}
	return s.do(ctx, &task{cmd: cmd, done: make(chan struct{})})
}

// ResetUnit ends every command that the unit has, whoever gave it (LOGICAL UNIT RESET, SAM-5 section 7.7): what fencing falls back on when a
// unit cannot preempt and abort.
func (s *Session) ResetUnit(ctx context.Context) error {
	_, err := s.do(ctx, &task{reset: true, done: make(chan struct{})})
	return err
}

var orders struct {
	sync.Mutex
	n uint64
}

func (s *Session) do(ctx context.Context, t *task) (scsi.Result, error) {
	orders.Lock()
	orders.n++
	t.order = orders.n
	orders.Unlock()
	s.mu.Lock()
	if s.ctx.Err() != nil {
		s.mu.Unlock()
		return scsi.Result{}, fault.New(fault.Unavailable, "", "the iSCSI session is closed")
	}
	s.queue = append(s.queue, t)
	s.work.Signal()
	s.mu.Unlock()
	select {
	case <-t.done:
	case <-ctx.Done():
		s.giveUp(t, context.Cause(ctx))
		<-t.done
	}
	return t.result, t.err
}

// giveUp ends a task that its caller does not want any more.
func (s *Session) giveUp(t *task, why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, q := range s.queue {
		if q == t {
			s.queue = append(s.queue[:i], s.queue[i+1:]...)
			s.fail(t, why)
			return
		}
	}
	t.gaveUp = why
	if s.conn != nil {
		s.conn.kill(errors.New("a command was given up"))
	}
}
