package table

import (
	"encoding/binary"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/vmdk-csi/vmdk-csi/internal/sys"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// The layout, in the machine's byte order: one header page, then the ring. Counters that different operations store sit
// in cache lines of their own.
const (
	magic   = uint64(0x444e45504b444d56) // "VMDKPEND"
	version = 1

	offMagic      = 0   // uint64
	offVersion    = 8   // uint32
	offSlots      = 12  // uint32
	offBoot       = 16  // 36 bytes of text
	offGeneration = 64  // uint64: how many workers have opened the table
	offPoisoned   = 128 // uint32
	offServed     = 136 // uint32
	offStateLen   = 192 // uint32, 0: no state
	offState      = 256 // StateSize bytes
	offHead       = 576 // uint64: entries ever appended
	offTail       = 640 // uint64: entries ever retired

	headerSize = 4096
	entrySize  = 16

	// Slots is how many entries can be pending: with 64 KiB grains, 4 GiB newly written between two flushes.
	Slots = 65536
	// Size of the file in bytes.
	Size = headerSize + Slots*entrySize
	// StateSize bounds the saved state of the export session, in bytes.
	StateSize = 256
)

// Table is a mapped table. It implements chain.Pending.
type Table struct {
	mu  sync.Mutex
	mem []byte
}

var _ chain.Pending = (*Table)(nil)

// Create makes an empty table. The file is the caller's; Open maps it.
func Create() (*os.File, error) {
	f, err := sys.SealedMemfd("vmdk-pending", Size)
	if err != nil {
		return nil, fault.Wrap(err, "make a pending table")
	}
	mem, err := sys.MapShared(f, headerSize)
	if err != nil {
		f.Close()
		return nil, fault.Wrap(err, "make a pending table")
	}
	defer func() { _ = sys.FreeBuffer(mem) }()
	binary.NativeEndian.PutUint32(mem[offVersion:], version)
	binary.NativeEndian.PutUint32(mem[offSlots:], Slots)
	copy(mem[offBoot:offGeneration], bootID())
	word64(mem, offMagic).Store(magic)
	return f, nil
}

// Open maps the table in f, which stays the caller's. Kinds: Damaged (not a table, another version, or broken counters).
func Open(f *os.File) (*Table, error) {
	bad := func(format string, args ...any) error {
		return fault.New(fault.Damaged, "detach the disk and attach it again", "pending table: "+format, args...)
	}
	st, err := f.Stat()
	if err != nil {
		return nil, fault.Wrap(err, "open a pending table")
	}
	if st.Size() != Size || !sys.SizeSealed(f) {
		return nil, bad("not a sealed memfd of %d bytes", Size)
	}
	mem, err := sys.MapShared(f, Size)
	if err != nil {
		return nil, fault.Wrap(err, "open a pending table")
	}
	t := &Table{mem: mem}
	head, tail := word64(mem, offHead).Load(), word64(mem, offTail).Load()
	switch {
	case word64(mem, offMagic).Load() != magic:
		err = bad("no magic number")
	case binary.NativeEndian.Uint32(mem[offVersion:]) != version || binary.NativeEndian.Uint32(mem[offSlots:]) != Slots:
		err = bad("version %d with %d slots, not %d with %d", binary.NativeEndian.Uint32(mem[offVersion:]),
			binary.NativeEndian.Uint32(mem[offSlots:]), version, Slots)
	case tail > head || head-tail > Slots:
		err = bad("counters %d..%d", tail, head)
	case word32(mem, offStateLen).Load() > StateSize:
		err = bad("a state of %d bytes", word32(mem, offStateLen).Load())
	}
	if err != nil {
		_ = t.Close()
		return nil, err
	}
	return t, nil
}

// Close unmaps the table. Nothing else of it may be called afterwards, or run meanwhile.
func (t *Table) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mem == nil {
		return nil
	}
	err := sys.FreeBuffer(t.mem)
	t.mem = nil
	return err
}

// Append implements chain.Pending.
func (t *Table) Append(entries ...chain.PendingEntry) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	head, tail := word64(t.mem, offHead), word64(t.mem, offTail)
	h := head.Load()
	if uint64(len(entries)) > Slots-(h-tail.Load()) {
		return chain.ErrPendingFull
	}
	for i, e := range entries {
		b := t.slot(h + uint64(i))
		binary.NativeEndian.PutUint16(b[0:], e.Extent)
		binary.NativeEndian.PutUint16(b[2:], e.Link)
		binary.NativeEndian.PutUint32(b[4:], e.Sector)
		binary.NativeEndian.PutUint64(b[8:], e.Grain)
	}
	// A death before this store leaves slots that no counter covers: nobody was told that they are kept.
	head.Store(h + uint64(len(entries)))
	return nil
}

// Mark implements chain.Pending.
func (t *Table) Mark() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return word64(t.mem, offHead).Load()
}

// Retire implements chain.Pending. A mark that is older than an earlier one changes nothing; a death before the store
// leaves entries that are durable already, which a successor may apply once more.
func (t *Table) Retire(mark uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	tail := word64(t.mem, offTail)
	if mark > tail.Load() && mark <= word64(t.mem, offHead).Load() {
		tail.Store(mark)
	}
}

// Load implements chain.Pending.
func (t *Table) Load() []chain.PendingEntry {
	t.mu.Lock()
	defer t.mu.Unlock()
	head, tail := word64(t.mem, offHead).Load(), word64(t.mem, offTail).Load()
	entries := make([]chain.PendingEntry, 0, head-tail)
	for i := tail; i < head; i++ {
		b := t.slot(i)
		entries = append(entries, chain.PendingEntry{
			Extent: binary.NativeEndian.Uint16(b[0:]), Link: binary.NativeEndian.Uint16(b[2:]),
			Sector: binary.NativeEndian.Uint32(b[4:]), Grain: binary.NativeEndian.Uint64(b[8:]),
		})
	}
	return entries
}

// Len is how many entries are pending.
func (t *Table) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return int(word64(t.mem, offHead).Load() - word64(t.mem, offTail).Load())
}

func (t *Table) slot(i uint64) []byte {
	off := headerSize + (i%Slots)*entrySize
	return t.mem[off : off+entrySize]
}

// word64 and word32 are words of the mapping that are stored and loaded atomically; the offsets are aligned.
func word64(mem []byte, off int) *atomic.Uint64 { return (*atomic.Uint64)(unsafe.Pointer(&mem[off])) }
func word32(mem []byte, off int) *atomic.Uint32 { return (*atomic.Uint32)(unsafe.Pointer(&mem[off])) }

// bootID names this run of the machine; it tells a person who finds a table in a core dump where it belongs.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
