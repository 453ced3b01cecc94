package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// maxLine bounds a message of QEMU's; the longest, the list of all block nodes, is some 2 KiB for each.
const maxLine = 8 << 20

// monitor is a connection to QEMU's machine protocol (docs/interop/qmp-spec): JSON lines, a greeting, capabilities
// negotiation, then commands with ids and events. Methods may be called concurrently.
type monitor struct {
	conn   net.Conn
	lines  *bufio.Scanner
	done   chan struct{} // closed when the reading goroutine has ended
	forget func() bool   // of the context

	mu      sync.Mutex // guards what follows and writes to conn; nothing waits while it is held but a write
	last    uint64
	pending map[uint64]chan message
	watches map[*watch]bool
	failed  error // why nothing is read any more
}

type message struct {
	Return json.RawMessage `json:"return"`
	Error  *refusal        `json:"error"`
	ID     uint64          `json:"id"`
	Event  string          `json:"event"`
	Data   json.RawMessage `json:"data"`
}

// refusal is QEMU's answer to a command that it did not execute.
type refusal struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func (r *refusal) Error() string { return r.Desc }

// watch is a wait for one event.
type watch struct {
	is  func(name string, data json.RawMessage) bool
	got chan message // takes one
}

// dial connects and negotiates. The connection ends with ctx. QEMU serves one client of a monitor at a time: while
// another is connected, dial waits for its end.
func dial(ctx context.Context, path string) (*monitor, error) {
	conn, err := dialSocket(ctx, path)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "Look whether the virtual machine runs and has a -qmp socket at this path.", "%w", err)
	}
	m := &monitor{conn: conn, lines: bufio.NewScanner(conn), done: make(chan struct{}),
		pending: map[uint64]chan message{}, watches: map[*watch]bool{}}
	m.lines.Buffer(make([]byte, 0, 64<<10), maxLine)
	m.forget = context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) }) // wakes whoever reads or writes
	var greeting struct {
		QMP json.RawMessage `json:"QMP"`
	}
	if !m.lines.Scan() || json.Unmarshal(m.lines.Bytes(), &greeting) != nil || greeting.QMP == nil {
		err := m.lines.Err()
		m.forget()
		_ = conn.Close() // nothing was sent
		if ctx.Err() != nil {
			return nil, fault.New(fault.Timeout, "Look which program holds the monitor: it serves one at a time, so give this one a -qmp socket of its own.",
				"no greeting from QEMU: %w", ctx.Err())
		}
		return nil, fault.New(fault.Unavailable, "", "no greeting from QEMU (%v)", err)
	}
	go m.read()
	if _, err := m.call(ctx, "qmp_capabilities", nil); err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

// dialSocket tries again where the socket's short queue is full.
func dialSocket(ctx context.Context, path string) (net.Conn, error) {
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
		if !errors.Is(err, syscall.EAGAIN) {
			return conn, err
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (m *monitor) read() {
	defer close(m.done)
	err := m.readAll()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failed = fault.New(fault.Unavailable, "Look whether the virtual machine still runs.", "the connection to QEMU ended: %w", err)
	for id, c := range m.pending {
		close(c)
		delete(m.pending, id)
	}
	for w := range m.watches {
		close(w.got)
		delete(m.watches, w)
	}
}

func (m *monitor) readAll() error {
	for m.lines.Scan() {
		var x message
		if err := json.Unmarshal(m.lines.Bytes(), &x); err != nil {
			return fmt.Errorf("not a message: %w", err)
		}
		m.mu.Lock()
		if c := m.pending[x.ID]; x.Event == "" && c != nil {
			delete(m.pending, x.ID)
			c <- x // there is room for one, and there is one answer
		}
		for w := range m.watches {
			if x.Event != "" && w.is(x.Event, x.Data) {
				w.got <- x
				delete(m.watches, w)
			}
		}
		m.mu.Unlock()
	}
	if err := m.lines.Err(); err != nil {
		return err
	}
	return errors.New("closed by QEMU")
}

// call executes a command; an error of QEMU's is a *refusal.
func (m *monitor) call(ctx context.Context, command string, arguments any) (json.RawMessage, error) {
	answer := make(chan message, 1)
	if err := m.send(command, arguments, answer); err != nil {
		return nil, m.cause(ctx, err)
	}
	x, ok := <-answer // closed by the reading goroutine, which ends with ctx
	switch {
	case !ok:
		return nil, m.cause(ctx, m.reason())
	case x.Error != nil:
		return nil, fmt.Errorf("%s: %w", command, x.Error)
	}
	return x.Return, nil
}

func (m *monitor) send(command string, arguments any, answer chan message) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failed != nil {
		return m.failed
	}
	m.last++
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, arguments, m.last})
	if err != nil {
		return err
	}
	if _, err := m.conn.Write(append(line, '\n')); err != nil {
		return fault.New(fault.Unavailable, "Look whether the virtual machine still runs.", "send %s to QEMU: %w", command, err)
	}
	m.pending[m.last] = answer
	return nil
}

func (m *monitor) reason() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.failed
}

// cause is ctx's error where that ended the connection.
func (m *monitor) cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// watch begins to look for an event, before the command that brings it about.
func (m *monitor) watch(is func(name string, data json.RawMessage) bool) *watch {
	w := &watch{is: is, got: make(chan message, 1)}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failed != nil {
		close(w.got)
	} else {
		m.watches[w] = true
	}
	return w
}

// wait returns the event.
func (m *monitor) wait(ctx context.Context, w *watch) (message, error) {
	x, ok := <-w.got
	if !ok {
		return x, m.cause(ctx, m.reason())
	}
	return x, nil
}

// close ends the connection and waits for the reading goroutine.
func (m *monitor) close() {
	m.forget()
	_ = m.conn.Close() // nothing is on its way that anybody waits for
	<-m.done
}
