package wire

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"sync"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// Client is the port of the hostd behind a socket. It connects when it is called; while hostd is away calls fail with
// fault.Unavailable. All methods may be called concurrently.
type Client struct {
	path string

	mu     sync.Mutex
	idle   []*net.UnixConn
	closed bool
}

var _ host.Host = (*Client)(nil)

// maxIdle is how many connections are kept.
const maxIdle = 8

// NewClient makes a client of the hostd that listens at path, now or later.
func NewClient(path string) *Client { return &Client{path: path} }

// Dial is NewClient for a hostd that must be there: it connects once. Kinds: Unavailable, Denied, Unsupported (version).
func Dial(ctx context.Context, path string) (*Client, error) {
	cl := NewClient(path)
	c, err := cl.connect(ctx)
	if err != nil {
		return nil, err
	}
	cl.put(c)
	return cl, nil
}

// Close ends the idle connections; calls that run finish, later ones fail.
func (cl *Client) Close() error {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	cl.closed = true
	for _, c := range cl.idle {
		_ = c.Close()
	}
	cl.idle = nil
	return nil
}

func (cl *Client) put(c *net.UnixConn) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	if cl.closed || len(cl.idle) >= maxIdle {
		_ = c.Close()
		return
	}
	cl.idle = append(cl.idle, c)
}

func (cl *Client) take() *net.UnixConn {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	n := len(cl.idle)
	if n == 0 {
		return nil
	}
	c := cl.idle[n-1]
	cl.idle = cl.idle[:n-1]
	return c
}

func (cl *Client) connect(ctx context.Context) (*net.UnixConn, error) {
	cl.mu.Lock()
	closed := cl.closed
	cl.mu.Unlock()
	if closed {
		return nil, fault.New(fault.Unavailable, "", "the client of hostd at %s is closed", cl.path)
	}
	var d net.Dialer
	nc, err := d.DialContext(ctx, "unix", cl.path)
	if err != nil {
		return nil, cl.away(ctx, err)
	}
	c := nc.(*net.UnixConn)
	var h hello
	err = within(ctx, c, func() error {
		if err := send(c, hello{Protocol: protocol, Version: Version}, nil); err != nil {
			return err
		}
		files, err := receive(c, maxHello, &h)
		closeFiles(files)
		return err
	})
	if err == nil && h.Fault != nil {
		_ = c.Close()
		return nil, h.Fault
	}
	if err != nil {
		_ = c.Close()
		return nil, cl.away(ctx, err)
	}
	return c, nil
}

// away is what a broken connection means to the caller.
func (cl *Client) away(ctx context.Context, err error) error {
	if cerr := ctx.Err(); cerr != nil {
		return fault.New(fault.Timeout, "Try again.", "hostd at %s: %w", cl.path, cerr)
	}
	if errors.Is(err, os.ErrPermission) {
		return fault.New(fault.Denied, "Run as root or as hostd's user.", "hostd at %s: %w", cl.path, err)
	}
	return fault.New(fault.Unavailable, "Check that vmdk-hostd runs on this node; try again.", "hostd at %s: %w", cl.path, err)
}

// within runs f, whose I/O on c ends when ctx does.
func within(ctx context.Context, c *net.UnixConn, f func() error) error {
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		_ = c.SetDeadline(time.Unix(1, 0))
	})
	err := f()
	if !stop() {
		<-stopped
	}
	return err
}

