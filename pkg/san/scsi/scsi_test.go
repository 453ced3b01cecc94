package scsi

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/block"
	"github.com/vmdk-csi/vmdk-csi/pkg/block/blocktest"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/reserve"
)

// memory is a logical unit in memory with a volatile cache: a power loss takes what was not synchronized.
type memory struct {
	mu           sync.Mutex
	durable, now []byte
	news         []Sense // unit attentions to be told
	failFlush    bool
	noSame       bool
	vpd83        []byte
}

func newMemory(size int) *memory {
	return &memory{durable: make([]byte, size), now: make([]byte, size), vpd83: naa()}
}

func naa() []byte {
	id := []byte{0x60, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
	t10 := append([]byte{2, 1, 0, 4}, "ACME"...)
	port := []byte{1, 0x13, 0, 2, 9, 9} // of the target port: not the unit's
	page := append([]byte{0, 0x83, 0, 0}, slices.Concat(t10, port, []byte{1, 3, 0, 16}, id)...)
	page[3] = byte(len(page) - 4)
	return page
}

func (m *memory) powerLoss() {
	m.mu.Lock()
	defer m.mu.Unlock()
	copy(m.now, m.durable)
	m.news = append(m.news, Sense{keyUnitAttention, 0x29, 0})
}

func fixed(s Sense) []byte {
	b := make([]byte, 18)
	b[0], b[2], b[7], b[12], b[13] = 0x70, s.Key, 10, s.ASC, s.ASCQ
	return b
}

func (m *memory) Do(_ context.Context, c Command) (Result, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.do(c)
	if c.Saw != nil {
		c.Saw(r)
	}
	return r, nil
}

func (m *memory) do(c Command) Result {
	check := func(s Sense) Result { return Result{Status: CheckCondition, Sense: fixed(s)} }
	if len(m.news) > 0 && c.CDB[0] != opInquiry {
		s := m.news[0]
		m.news = m.news[1:]
		return check(s)
	}
	give := func(b []byte) Result { return Result{N: copy(c.In, b)} }
	lba, n := uint64(0), uint32(0)
	if len(c.CDB) == 16 {
		lba, n = binary.BigEndian.Uint64(c.CDB[2:]), binary.BigEndian.Uint32(c.CDB[10:])
	}
	off, end := lba*512, (lba+uint64(n))*512
	if c.CDB[0] != opReadCapacity16 && end > uint64(len(m.now)) {
		return check(Sense{keyIllegalRequest, 0x21, 0})
	}
	switch c.CDB[0] {
	case opTestUnitReady:
		return Result{}
	case opInquiry:
		switch {
		case c.CDB[1]&1 == 0:
			b := make([]byte, 36)
			copy(b[8:], "ACME    Disk            1.0 ")
			return give(b)
		case c.CDB[2] == 0x83:
			return give(m.vpd83)
		case c.CDB[2] == 0xb2:
			return give([]byte{0, 0xb2, 0, 4, 0, 0x40, 0, 0})
		}
		return check(Sense{keyIllegalRequest, 0x24, 0})
	case opReadCapacity16:
		b := make([]byte, 32)
		binary.BigEndian.PutUint64(b, uint64(len(m.now)/512-1))
		binary.BigEndian.PutUint32(b[8:], 512)
		b[14] = 0xc0
		return give(b)
	case opModeSense6:
		return give([]byte{23, 0, 0x10, 0, 8, 18, 4, 0})
	case opRead16:
		return give(m.now[off:end])
	case opWrite16:
		copy(m.now[off:end], c.Out)
		return Result{}
	case opWriteSame16:
		if m.noSame {
			return check(Sense{keyIllegalRequest, 0x20, 0})
		}
		clear(m.now[off:end])
		return Result{}
	case opSynchronizeCache:
		if m.failFlush {
			return check(Sense{keyMedium, 0x0c, 0})
		}
		copy(m.durable, m.now)
		return Result{}
	}
	return check(Sense{keyIllegalRequest, 0x20, 0})
}

func open(t *testing.T, m *memory) *Unit {
	t.Helper()
	u, err := Open(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestConformance(t *testing.T) {
	for _, noSame := range []bool{false, true} {
		below := map[block.Device]*memory{}
		blocktest.Run(t, blocktest.Subject{New: func(t *testing.T) block.Device {
			m := newMemory(blocktest.Size)
			m.noSame = noSame
			u := open(t, m)
			below[u] = m
			return u
		}, BreakFlush: func(d block.Device) { below[d].failFlush = true }})
	}
}

func TestIdentity(t *testing.T) {
	u := open(t, newMemory(1<<20))
	if id := u.Identity(); id.Designator != "naa.600102030405060708090a0b0c0d0e0f" || id.Vendor != "ACME" || id.Product != "Disk" || id.Bytes() != 1<<20 {
		t.Errorf("%+v", id)
	}
	for _, page := range [][]byte{nil, {0, 0x83, 0, 200}, {0, 0x83, 0, 6, 1, 3, 0, 16, 1, 2}} {
		m := newMemory(1 << 20)
		m.vpd83 = page
		if u, err := Open(t.Context(), m); err == nil && u.Identity().Designator != "" {
			t.Errorf("%v: %+v", page, u.Identity())
		}
	}
}

// TestResetIsAPause: what was acknowledged and not flushed is written again when the unit lost its cache.
func TestResetIsAPause(t *testing.T) {
	m := newMemory(1 << 20)
	u := open(t, m)
	want := make([]byte, 1<<20)
	put := func(fill byte, off, n int) {
		t.Helper()
		p := bytes.Repeat([]byte{fill}, n)
		if _, err := u.WriteAt(p, int64(off)); err != nil {
			t.Fatal(err)
		}
		copy(want[off:], p)
	}
	whole := func(when string) {
		t.Helper()
		got := make([]byte, len(want))
		if _, err := u.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%s: other content, or %v", when, err)
		}
	}
	put(1, 0, 8192)
	put(2, 4096, 8192)
	m.powerLoss()
	whole("after a reset")
	put(3, 100, 1000)
	if err := u.WriteZeroes(6000, 3000); err != nil {
		t.Fatal(err)
	}
	clear(want[6000:9000])
	m.powerLoss()
	m.powerLoss()
	put(4, 512, 512)
	whole("after two")
	m.powerLoss()
	if err := u.Flush(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(m.durable, want) {
		t.Error("a flush after a reset left something behind")
	}
	if len(u.kept.writes) != 0 || u.kept.bytes != 0 {
		t.Errorf("%d writes are kept after a flush", len(u.kept.writes))
	}
	m.powerLoss()
	whole("after a reset that lost nothing")
	for i := range 80 { // more than may be kept
		put(byte(i), 0, 1<<20)
	}
	if u.kept.bytes > maxKept {
		t.Errorf("%d bytes are kept", u.kept.bytes)
	}
}

func TestSense(t *testing.T) {
	for _, tc := range []struct {
		r    Result
		want fault.Kind
	}{
		{Result{}, ""},
		{Result{Status: ReservationConflict}, fault.Fenced},
		{Result{Status: TaskSetFull}, fault.Unavailable},
		{Result{Status: 0x33}, fault.Internal},
		{Result{Status: CheckCondition, Sense: fixed(Sense{keyRecovered, 0, 0})}, ""},
		{Result{Status: CheckCondition, Sense: fixed(Sense{keyDataProtect, 0x27, 7})}, fault.NoSpace},
		{Result{Status: CheckCondition, Sense: fixed(Sense{keyDataProtect, 0x27, 0})}, fault.ReadOnly},
		{Result{Status: CheckCondition, Sense: fixed(Sense{keyIllegalRequest, 0x25, 0})}, fault.NotFound},
		{Result{Status: CheckCondition, Sense: fixed(Sense{keyIllegalRequest, 0x21, 0})}, fault.OutOfRange},
		{Result{Status: CheckCondition, Sense: []byte{0x72, keyMedium, 0x11, 0}}, fault.Internal},
		{Result{Status: CheckCondition, Sense: []byte{0x72, keyIllegalRequest, 0x20, 0}}, fault.Unsupported},
		{Result{Status: CheckCondition}, fault.Internal},
	} {
		if err := failure("x", tc.r); fault.KindOf(err) != tc.want {
			t.Errorf("%+v: %v, want %s", tc.r, err, tc.want)
		}
	}
	for _, b := range [][]byte{nil, {0x70}, {0x71, 0, 6}, {0x72}, {0xff, 1, 2, 3}} {
		_ = ParseSense(b).String()
	}
}

func TestNoReservations(t *testing.T) {
	u := open(t, newMemory(1<<20))
	if err := reserve.Own(t.Context(), u, 1); !errors.Is(err, fault.Unsupported) {
		t.Errorf("%v", err)
	}
}
