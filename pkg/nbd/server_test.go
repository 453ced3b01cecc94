package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"iter"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/block"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Checkers are holes and data in turn, holes first.
func checkers(size, off int64) uint32 {
	if off/size%2 == 0 {
		return StateHole | StateZero
	}
	return 0
}

func checkered(size int64) func(off, n int64) iter.Seq2[Extent, error] {
	return func(off, n int64) iter.Seq2[Extent, error] {
		return func(yield func(Extent, error) bool) {
			for n > 0 {
				k := min(n, size-off%size)
				if !yield(Extent{k, checkers(size, off)}, nil) {
					return
				}
				off, n = off+k, n-k
			}
		}
	}
}

func TestOptions(t *testing.T) {
	g := newRig(t, named{"": {Device: block.Memory(1 << 20), Description: "a disk"}}, ServerOptions{})
	w := g.dial()
	w.greet()
	for _, tc := range []struct {
		what string
		code uint32
		data []byte
		want uint32
	}{
		{"unknown option", 99, nil, repErrUnsup},
		{"extended headers", 11, nil, repErrUnsup},
		{"list with data", optList, []byte{1}, repErrInvalid},
		{"list", optList, nil, repAck},
		{"contexts too early", optSetMeta, append(appendString(nil, ""), 0, 0, 0, 0), repErrInvalid},
		{"structured with data", optStructuredReply, []byte{1}, repErrInvalid},
		{"structured", optStructuredReply, nil, repAck},
		{"TLS without a certificate", optStartTLS, nil, repErrPolicy},
		{"too long", optInfo, make([]byte, maxOption+1), repErrTooBig},
		{"no data", optGo, []byte{}, repErrInvalid},
		{"name too long", optGo, goData(strings.Repeat("x", maxString+1)), repErrInvalid},
		{"more infos than there are", optGo, append(appendString(nil, ""), 0xff, 0xff), repErrInvalid},
		{"rest", optGo, append(goData(""), 1), repErrInvalid},
		{"unknown export", optGo, goData("other"), repErrUnknown},
		{"contexts of an unknown export", optSetMeta, append(appendString(nil, "other"), 0, 0, 0, 0), repErrUnknown},
		{"more queries than there are", optListMeta, append(appendString(nil, ""), 0xff, 0xff, 0xff, 0xff), repErrInvalid},
		{"contexts", optListMeta, append(appendString(nil, ""), 0, 0, 0, 0), repAck},
		{"info", optInfo, append(appendString(nil, ""), 0, 3, 0, infoName, 0, infoDescription, 0, infoDescription), repAck},
		{"go", optGo, goData(""), repAck},
	} {
		what, all := w.option(tc.code, tc.data)
		if what != tc.want {
			t.Errorf("%s: %#x, want %#x", tc.what, what, tc.want)
		}
		if tc.what == "info" && len(all) != 5 { // export, name, description once, block sizes, acknowledgement
			t.Errorf("info has %d replies", len(all))
		}
		if tc.what == "contexts" && (len(all) != 2 || string(all[0][4:]) != allocationContext) {
			t.Errorf("contexts: %q", all)
		}
	}
	w.request(cmdDisc, 0, 1, 0, 0, nil)
	until(t, "the connection ends", func() bool { return g.server.Connections() == 0 })
}

func TestExportName(t *testing.T) {
	w := serveDevice(t, block.Memory(1<<20)).dial()
	w.get(18)
	w.put([]byte{0, 0, 0, flagFixedNewstyle}) // with the zeros
	w.put(optionBytes(optExportName, nil))
	b := w.get(8 + 2 + 124)
	if binary.BigEndian.Uint64(b) != 1<<20 || !bytes.Equal(b[10:], make([]byte, 124)) {
		t.Errorf("%x", b)
	}
	w.request(cmdRead, 0, 5, 0, 512, nil)
	if errno, cookie := w.simple(); errno != 0 || cookie != 5 {
		t.Error(errno, cookie)
	}
	w.get(512)
}