// call makes one request. files stay the caller's; those of the answer become the caller's.
func (cl *Client) call(ctx context.Context, method string, args any, files []*os.File, result any) ([]*os.File, error) {
	if err := ctx.Err(); err != nil {
		return nil, fault.Wrap(err, "%s", method)
	}
	req := request{Method: method, Files: len(files), Datastore: host.DatastoreFrom(ctx)}
	var err error
	if req.Args, err = json.Marshal(args); err != nil {
		return nil, fault.New(fault.Invalid, "", "arguments of %s: %w", method, err)
	}
	if len(files) > maxFiles {
		return nil, fault.New(fault.Exhausted, "", "%d descriptors exceed the limit of %d", len(files), maxFiles)
	}
	if deadline, ok := ctx.Deadline(); ok {
		req.Left = max(1, int64(time.Until(deadline)))
	}
	// An idle connection may belong to a hostd that was restarted since, or that has handed over to a successor and
	// answers Unavailable. Every method may be repeated, so what such a connection got is asked again on a new one.
	for c := cl.take(); c != nil; c = cl.take() {
		resp, got, err := exchange(ctx, c, req, files)
		if err == nil && !errors.Is(faultOf(resp), fault.Unavailable) {
			cl.put(c)
			return finish(resp, got, result)
		}
		closeFiles(got)
		_ = c.Close()
		if ctx.Err() != nil {
			return nil, cl.away(ctx, err)
		}
	}
	c, err := cl.connect(ctx)
	if err != nil {
		return nil, err
	}
	resp, got, err := exchange(ctx, c, req, files)
	if err != nil {
		_ = c.Close()
		return nil, cl.away(ctx, err)
	}
	if errors.Is(faultOf(resp), fault.Unavailable) {
		_ = c.Close()
	} else {
		cl.put(c)
	}
	return finish(resp, got, result)
}

func faultOf(r response) error {
	if r.Fault == nil {
		return nil
	}
	return r.Fault
}

// exchange sends the request and reads the answer. An error means that the connection cannot be used any more.
func exchange(ctx context.Context, c *net.UnixConn, req request, files []*os.File) (resp response, got []*os.File, err error) {
	err = within(ctx, c, func() error {
		if err := send(c, req, files); err != nil {
			return err
		}
		var err error
		got, err = receive(c, MaxFrame, &resp)
		return err
	})
	if err == nil {
		err = count(got, resp.Files)
	}
	if err == nil && ctx.Err() != nil {
		err = ctx.Err() // the connection's deadline has been set: it is of no further use
	}
	if err != nil {
		closeFiles(got)
		got = nil
	}
	return resp, got, err
}

func finish(resp response, got []*os.File, result any) ([]*os.File, error) {
	if resp.Fault != nil {
		closeFiles(got)
		return nil, resp.Fault
	}
	if result != nil && len(resp.Result) > 0 {
		if err := json.Unmarshal(resp.Result, result); err != nil {
			closeFiles(got)
			return nil, fault.New(fault.Internal, "Use the same release of vmdk-csi on both sides.", "hostd's answer: %w", err)
		}
	}
	return got, nil
}

// plain is call for methods whose answer carries no descriptors.
func (cl *Client) plain(ctx context.Context, method string, args, result any) error {
	got, err := cl.call(ctx, method, args, nil, result)
	closeFiles(got)
	return err
}

// Handover implements host.Keeper, for a successor of the hostd behind the socket.
func (cl *Client) Handover(ctx context.Context, take func(host.Held) error) error {
	c, err := cl.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	req := request{Method: mHandover}
	if deadline, ok := ctx.Deadline(); ok {
		req.Left = max(1, int64(time.Until(deadline)))
	}
	var out *fault.Fault
	err = within(ctx, c, func() error {
		if err := send(c, req, nil); err != nil {
			return err
		}
		for {
			var resp response
			files, err := receive(c, MaxFrame, &resp)
			if err != nil {
				return err
			}
			if !resp.More {
				closeFiles(files)
				out = resp.Fault
				return nil
			}
			if err := send(c, ack{Fault: fault.From(takeOne(resp, files, take))}, nil); err != nil {
				return err
			}
		}
	})
	if err != nil {
		return cl.away(ctx, err)
	}
	if out != nil {
		return out
	}
	return nil
}

// takeOne gives the disk of one response to take, which owns it from then on.
func takeOne(resp response, files []*os.File, take func(host.Held) error) error {
	var texts []heldText
	err := count(files, resp.Files)
	if err == nil {
		err = json.Unmarshal(resp.Result, &texts)
	}
	var held []host.Held
	if err == nil {
		held, err = unpack(texts, files)
	}
	if err == nil && len(held) != 1 {
		err = fault.New(fault.Internal, "", "a response with %d disks", len(held))
	}
	if err != nil {
		closeFiles(files)
		return err
	}
	return take(held[0])
}
