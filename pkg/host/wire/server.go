package wire

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// Options of Serve.
type Options struct {
	// UIDs may connect besides root and the own effective uid.
	UIDs []int
	Log  *slog.Logger // nil: silent
}

// helloTime bounds how long a connection may say nothing before its first frame is complete.
const helloTime = 10 * time.Second

type server struct {
	h    host.Host
	o    Options
	wg   sync.WaitGroup
	mu   sync.Mutex
	idle map[*net.UnixConn]bool // connections on which no request runs
	over bool
}

// Serve answers connections on l until ctx ends; it then closes l, cancels the requests that run, waits for them and
// returns nil. Another end of l is an error.
func Serve(ctx context.Context, l *net.UnixListener, h host.Host, o Options) error {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &server{h: h, o: o, idle: map[*net.UnixConn]bool{}}
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	var err error
	for {
		var c *net.UnixConn
		if c, err = l.AcceptUnix(); err != nil {
			if pause(ctx, err) {
				continue
			}
			break
		}
		s.wg.Go(func() {
			defer c.Close()
			s.serve(ctx, c)
		})
	}
	s.finish()
	s.wg.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return fault.Wrap(errors.Join(err, l.Close()), "accept connections")
}

// pause says whether accepting goes on after err, and waits when descriptors are short.
func pause(ctx context.Context, err error) bool {
	if ctx.Err() != nil || !errors.Is(err, unix.EMFILE) && !errors.Is(err, unix.ENFILE) && !errors.Is(err, unix.ECONNABORTED) {
		return false
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(100 * time.Millisecond):
		return true
	}
}

// finish ends the connections on which nothing runs; the others end after their request.
func (s *server) finish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	for c := range s.idle {
		_ = c.Close()
	}
}

// rest marks c as idle or busy; false means that the server is ending.
func (s *server) rest(c *net.UnixConn, idle bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if idle && !s.over {
		s.idle[c] = true
	} else {
		delete(s.idle, c)
	}
	return !s.over
}

func (s *server) serve(ctx context.Context, c *net.UnixConn) {
	if err := s.greet(c); err != nil {
		s.o.Log.Warn("connection refused", "error", err)
		return
	}
	for s.rest(c, true) {
		var req request
		files, err := receive(c, MaxFrame, &req)
		if err == nil {
			if err = count(files, req.Files); err != nil {
				closeFiles(files)
			}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) && !errors.Is(err, unix.ECONNRESET) {
				s.o.Log.Warn("connection ended", "error", err)
			}
			s.rest(c, false)
			return
		}
		s.rest(c, false)
		if !s.handle(ctx, c, req, files) {
			return
		}
	}
}

// greet checks who is there and which version they speak.
func (s *server) greet(c *net.UnixConn) error {
	_ = c.SetDeadline(time.Now().Add(helloTime))
	defer func() { _ = c.SetDeadline(time.Time{}) }()
	// The greeting is read first in any case: an end with unread bytes could cost the client the answer.
	var h hello
	files, err := receive(c, maxHello, &h)
	closeFiles(files)
	if err != nil {
		return err
	}
	uid, err := peerUID(c)
	if err == nil && uid != 0 && uid != os.Geteuid() && !slices.Contains(s.o.UIDs, uid) {
		err = fault.New(fault.Denied, "Run the client as root, as hostd's user, or name its uid with --allow-uid.", "uid %d may not use hostd", uid)
	}
	if err == nil && (h.Protocol != protocol || h.Version != Version) {
		err = fault.New(fault.Unsupported, "Use the same release of vmdk-csi on both sides.",
			"the client speaks %q version %d, hostd %q version %d", h.Protocol, h.Version, protocol, Version)
	}
	return errors.Join(err, send(c, hello{Protocol: protocol, Version: Version, Fault: fault.From(err)}, nil))
}

func peerUID(c *net.UnixConn) (int, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return -1, err
	}
	if cerr != nil {
		return -1, cerr
	}
	return int(cred.Uid), nil
}

// handle answers one request; false ends the connection.
func (s *server) handle(ctx context.Context, c *net.UnixConn, req request, files []*os.File) bool {
	defer closeFiles(files)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if req.Left > 0 {
		ctx, cancel = context.WithTimeout(ctx, time.Duration(req.Left))
		defer cancel()
	}
	ctx = host.WithDatastore(ctx, req.Datastore)
	if req.Method == mHandover {
		return s.handover(ctx, c)
	}
	gone := s.watch(c, cancel)
	result, out, err := dispatch(ctx, s.h, req, files)
	alive := gone()
	defer host.CloseAll(out)
	if !alive {
		return false
	}
	resp := response{Fault: fault.From(err)}
	var send1 []*os.File
	if err == nil {
		if out != nil {
			var texts []heldText
			texts, send1 = pack(out)
			result = texts
		}
		if resp.Result, err = json.Marshal(result); err != nil {
			resp.Fault = fault.From(err)
		}
	}
	if len(send1) > maxFiles {
		resp, send1 = response{Fault: fault.New(fault.Exhausted, "", "%d descriptors exceed the limit of %d", len(send1), maxFiles)}, nil
	}
	resp.Files = len(send1)
	return send(c, resp, send1) == nil
}

// watch cancels when the client goes away while its request runs. The returned function ends the watch and says whether
// the client is still there.
func (s *server) watch(c *net.UnixConn, cancel context.CancelFunc) (end func() bool) {
	done := make(chan struct{})
	alive := true
	go func() {
		defer close(done)
		var b [1]byte
		// Nothing may come before the answer: a byte breaks the protocol, EOF is a client that gave up. The deadline that
		// ends the watch is the only good end.
		if _, err := c.Read(b[:]); !errors.Is(err, os.ErrDeadlineExceeded) {
			alive = false
			cancel()
		}
	}()
	return func() bool {
		_ = c.SetReadDeadline(time.Unix(1, 0))
		<-done
		_ = c.SetReadDeadline(time.Time{})
		return alive
	}
}

// handover gives every disk away, one acknowledged response each, and ends with one that says how it went.
func (s *server) handover(ctx context.Context, c *net.UnixConn) bool {
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })
	err := s.h.Handover(ctx, func(h host.Held) error {
		defer h.Close()
		texts, files := pack([]host.Held{h})
		text, err := json.Marshal(texts)
		if err != nil {
			return err
		}
		if err := send(c, response{Result: text, More: true, Files: len(files)}, files); err != nil {
			return err
		}
		var a ack
		got, err := receive(c, maxHello, &a)
		closeFiles(got)
		if err != nil {
			return err
		}
		if a.Fault != nil {
			return a.Fault
		}
		return nil
	})
	if !stop() {
		return false
	}
	return send(c, response{Fault: fault.From(err)}, nil) == nil
}