func TestRequestsThatAreRefused(t *testing.T) {
	g := newRig(t, named{"": {Device: block.Memory(1 << 20), MinBlock: 512}}, ServerOptions{})
	w := g.dial()
	w.transmit(false)
	for i, tc := range []struct {
		what       string
		cmd, flags uint16
		off        uint64
		length     uint32
		want       uint32
	}{
		{"read behind the end", cmdRead, 0, 1 << 20, 512, errnoInvalid},
		{"read across the end", cmdRead, 0, 1<<20 - 512, 1024, errnoInvalid},
		{"read far away", cmdRead, 0, 1<<64 - 512, 1024, errnoInvalid},
		{"write across the end", cmdWrite, 0, 1<<20 - 512, 1024, errnoNoSpace},
		{"zeroes across the end", cmdWriteZeroes, 0, 1<<20 - 512, 1024, errnoNoSpace},
		{"trim across the end", cmdTrim, 0, 1<<20 - 512, 1024, errnoInvalid},
		{"trim far away", cmdTrim, 0, 1<<63 - 512, 1<<32 - 512, errnoInvalid},
		{"too long", cmdRead, 0, 0, maxPayload + 512, errnoInvalid},
		{"unaligned", cmdRead, 0, 1, 512, errnoInvalid},
		{"unaligned length", cmdWrite, 0, 0, 511, errnoInvalid},
		{"unknown command", 77, 0, 0, 0, errnoInvalid},
		{"unknown flag", cmdRead, 1 << 9, 0, 512, errnoInvalid},
		{"DF without structured replies", cmdRead, cmdDF, 0, 512, errnoInvalid},
		{"NO_HOLE of a read", cmdRead, cmdNoHole, 0, 512, errnoInvalid},
		{"status without contexts", cmdBlockStatus, 0, 0, 512, errnoInvalid},
	} {
		var payload []byte
		if tc.cmd == cmdWrite {
			payload = make([]byte, tc.length)
		}
		w.request(tc.cmd, tc.flags, uint64(i), tc.off, tc.length, payload)
		if errno, cookie := w.simple(); errno != tc.want || cookie != uint64(i) {
			t.Errorf("%s: errno %d of %d, want %d", tc.what, errno, cookie, tc.want)
		}
	}
	w.request(cmdFlush, 0, 99, 0, 0, nil)
	if errno, cookie := w.simple(); errno != 0 || cookie != 99 {
		t.Errorf("a good request behind all that: %d, %d", errno, cookie)
	}
}

func TestReadOnlyExport(t *testing.T) {
	w := newRig(t, named{"": {Device: block.Memory(1 << 20), ReadOnly: true}}, ServerOptions{}).dial()
	w.transmit(false)
	for i, cmd := range []uint16{cmdWrite, cmdTrim, cmdWriteZeroes} {
		var payload []byte
		if cmd == cmdWrite {
			payload = make([]byte, 512)
		}
		w.request(cmd, 0, uint64(i), 0, 512, payload)
		if errno, _ := w.simple(); errno != errnoPerm {
			t.Errorf("command %d: %d", cmd, errno)
		}
	}
}

