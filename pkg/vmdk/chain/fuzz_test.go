package chain_test

import (
	"bytes"
	"context"
	"fmt"
	"runtime/metrics"
	"strings"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx/sim"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/vmdktest"
)

// fuzzMemory is the most that one run may allocate, in bytes.
const fuzzMemory = 256 << 20

func allocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

// fuzzChain is a chain of a base and two children on a simulated file system, with something in each.
func fuzzChain(tb testing.TB) fsx.Dir {
	tb.Helper()
	d := sim.New(sim.Options{}).Root()
	ctx := context.Background()
	var parent *vmdk.Parent
	var refs []chain.Ref
	for i := range 3 {
		name := fmt.Sprintf("link%d.vmdk", i)
		typ := vmdk.TwoGbMaxExtentSparse
		if i == 1 {
			typ = vmdk.MonolithicSparse
		}
		if _, err := vmdk.Create(ctx, d, name, vmdk.CreateParams{Type: typ, Capacity: 1 << 20, GrainSectors: 8, Parent: parent}); err != nil {
			tb.Fatal(err)
		}
		refs = append(refs, chain.Ref{Name: name})
		c, err := chain.Open(d, refs, chain.Options{})
		if err != nil {
			tb.Fatal(err)
		}
		if _, err := c.WriteAt(bytes.Repeat([]byte{byte(i + 1)}, 8192), int64(i)*4096); err != nil {
			tb.Fatal(err)
		}
		if err := c.Close(); err != nil {
			tb.Fatal(err)
		}
		l, err := vmdk.Open(d, name, vmdk.Options{})
		if err != nil {
			tb.Fatal(err)
		}
		parent = l.AsParent()
		if err := l.Close(); err != nil {
			tb.Fatal(err)
		}
	}
	return d
}

func contents(tb testing.TB, d fsx.Dir, name string) []byte {
	tb.Helper()
	f, err := d.Open(name, fsx.ReadOnly)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		tb.Fatal(err)
	}
	b := make([]byte, st.Size)
	if _, err := f.ReadAt(b, 0); err != nil {
		tb.Fatal(err)
	}
	return b
}

// FuzzChain: whatever one file of a chain holds, finding the links, checking, opening, reading and mapping them ends with a typed
// error or none, in bounded memory, without a panic, and never reaches a file outside the directory.
func FuzzChain(f *testing.F) {
	files := []string{"link0.vmdk", "link0-s001.vmdk", "link1.vmdk", "link2.vmdk", "link2-s001.vmdk"}
	whole := map[string][]byte{}
	made := fuzzChain(f)
	for _, n := range files {
		whole[n] = contents(f, made, n)
	}
	f.Add(uint8(3), uint16(0), []byte("# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=1\nparentFileNameHint=\"link2.vmdk\"\ncreateType=\"twoGbMaxExtentSparse\"\nRW 2048 SPARSE \"link2-s001.vmdk\"\n"))
	f.Add(uint8(0), uint16(0), []byte("# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\nRW 2048 FLAT \"../../etc/passwd\" 0\n"))
	f.Add(uint8(3), uint16(60), []byte("parentFileNameHint=\"/etc/passwd\"\n"))
	f.Add(uint8(1), uint16(12), []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	f.Add(uint8(2), uint16(512), []byte("\x00"))
	f.Add(uint8(4), uint16(1024), []byte{1, 0, 0, 0, 2})
	f.Fuzz(func(t *testing.T, which uint8, at uint16, change []byte) {
		defer vmdktest.Bounded(t)
		d := sim.New(sim.Options{}).Root()
		for i, n := range files {
			b := bytes.Clone(whole[n])
			if i == int(which)%len(files) {
				if at == 0 {
					b = change
				} else {
					copy(b[min(int(at), len(b)):], change)
				}
			}
			put(t, d, n, b)
		}
		before := allocated()
		typed := func(err error, what string) {
			if err != nil && fault.KindOf(err) == fault.Internal {
				t.Fatalf("%s: an error without a kind: %v", what, err)
			}
		}
		refs, err := chain.Resolve(d, "link2.vmdk")
		typed(err, "resolve")
		if err != nil {
			refs = []chain.Ref{{Name: "link0.vmdk"}, {Name: "link1.vmdk"}, {Name: "link2.vmdk"}}
		}
		_, err = chain.Check(context.Background(), d, refs)
		typed(err, "check")
		for _, o := range []chain.Options{{ReadOnly: true, IgnoreCID: true}, {}} {
			c, err := chain.Open(d, refs, o)
			if typed(err, "open"); err != nil {
				continue
			}
			buf := make([]byte, 64<<10)
			for off := int64(0); off < min(c.Size(), 4<<20); off += int64(len(buf)) {
				_, err := c.ReadAt(buf[:min(int64(len(buf)), c.Size()-off)], off)
				typed(err, "read")
			}
			for _, err := range c.Map(0, min(c.Size(), 1<<30)) {
				if typed(err, "map"); err != nil {
					break
				}
			}
			if !o.ReadOnly {
				_, err := c.WriteAt(make([]byte, 4096), 0)
				typed(err, "write")
				typed(c.Flush(), "flush")
			}
			typed(c.Close(), "close")
		}
		if used := allocated() - before; used > fuzzMemory {
			t.Fatalf("%d MiB were allocated", used>>20)
		}
	})
}

func put(tb testing.TB, d fsx.Dir, name string, b []byte) {
	tb.Helper()
	f, err := d.Open(name, fsx.ReadWrite|fsx.Create)
	if err == nil {
		_, err = f.WriteAt(b, 0)
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		tb.Fatal(err)
	}
}

// FuzzOperations: any sequence of operations leaves the disk, and each snapshot on the way, as a model of bytes has it.
func FuzzOperations(f *testing.F) {
	f.Add(uint8(0), []byte{0, 1, 2, 5, 0, 3, 4, 6, 0, 9, 1, 7, 8, 2, 3})
	f.Add(uint8(1), []byte{5, 0, 0, 5, 1, 1, 6, 0, 7, 0, 3, 0, 4, 0, 8})
	f.Add(uint8(2), []byte{0, 0, 8, 2, 0, 9, 5, 5, 5, 6, 7, 6, 7})
	f.Fuzz(func(t *testing.T, kind uint8, code []byte) {
		defer vmdktest.Bounded(t)
		w := newFuzzed(t, kind)
		for i := 0; i+2 < len(code) && i < 3*64; i += 3 {
			w.step(code[i], code[i+1], code[i+2])
		}
		w.reopen()
		w.compare("in the end")
	})
}

// fuzzed is a disk under FuzzOperations.
type fuzzed struct {
	t    *testing.T
	d    fsx.Dir
	c    *chain.Chain
	refs []chain.Ref
	want []byte
	made int
	did  []string
}

func newFuzzed(t *testing.T, kind uint8) *fuzzed {
	w := &fuzzed{t: t, d: sim.New(sim.Options{}).Root(), want: make([]byte, 256<<10+512), refs: []chain.Ref{{Name: "disk.vmdk"}}}
	types := []vmdk.Type{vmdk.MonolithicSparse, vmdk.TwoGbMaxExtentSparse, vmdk.MonolithicFlat, vmdk.TwoGbMaxExtentFlat}
	p := vmdk.CreateParams{Type: types[int(kind)%len(types)], Capacity: int64(len(w.want)), GrainSectors: 8}
	if kind&4 != 0 && p.Type != vmdk.MonolithicSparse && p.Type != vmdk.MonolithicFlat { // several extents
		p.ExtentSize = 1 << 20
		w.want = make([]byte, 2<<20+512)
		p.Capacity = int64(len(w.want))
	}
	if !p.Type.Sparse() {
		p.GrainSectors = 0
	}
	if _, err := vmdk.Create(t.Context(), w.d, "disk.vmdk", p); err != nil {
		t.Fatal(err)
	}
	w.open()
	return w
}

func (w *fuzzed) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatalf("%s: %v", strings.Join(w.did, ", "), err)
	}
}

