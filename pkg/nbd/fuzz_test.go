package nbd

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/block"
)

// FuzzServer gives a connection whatever bytes. It must end, hang nothing, and answer to no more than it was asked.
func FuzzServer(f *testing.F) {
	hello := []byte{0, 0, 0, flagFixedNewstyle | flagNoZeroes}
	req := func(cmd, flags uint16, off uint64, n uint32) []byte {
		b := make([]byte, requestSize)
		(&request{flags: flags, cmd: cmd, cookie: 7, off: off, length: n}).encode(b)
		return b
	}
	meta := appendString(append(appendString(nil, ""), 0, 0, 0, 2), allocationContext)
	meta = appendString(meta, sessionQuery+"0123456789abcdef0123456789abcdef:1")
	full := bytes.Join([][]byte{hello, optionBytes(optStructuredReply, nil), optionBytes(optSetMeta, meta), optionBytes(optList, nil), optionBytes(optInfo, goData("x")),
		optionBytes(optGo, goData("")), req(cmdRead, 0, 0, 4096), req(cmdBlockStatus, 0, 0, 1<<20), req(cmdWrite, cmdFUA, 512, 5), []byte("hello"),
		req(cmdWriteZeroes, cmdFastZero, 0, 1<<20), req(cmdTrim, 0, 0, 4096), req(cmdCache, 0, 0, 4096), req(cmdFlush, 0, 0, 0), req(cmdRead, 0, 0, 1<<20), req(cmdDisc, 0, 0, 0)}, nil)
	f.Add(full)
	f.Add(append(bytes.Clone(hello), optionBytes(optExportName, nil)...))
	f.Add(append(bytes.Clone(hello), optionBytes(optStartTLS, nil)...))
	f.Add(append(bytes.Clone(hello), optionBytes(optAbort, nil)...))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		e := &Export{Device: block.Memory(1 << 20), Allocation: checkered(64 << 10)}
		s := NewServer(named{"": e}, ServerOptions{Handshake: 10 * time.Second, Stall: 10 * time.Second})
		ours, theirs := socketPair(t)
		read := make(chan int64)
		go func() {
			n, _ := io.Copy(io.Discard, theirs)
			read <- n
		}()
		s.start(newConn(s, ours))
		_ = theirs.SetWriteDeadline(time.Now().Add(10 * time.Second))
		_, _ = theirs.Write(b)
		_ = theirs.CloseWrite()
		n := <-read
		theirs.Close()
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
		if bytes.Equal(b, full) && n < 1<<19 {
			t.Errorf("%d bytes came back: the requests were not reached", n)
		}
		if s.Connections() != 0 || len(s.sessions) != 0 {
			t.Errorf("%d connections, %d sessions are left", s.Connections(), len(s.sessions))
		}
	})
}

// FuzzClient lets a server say whatever bytes.
func FuzzClient(f *testing.F) {
	g := []byte("NBDMAGICIHAVEOPT\x00\x03")
	f.Add(g)
	f.Add(append(bytes.Clone(g), bytes.Repeat([]byte{0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0}, 3)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		ours, theirs := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = theirs.Write(b)
			theirs.Close()
		}()
		go func() { _, _ = io.Copy(io.Discard, theirs) }()
		a := &agreement{nc: ours, got: negotiated{minBlock: 1, maxPiece: mostPiece}}
		if a.greet() == nil && a.chooseExport(sessionQuery) == nil {
			l := &line{s: &session{negotiated: a.got}, nc: ours, waiting: map[uint64]*pending{}}
			readAnswers(l, ours)
		}
		ours.Close()
		<-done
	})
}

// FuzzAnswers gives the client's receiver whatever bytes while it waits for a read, a status and a flush.
func FuzzAnswers(f *testing.F) {
	var r replies
	r.reset()
	r.failure(1, errnoIO, "no")
	r.simple(3, 0)
	r.chunk(2, chunkDone, chunkBlockStatus, 12, 12)
	f.Add(bytes.Join(r.vec, nil), true)
	f.Add(bytes.Join(r.vec, nil), false)
	f.Fuzz(func(_ *testing.T, b []byte, structured bool) {
		l := &line{s: &session{negotiated: negotiated{structured: structured, contextID: 1}}, waiting: map[uint64]*pending{
			1: newPending(cmdRead, 512, make([]byte, 4096)), 2: newPending(cmdBlockStatus, 0, nil), 3: newPending(cmdFlush, 0, nil)}}
		readAnswers(l, bytes.NewReader(b))
	})
}

func readAnswers(l *line, r io.Reader) {
	l.in = bufio.NewReaderSize(r, readAhead)
	for l.next() == nil {
	}
}

func socketPair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = c.(*net.UnixConn)
	}
	return ends[0], ends[1]
}
