package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/sys"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

const (
	protocol = "vmdk-csi/hostd"
	// Version of the protocol; both sides must have the same one.
	Version = 1
	// MaxFrame is the most bytes of JSON in a frame: a list of some ten thousand disks.
	MaxFrame = 16 << 20
	// maxHello bounds what is read from somebody who has not been let in yet.
	maxHello = 4 << 10
	// maxFiles is the most descriptors of a frame: four for each slot of a bus (60), below the kernel's SCM_MAX_FD of 253
	// (include/net/scm.h).
	maxFiles = 240
)

type hello struct {
	Protocol string       `json:"protocol"`
	Version  int          `json:"version"`
	Fault    *fault.Fault `json:"fault,omitempty"`
}

type request struct {
	Method string `json:"method"`
	// Left is the time until the deadline in nanoseconds, 0 for none.
	Left int64 `json:"left,omitempty"`
	// Datastore is where the disk or snapshot lies, if the caller knows (host.WithDatastore).
	Datastore string          `json:"datastore,omitempty"`
	Args      json.RawMessage `json:"args,omitempty"`
	Files     int             `json:"files,omitempty"`
}

type response struct {
	Result json.RawMessage `json:"result,omitempty"`
	Fault  *fault.Fault    `json:"fault,omitempty"`
	More   bool            `json:"more,omitempty"` // another response follows when this one is acknowledged
	Files  int             `json:"files,omitempty"`
}

type ack struct {
	Fault *fault.Fault `json:"fault,omitempty"`
}

// send writes one frame. files stay the caller's.
func send(c *net.UnixConn, v any, files []*os.File) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(body) > MaxFrame {
		return fault.New(fault.Exhausted, "", "a message of %d bytes exceeds the limit of %d", len(body), MaxFrame)
	}
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			if fds[i], err = sys.Fd(f); err != nil {
				return err
			}
		}
		oob = unix.UnixRights(fds...)
	}
	frame := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body)))
	n, _, err := c.WriteMsgUnix(frame, oob, nil)
	runtime.KeepAlive(files)
	if err != nil {
		return err
	}
	if n < len(frame) {
		return io.ErrShortWrite
	}
	_, err = c.Write(body)
	return err
}

// receive reads one frame of at most limit bytes into v. The returned descriptors are the caller's; on an error there are none.
func receive(c *net.UnixConn, limit uint32, v any) (files []*os.File, err error) {
	defer func() {
		if err != nil {
			closeFiles(files)
			files = nil
		}
	}()
	var head [4]byte
	oob := make([]byte, unix.CmsgSpace(4*maxFiles))
	for got := 0; got < len(head); {
		n, oobn, flags, _, err := c.ReadMsgUnix(head[got:], oob)
		more, perr := parseRights(oob[:oobn])
		files = append(files, more...)
		switch {
		case err != nil:
			return files, err
		case perr != nil:
			return files, perr
		case flags&unix.MSG_CTRUNC != 0:
			return files, errors.New("descriptors were lost on the way: the limit of open files is reached (ulimit -n)")
		case n == 0 && got == 0:
			return files, io.EOF
		case n == 0:
			return files, io.ErrUnexpectedEOF
		}
		got += n
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > limit {
		return files, fault.New(fault.Invalid, "", "a message of %d bytes exceeds the limit of %d", size, limit)
	}
	// The memory follows what arrives, not what the header claims.
	body, err := io.ReadAll(io.LimitReader(c, int64(size)))
	if err != nil {
		return files, err
	}
	if len(body) < int(size) {
		return files, io.ErrUnexpectedEOF
	}
	return files, json.Unmarshal(body, v)
}

func parseRights(oob []byte) (files []*os.File, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for _, m := range msgs {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return files, err
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// count says whether a frame carried what it claims.
func count(files []*os.File, claimed int) error {
	if len(files) != claimed {
		return fault.New(fault.Internal, "", "a message carries %d descriptors and claims %d", len(files), claimed)
	}
	return nil
}
