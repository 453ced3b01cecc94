package chain_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// seeded is a random source that a failed run prints and SEED replays.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("SEED"); s != "" {
		v, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("SEED=%q: %v", s, err)
		}
		seed = v
	}
	t.Logf("SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

// fewer is n, or less where the race detector makes everything slow.
func fewer(n int) int {
	if raceDetector {
		return n / 3
	}
	return n
}

// sample tells which of a table's cases are run: all, or under the race detector n of them, which change with the seed.
func sample(t *testing.T, of, n int) func(i int) bool {
	t.Helper()
	if !raceDetector {
		return func(int) bool { return true }
	}
	chosen := seeded(t).Perm(of)[:n]
	return func(i int) bool { return slices.Contains(chosen, i) }
}

// disk is a chain in a directory, with the bytes it must have.
type disk struct {
	t    *testing.T
	r    *rand.Rand
	path string
	dir  fsx.Dir
	refs []chain.Ref
	o    chain.Options
	c    *chain.Chain
	want []byte // what reads must give
}

func newDisk(t *testing.T, r *rand.Rand, p vmdk.CreateParams) *disk {
	t.Helper()
	path := t.TempDir()
	dir, err := fsx.OpenRoot(path)
	if err != nil {
		t.Fatal(err)
	}
	d := &disk{t: t, r: r, path: path, dir: dir, want: make([]byte, p.Capacity)}
	t.Cleanup(func() {
		if d.c != nil {
			d.close()
		}
		if err := dir.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := vmdk.Create(context.Background(), dir, "disk.vmdk", p); err != nil {
		t.Fatal(err)
	}
	d.refs = []chain.Ref{{Name: "disk.vmdk"}}
	return d
}

// addChild puts a child of ours on top.
func (d *disk) addChild(p vmdk.CreateParams) {
	d.t.Helper()
	l, err := vmdk.Open(d.dir, d.refs[len(d.refs)-1].Name, vmdk.Options{})
	if err != nil {
		d.t.Fatal(err)
	}
	p.Capacity, p.Parent = l.Size(), l.AsParent()
	if err := l.Close(); err != nil {
		d.t.Fatal(err)
	}
	name := d.childName()
	if _, err := vmdk.Create(context.Background(), d.dir, name, p); err != nil {
		d.t.Fatal(err)
	}
	d.refs = append(d.refs, chain.Ref{Name: name})
}

// childName is a name that no link has.
func (d *disk) childName() string {
	for i := len(d.refs); ; i++ {
		name := fmt.Sprintf("disk-%06d.vmdk", i)
		if !slices.ContainsFunc(d.refs, func(r chain.Ref) bool { return r.Name == name }) {
			return name
		}
	}
}

func (d *disk) open() {
	d.t.Helper()
	c, err := chain.Open(d.dir, d.refs, d.o)
	if err != nil {
		d.t.Fatalf("open %v: %v", d.refs, err)
	}
	d.c = c
}

func (d *disk) close() {
	d.t.Helper()
	if err := d.c.Close(); err != nil {
		d.t.Fatalf("close: %v", err)
	}
	d.c = nil
}

// span is a random range, often small, often near a boundary.
func (d *disk) span() (off, n int64) {
	size := int64(len(d.want))
	unit := []int64{1, 512, 512, 4096, 65536}[d.r.IntN(5)]
	n = min((d.r.Int64N(16)+1)*unit, size)
	if d.r.IntN(20) == 0 {
		n = min(n*40, size)
	}
	off = d.r.Int64N(size - n + 1)
	if d.r.IntN(3) > 0 {
		off = off / unit * unit
	}
	if d.r.IntN(10) == 0 {
		off = size - n
	}
	return off, n
}

// step does one random thing and says what.
func (d *disk) step() string {
	d.t.Helper()
	off, n := d.span()
	var what string
	var err error
	switch k := d.r.IntN(20); {
	case k < 11:
		b := make([]byte, n)
		fill := byte(d.r.IntN(255) + 1)
		for i := range b {
			b[i] = fill + byte(i>>9)
		}
		what = fmt.Sprintf("write %d+%d", off, n)
		_, err = d.c.WriteAt(b, off)
		copy(d.want[off:], b)
	case k < 14:
		what = fmt.Sprintf("discard %d+%d", off, n)
		err = d.c.Discard(off, n)
		clear(d.want[off : off+n])
	case k < 16:
		what = fmt.Sprintf("zero %d+%d", off, n)
		err = d.c.WriteZeroes(off, n)
		clear(d.want[off : off+n])
	case k < 18:
		what = "flush"
		err = d.c.Flush()
	default:
		what = fmt.Sprintf("read %d+%d", off, n)
		d.check(off, n)
	}
	if err != nil {
		d.t.Fatalf("%s: %v", what, err)
	}
	return what
}

func (d *disk) check(off, n int64) {
	d.t.Helper()
	b := make([]byte, n)
	if _, err := d.c.ReadAt(b, off); err != nil {
		d.t.Fatalf("read %d+%d: %v", off, n, err)
	}
	same(d.t, "read", b, d.want[off:off+n], off)
}

func (d *disk) checkAll() {
	d.t.Helper()
	if d.c.Size() != int64(len(d.want)) {
		d.t.Fatalf("the disk has %d bytes, want %d", d.c.Size(), len(d.want))
	}
	d.check(0, int64(len(d.want)))
}

func same(t *testing.T, what string, got, want []byte, base int64) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	if len(got) != len(want) {
		t.Fatalf("%s: %d bytes, want %d", what, len(got), len(want))
	}
	bad, first := 0, -1
	for i := range got {
		if got[i] != want[i] {
			if first < 0 {
				first = i
			}
			bad++
		}
	}
	t.Fatalf("%s: %d bytes differ, the first at %d: %#x, want %#x", what, bad, base+int64(first), got[first], want[first])
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 2)) }

func fillOf(n int, b byte) []byte { return bytes.Repeat([]byte{b}, n) }
