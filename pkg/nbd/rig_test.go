package nbd

import (
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/block"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Named has exports by name.
type named map[string]*Export

func (n named) Resolve(_ context.Context, name string, _ Peer) (*Export, error) {
	if e := n[name]; e != nil {
		return e, nil
	}
	return nil, fault.New(fault.NotFound, "", "no export %q", name)
}

func (n named) List(context.Context, Peer) ([]string, error) { return []string{""}, nil }

// Rig is a server on a unix socket, which can be started anew.
type rig struct {
	t      *testing.T
	path   string
	server *Server
	ended  chan error
}

func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "nbd") // not t.TempDir: a socket's path has 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

func newRig(t *testing.T, r Resolver, o ServerOptions) *rig {
	t.Helper()
	g := &rig{t: t, path: socketPath(t)}
	g.start(r, o)
	t.Cleanup(g.kill)
	return g
}

func serveDevice(t *testing.T, d block.Device) *rig {
	return newRig(t, named{"": {Device: d, MultiConn: true}}, ServerOptions{})
}

type testLog struct{ t *testing.T }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Logf("%s", b)
	return len(b), nil
}

func (g *rig) start(r Resolver, o ServerOptions) {
	g.t.Helper()
	if o.Log == nil && testing.Verbose() {
		o.Log = slog.New(slog.NewTextHandler(testLog{g.t}, nil))
	}
	_ = os.Remove(g.path)
	l, err := net.Listen("unix", g.path)
	if err != nil {
		g.t.Fatal(err)
	}
	g.server, g.ended = NewServer(r, o), make(chan error, 1)
	server, ended := g.server, g.ended
	go func() { ended <- server.Serve(l) }()
}

// Kill ends the server as a death would: nothing is answered any more.
func (g *rig) kill() {
	if g.server == nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	g.server.kill()
	_ = g.server.Close(ctx)
	if err := <-g.ended; err != nil {
		g.t.Error(err)
	}
	g.server = nil
}

// Client connects.
func (g *rig) client(o ClientOptions) *Client {
	g.t.Helper()
	o.Network, o.Address = "unix", g.path
	if o.Log == nil && testing.Verbose() {
		o.Log = slog.New(slog.NewTextHandler(testLog{g.t}, nil))
	}
	c, err := Connect(context.Background(), o)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { c.Close() })
	return c
}

// Wire is a peer that says whatever a test wants.
type wire struct {
	t *testing.T
	net.Conn
}

func (g *rig) dial() *wire {
	g.t.Helper()
	nc, err := net.Dial("unix", g.path)
	if err != nil {
		g.t.Fatal(err)
	}
	_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
	g.t.Cleanup(func() { nc.Close() })
	return &wire{g.t, nc}
}

func (w *wire) get(n int) []byte {
	w.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(w, b); err != nil {
		w.t.Fatalf("read %d bytes: %v", n, err)
	}
	return b
}

func (w *wire) put(b []byte) {
	w.t.Helper()
	if _, err := w.Write(b); err != nil {
		w.t.Fatal(err)
	}
}

// Greet does the first words.
func (w *wire) greet() {
	w.get(18)
	w.put([]byte{0, 0, 0, flagFixedNewstyle | flagNoZeroes})
}

func optionBytes(code uint32, data []byte) []byte {
	b := binary.BigEndian.AppendUint64(nil, magicOption)
	b = binary.BigEndian.AppendUint32(b, code)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// Option sends an option and returns the replies until the acknowledgement or an error.
func (w *wire) option(code uint32, data []byte) (what uint32, all [][]byte) {
	w.t.Helper()
	w.put(optionBytes(code, data))
	for {
		h := w.get(20)
		what = binary.BigEndian.Uint32(h[12:])
		all = append(all, w.get(int(binary.BigEndian.Uint32(h[16:]))))
		if what == repAck || what&(1<<31) != 0 {
			return what, all
		}
	}
}

func goData(name string) []byte { return binary.BigEndian.AppendUint16(appendString(nil, name), 0) }

// Transmit brings the wire to the transmission phase.
func (w *wire) transmit(structured bool, contexts ...string) {
	w.t.Helper()
	w.greet()
	if structured {
		w.option(optStructuredReply, nil)
	}
	if len(contexts) > 0 {
		b := binary.BigEndian.AppendUint32(appendString(nil, ""), uint32(len(contexts)))
		for _, c := range contexts {
			b = appendString(b, c)
		}
		if what, _ := w.option(optSetMeta, b); what != repAck {
			w.t.Fatalf("SET_META_CONTEXT: %#x", what)
		}
	}
	if what, _ := w.option(optGo, goData("")); what != repAck {
		w.t.Fatalf("GO: %#x", what)
	}
}

func (w *wire) request(cmd, flags uint16, cookie, off uint64, length uint32, payload []byte) {
	w.t.Helper()
	b := make([]byte, requestSize)
	(&request{flags: flags, cmd: cmd, cookie: cookie, off: off, length: length}).encode(b)
	w.put(append(b, payload...))
}

// Simple reads a simple reply.
func (w *wire) simple() (errno uint32, cookie uint64) {
	w.t.Helper()
	b := w.get(simpleSize)
	if binary.BigEndian.Uint32(b) != magicSimple {
		w.t.Fatalf("no simple reply: %x", b)
	}
	return binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint64(b[8:])
}

type chunk struct {
	flags, kind uint16
	cookie      uint64
	data        []byte
}

func (w *wire) chunk() chunk {
	w.t.Helper()
	b := w.get(structuredSize)
	if binary.BigEndian.Uint32(b) != magicStructured {
		w.t.Fatalf("no structured reply: %x", b)
	}
	return chunk{binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint16(b[6:]), binary.BigEndian.Uint64(b[8:]), w.get(int(binary.BigEndian.Uint32(b[16:])))}
}

// Until polls.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for limit := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(limit) {
			t.Fatalf("waited too long: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}