func TestStructuredReads(t *testing.T) {
	mem := block.Memory(4 << 20)
	if _, err := mem.WriteAt(bytes.Repeat([]byte{9}, 1<<20), 1<<20); err != nil {
		t.Fatal(err)
	}
	w := newRig(t, named{"": {Device: mem, Allocation: checkered(1 << 20)}}, ServerOptions{}).dial()
	w.transmit(true)
	w.request(cmdRead, 0, 1, 0, 3<<20, nil)
	got, holes := map[uint64]int{}, 0
	for {
		k := w.chunk()
		off := binary.BigEndian.Uint64(k.data)
		switch k.kind {
		case chunkData:
			got[off] = len(k.data) - 8
			if !bytes.Equal(k.data[8:], bytes.Repeat([]byte{9}, len(k.data)-8)) {
				t.Errorf("data at %d", off)
			}
		case chunkHole:
			got[off] = int(binary.BigEndian.Uint32(k.data[8:]))
			holes++
		default:
			t.Fatalf("chunk %+v", k)
		}
		if k.flags&chunkDone != 0 {
			break
		}
	}
	total := 0
	for _, n := range got {
		total += n
	}
	if total != 3<<20 || holes != 2 {
		t.Errorf("%d bytes, %d holes: %v", total, holes, got)
	}
	w.request(cmdRead, cmdDF, 2, 0, 3<<20, nil)
	if k := w.chunk(); k.kind != chunkData || k.flags != chunkDone || len(k.data) != 8+3<<20 {
		t.Errorf("with DF: kind %d, %d bytes", k.kind, len(k.data))
	}
	w.request(cmdRead, 0, 3, 4<<20, 512, nil)
	if k := w.chunk(); k.kind != chunkError || k.flags != chunkDone || binary.BigEndian.Uint32(k.data) != errnoInvalid {
		t.Errorf("an error: %+v", k)
	}
}

func TestBlockStatus(t *testing.T) {
	changed := Context{"vmdk:changed:monday", func(off, n int64) iter.Seq2[Extent, error] { return checkered(2<<20)(off, n) }}
	g := newRig(t, named{"": {Device: block.Memory(8 << 20), Allocation: checkered(1 << 20), Contexts: []Context{changed}}}, ServerOptions{})
	w := g.dial()
	w.transmit(true, allocationContext, changed.Name, "other:one")
	for _, tc := range []struct {
		flags uint16
		want  [2][]Extent
	}{
		{0, [2][]Extent{{{1<<20 - 512, 3}, {1 << 20, 0}, {512, 3}}, {{2<<20 - 512, 3}, {512, 0}}}},
		{cmdReqOne, [2][]Extent{{{1<<20 - 512, 3}}, {{2<<20 - 512, 3}}}},
	} {
		w.request(cmdBlockStatus, tc.flags, 1, 512, 2<<20, nil)
		for i, want := range tc.want {
			k := w.chunk()
			if k.kind != chunkBlockStatus || binary.BigEndian.Uint32(k.data) != uint32(i+1) || k.flags&chunkDone != uint16(i) {
				t.Fatalf("%+v", k)
			}
			var list []Extent
			for p := (parser{b: k.data[4:]}); len(p.b) > 0; {
				list = append(list, Extent{int64(p.u32()), p.u32()})
			}
			if len(list) != len(want) {
				t.Fatalf("context %d: %v, want %v", i, list, want)
			}
			for j := range list {
				if list[j] != want[j] {
					t.Errorf("context %d: %v, want %v", i, list, want)
				}
			}
		}
	}
}

// Recorder counts calls.
type recorder struct {
	*block.Mem
	mu    sync.Mutex
	calls []string
	punch error
}

func (r *recorder) note(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, what)
}

func (r *recorder) said() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.calls, " ")
}

func (r *recorder) Flush() error { r.note("flush"); return r.Mem.Flush() }

func (r *recorder) Discard(off, n int64) error {
	r.note("discard")
	if r.punch != nil {
		return r.punch
	}
	return r.Mem.Discard(off, n)
}

func (r *recorder) WriteZeroes(off, n int64) error {
	r.note("zeroes")
	return r.Mem.WriteZeroes(off, n)
}