func (w *fuzzed) open() {
	var err error
	w.c, err = chain.Open(w.d, w.refs, chain.Options{Pending: &chain.MemoryPending{Max: 8}})
	w.must(err)
}

func (w *fuzzed) reopen() {
	w.must(w.c.Close())
	w.open()
}

func (w *fuzzed) step(op, x, y byte) {
	size := int64(len(w.want))
	off := (int64(x)*2 + int64(y)%2) * 512 % size
	if y&64 != 0 {
		off = (off + 1<<20 - 64<<10) % size // around the end of the first extent
	}
	n := min((1+int64(y)%40)*512, size-off)
	w.did = append(w.did, fmt.Sprintf("%d at %d+%d", op%10, off, n))
	switch op % 10 {
	case 0, 1:
		p := bytes.Repeat([]byte{x | 1}, int(n))
		_, err := w.c.WriteAt(p, off)
		w.must(err)
		copy(w.want[off:], p)
	case 2:
		w.must(w.c.WriteZeroes(off, n))
		clear(w.want[off : off+n])
	case 3: // what is discarded reads as zeros here
		w.must(w.c.Discard(off, n))
		clear(w.want[off : off+n])
	case 4:
		w.must(w.c.Flush())
	case 5:
		if len(w.refs) >= 6 {
			return
		}
		w.made++
		name := fmt.Sprintf("disk-%06d.vmdk", w.made)
		w.must(w.c.Snapshot(w.t.Context(), chain.SnapshotParams{Child: name}))
		w.refs = append(w.refs, chain.Ref{Name: name})
	case 6, 7:
		if len(w.refs) < 2 {
			return
		}
		lower := int(x) % (len(w.refs) - 1)
		dir, gone := chain.Down, lower+1
		// A flat base cannot become a child's, and a growth has made the links above a step higher.
		if base := w.c.Links()[lower].Descriptor().Type(); op%10 == 7 && base.Sparse() {
			dir, gone = chain.Up, lower
		}
		err := w.c.Merge(w.t.Context(), chain.MergeParams{Lower: lower, Direction: dir})
		if fault.KindOf(err) == fault.Unsupported {
			return
		}
		w.must(err)
		w.refs = append(w.refs[:gone:gone], w.refs[gone+1:]...)
	case 8:
		w.reopen()
	case 9:
		if len(w.refs) > 1 { // without a manifest nobody would know of the step
			return
		}
		w.must(w.c.Grow(w.t.Context(), size+int64(y)*512))
		w.want = append(w.want, make([]byte, int64(y)*512)...)
	}
	w.compare("now")
}

func (w *fuzzed) compare(when string) {
	w.t.Helper()
	got := make([]byte, len(w.want))
	_, err := w.c.ReadAt(got, 0)
	w.must(err)
	if w.c.Size() != int64(len(w.want)) || !bytes.Equal(got, w.want) {
		w.t.Fatalf("%s: other content (size %d, want %d) after %s", when, w.c.Size(), len(w.want), strings.Join(w.did, ", "))
	}
}
