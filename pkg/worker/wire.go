package worker

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// The control protocol: one JSON frame per SOCK_SEQPACKET message. The supervisor sends config once, then requests with
// an ID; the worker sends events, and one answer to each request.
type frame struct {
	Op   string          `json:"op"`
	ID   uint64          `json:"id,omitempty"`
	Body json.RawMessage `json:"body,omitempty"`
	Err  *fault.Fault    `json:"error,omitempty"`
}

// Operations. The first group is requests, the second events.
const (
	opConfig = "config"
	opGrow   = "grow"
	opFlush  = "flush"
	opStats  = "stats"
	opStop   = "stop"

	// A change of the links: its request is answered when it is done; meanwhile the worker sends events with the request's
	// ID, of which commit and pace are questions that the supervisor answers.
	opSnapshot  = "snapshot"
	opMerge     = "merge"
	opMergeCost = "mergeCost"
	opRemote    = "remote"    // by what a remote disk finds and convinces servers from now on
	opCancel    = "cancel"    // ends the change of that ID
	opCommitted = "committed" // answers commit
	opPaced     = "paced"     // answers pace
	evCommit    = "commit"    // make the change permanent; requests wait until the answer is here
	evPace      = "pace"      // may so many bytes be copied?
	evProgress  = "progress"

	evReady    = "ready"    // the disk is open; about to serve
	evFailed   = "failed"   // the worker ends, for this reason
	evGone     = "gone"     // the device is gone; waiting for stop
	evPoisoned = "poisoned" // a sync failed
	evTrouble  = "trouble"  // a request failed; its error says why
	evState    = "state"    // of a remote disk: how it is reached now
	opAnswer   = "answer"
	opStopped  = "stopped" // the answer to stop: no worker comes after this one
)

// config is what a worker is told.
type config struct {
	ID       string      `json:"id"`
	Links    []chain.Ref `json:"links"`
	ReadOnly bool        `json:"readOnly,omitempty"`
	Format   vmdk.Format `json:"format"`
	// Rebind is what descriptors must say that a merge, committed by a worker that died, may not have changed.
	Rebind  []chain.Identity `json:"rebind,omitempty"`
	NoLocks bool             `json:"noLocks,omitempty"`
	// Scratch says that the disk's redo log is at descriptor scratchFD.
	Scratch bool `json:"scratch,omitempty"`
	// Remote says that the disk is one that another host has open.
	Remote *RemoteSpec `json:"remote,omitempty"`
}

// ready is what a worker tells when it is about to serve.
type ready struct {
	Size       int64  `json:"size"`
	Generation uint64 `json:"generation"`
	Takeover   bool   `json:"takeover"`
	Pending    int    `json:"pending"`
	Poisoned   bool   `json:"poisoned"`
	Walls      Walls  `json:"walls"`
}

// Walls says which protections a worker has around itself.
type Walls struct {
	Landlock  int      `json:"landlock"` // ABI version, 0: none
	Seccomp   bool     `json:"seccomp"`
	NoCaps    bool     `json:"noCaps"`
	IOFlusher bool     `json:"ioFlusher"`
	Missing   []string `json:"missing,omitempty"` // what could not be put up, and why
}

// Stats is what a worker counts.
type Stats struct {
	Size       int64  `json:"size"`       // bytes
	Generation uint64 `json:"generation"` // workers that served this attachment, this one included
	Pending    int    `json:"pending"`    // grain-table entries not yet durable
	Requests   uint64 `json:"requests"`   // read by this worker
	Resent     uint64 `json:"resent"`     // of these, taken over from its predecessor
}

type growBody struct {
	Size int64 `json:"size"`
}

// frameSize bounds a frame; the longest is the config of the deepest chain.
const frameSize = 1 << 20

// link is one end of a control socket. send may be called concurrently, receive by one goroutine.
type link struct {
	c   *net.UnixConn
	mu  sync.Mutex
	buf []byte
}

// newLink takes f over.
func newLink(f *os.File) (*link, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fault.Wrap(err, "open the control socket")
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		_ = c.Close()
		return nil, fault.New(fault.Internal, "", "the control socket is a %T", c)
	}
	return &link{c: u, buf: make([]byte, frameSize)}, nil
}

// socketPair is a control socket; the second end is for the child.
func socketPair() (mine, child *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	for _, fd := range fds { // a limit of the system may make it less: then a frame that is too large is refused
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 2*frameSize)
	}
	return os.NewFile(uintptr(fds[0]), "control"), os.NewFile(uintptr(fds[1]), "control"), nil
}

func (l *link) send(op string, id uint64, body any, failure error) error {
	fr := frame{Op: op, ID: id, Err: fault.From(failure)}
	var err error
	if body != nil {
		if fr.Body, err = json.Marshal(body); err != nil {
			return err
		}
	}
	b, err := json.Marshal(fr)
	if err != nil {
		return err
	}
	if len(b) > frameSize {
		return fault.New(fault.OutOfRange, "", "a control frame of %d bytes", len(b))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	_, err = l.c.Write(b)
	return err
}

// receive returns io.EOF when the other end is closed and everything it sent was received.
func (l *link) receive() (frame, error) {
	n, _, flags, _, err := l.c.ReadMsgUnix(l.buf, nil)
	if errors.Is(err, unix.ECONNRESET) {
		// The other end closed with a frame of ours unread. The kernel tells that once, before what the other end had sent
		// (unix_release_sock sets sk_err, __skb_try_recv_datagram takes it first): how a worker stopped may still be there.
		n, _, flags, _, err = l.c.ReadMsgUnix(l.buf, nil)
	}
	switch {
	case errors.Is(err, unix.ECONNRESET), err == nil && n == 0:
		return frame{}, io.EOF
	case err != nil:
		return frame{}, err
	case flags&unix.MSG_TRUNC != 0:
		return frame{}, fault.New(fault.Internal, "", "a control frame longer than %d bytes", frameSize)
	}
	var fr frame
	if err := json.Unmarshal(l.buf[:n], &fr); err != nil {
		return frame{}, fault.Wrap(err, "read a control frame")
	}
	fr.Body = append(json.RawMessage(nil), fr.Body...)
	return fr, nil
}

func (l *link) close() error { return l.c.Close() }