func TestWhatFlagsDo(t *testing.T) {
	unsupported := fault.New(fault.Unsupported, "", "no holes here")
	for _, tc := range []struct {
		cmd, flags uint16
		punch      error
		want       string
		errno      uint32
	}{
		{cmdWrite, 0, nil, "", 0},
		{cmdWrite, cmdFUA, nil, "flush", 0},
		{cmdFlush, 0, nil, "flush", 0},
		{cmdTrim, 0, nil, "discard", 0},
		{cmdTrim, cmdFUA, nil, "discard flush", 0},
		{cmdTrim, 0, unsupported, "discard", 0},
		{cmdWriteZeroes, 0, nil, "discard", 0},
		{cmdWriteZeroes, cmdFUA, nil, "discard flush", 0},
		{cmdWriteZeroes, 0, unsupported, "discard zeroes", 0},
		{cmdWriteZeroes, cmdNoHole, nil, "zeroes", 0},
		{cmdWriteZeroes, cmdNoHole | cmdFastZero, nil, "zeroes", 0},
		{cmdWriteZeroes, cmdFastZero, unsupported, "discard", errnoNotSup},
		{cmdCache, 0, nil, "", 0},
	} {
		r := &recorder{Mem: block.Memory(1 << 20), punch: tc.punch}
		w := serveDevice(t, r).dial()
		w.transmit(false)
		var payload []byte
		if tc.cmd == cmdWrite {
			payload = make([]byte, 512)
		}
		length := uint32(512)
		if tc.cmd == cmdFlush {
			length = 0
		}
		w.request(tc.cmd, tc.flags, 1, 512, length, payload)
		if errno, _ := w.simple(); errno != tc.errno || r.said() != tc.want {
			t.Errorf("command %d, flags %d: errno %d, %v; want %d, %s", tc.cmd, tc.flags, errno, r.said(), tc.errno, tc.want)
		}
	}
}

// Slow is a device whose reads at 0 wait.
type slow struct {
	*block.Mem
	wait chan struct{}
}

func (s *slow) ReadAt(p []byte, off int64) (int, error) {
	if off == 0 {
		<-s.wait
	}
	return s.Mem.ReadAt(p, off)
}

func TestAnswersOutOfOrder(t *testing.T) {
	s := &slow{block.Memory(1 << 20), make(chan struct{})}
	w := serveDevice(t, s).dial()
	w.transmit(false)
	w.request(cmdRead, 0, 1, 0, 64<<10, nil)
	w.request(cmdRead, 0, 2, 64<<10, 64<<10, nil)
	if errno, cookie := w.simple(); errno != 0 || cookie != 2 {
		t.Errorf("%d, %d", errno, cookie)
	}
	w.get(64 << 10)
	close(s.wait)
	if errno, cookie := w.simple(); errno != 0 || cookie != 1 {
		t.Errorf("%d, %d", errno, cookie)
	}
}

// Close answers what it has read, and then leaves.
func TestCloseAnswers(t *testing.T) {
	s := &slow{block.Memory(1 << 20), make(chan struct{})}
	g := serveDevice(t, s)
	w := g.dial()
	w.transmit(false)
	w.request(cmdRead, 0, 1, 0, 64<<10, nil)
	until(t, "the request runs", func() bool {
		select {
		case s.wait <- struct{}{}:
			return true
		default:
			return false
		}
	})
	closed := make(chan error)
	go func() { closed <- g.server.Close(t.Context()) }()
	if errno, cookie := w.simple(); errno != 0 || cookie != 1 {
		t.Errorf("%d, %d", errno, cookie)
	}
	w.get(64 << 10)
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if n, err := w.Read(make([]byte, 1)); err == nil {
		t.Errorf("%d bytes behind the last answer", n)
	}
}

func TestHostilePeers(t *testing.T) {
	for _, tc := range []struct {
		what string
		do   func(w *wire)
	}{
		{"garbage for flags", func(w *wire) { w.get(18); w.put([]byte("GET ")) }},
		{"garbage for an option", func(w *wire) { w.greet(); w.put(bytes.Repeat([]byte("GET / HTTP/1.1\r\n"), 4)) }},
		{"an option of 4 GiB", func(w *wire) { w.greet(); b := optionBytes(optGo, nil); copy(b[12:], "\xff\xff\xff\xff"); w.put(b) }},
		{"nothing at all", func(*wire) {}},
		{"half an option", func(w *wire) { w.greet(); w.put(optionBytes(optGo, make([]byte, 100))[:50]) }},
		{"options without end", func(w *wire) {
			w.greet()
			for range maxOptions {
				w.put(optionBytes(99, nil))
				w.get(20)
			}
		}},
		{"garbage for a request", func(w *wire) { w.transmit(false); w.put(bytes.Repeat([]byte{0x42}, requestSize)) }},
		{"a write of 4 GiB", func(w *wire) { w.transmit(false); w.request(cmdWrite, 0, 1, 0, 1<<32-1, nil) }},
		{"half a write", func(w *wire) { w.transmit(false); w.request(cmdWrite, 0, 1, 0, 1<<20, make([]byte, 1000)) }},
		{"answers that nobody reads", func(w *wire) {
			w.transmit(false)
			for i := range uint64(64) {
				w.request(cmdRead, 0, i, 0, 1<<20, nil)
			}
		}},
	} {
		t.Run(tc.what, func(t *testing.T) {
			t.Parallel()
			g := newRig(t, named{"": {Device: block.Memory(1 << 20)}}, ServerOptions{Handshake: 300 * time.Millisecond, Stall: 300 * time.Millisecond})
			w := g.dial()
			until(t, "the connection is there", func() bool { return g.server.Connections() == 1 })
			tc.do(w)
			until(t, "the server ends the connection", func() bool { return g.server.Connections() == 0 })
		})
	}
}

func TestTooManyConnections(t *testing.T) {
	g := newRig(t, named{"": {Device: block.Memory(1 << 20)}}, ServerOptions{MaxConnections: 4})
	refused := func(what string) {
		t.Helper()
		if n, err := g.dial().Read(make([]byte, 1)); err == nil {
			t.Errorf("%s: one more got %d bytes", what, n)
		}
	}
	use := func() {
		w := g.dial()
		w.transmit(false)
		w.request(cmdFlush, 0, 1, 0, 0, nil)
		w.simple() // its handshake is over for the server too
	}
	use()
	use()
	g.dial().get(18)
	g.dial().get(18)
	refused("four connections")
	g.kill()
	g.start(named{"": {Device: block.Memory(1 << 20)}}, ServerOptions{MaxConnections: 4})
	g.dial().get(18)
	g.dial().get(18)
	refused("two that only knock")
}

func TestErrors(t *testing.T) {
	for _, k := range []fault.Kind{fault.ReadOnly, fault.NoSpace, fault.Unsupported, fault.Exhausted, fault.Invalid} {
		if err := faultOf(errnoOf(fault.New(k, "", "x")), "read", ""); !errors.Is(err, k) {
			t.Errorf("%s over the wire: %v", k, err)
		}
	}
	if err := faultOf(errnoOf(errors.New("x")), "read", ""); err == nil {
		t.Error("an unknown error is no error")
	}
}

// However many peers ask and do not read, what they hold together is bounded, and in the end others are served.
func TestServerBudget(t *testing.T) {
	g := newRig(t, named{"": {Device: block.Memory(1 << 20)}}, ServerOptions{MaxBytes: maxInFlight, Stall: 500 * time.Millisecond})
	used := func() int64 {
		g.server.budget.mu.Lock()
		defer g.server.budget.mu.Unlock()
		return g.server.budget.used
	}
	for range 4 {
		w := g.dial()
		w.transmit(false)
		for i := range uint64(64) {
			w.request(cmdRead, 0, i, 0, 1<<20, nil)
		}
	}
	until(t, "the budget is used up", func() bool {
		n := used()
		if n > maxInFlight {
			t.Fatalf("%d bytes are in flight", n)
		}
		return n > maxInFlight-2<<20
	})
	good := g.dial()
	good.transmit(false)
	good.request(cmdRead, 0, 1, 0, 1<<20, nil)
	if errno, _ := good.simple(); errno != 0 {
		t.Errorf("errno %d", errno)
	}
	good.get(1 << 20)
	until(t, "everything is given back", func() bool { return used() == 0 })
}
