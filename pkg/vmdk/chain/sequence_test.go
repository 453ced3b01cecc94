package chain_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx/sim"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// deeds are what sequences are made of.
var deeds = []string{"new grain", "copy on write", "overwrite", "discard", "zero", "flush", "snapshot", "merge down", "merge up", "expand", "reopen"}

// sequenceBases are the kinds of base on which they run, each under links of every kind in childTypes.
var sequenceBases = []struct {
	name string
	p    vmdk.CreateParams
}{
	{"sparse", vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse, Capacity: 96<<10 + 512, GrainSectors: 8}},
	{"embedded", vmdk.CreateParams{Type: vmdk.MonolithicSparse, Capacity: 96 << 10, GrainSectors: 8}},
	{"flat", vmdk.CreateParams{Type: vmdk.MonolithicFlat, Capacity: 96 << 10}},
	{"split flat", vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentFlat, Capacity: 96 << 10}},
	{"vmfs", vmdk.CreateParams{Type: vmdk.VMFS, Capacity: 96 << 10}},
	{"cowd", vmdk.CreateParams{Type: vmdk.VMFSSparse, Capacity: 96 << 10}},
}

// sequences are all of the length, in an order of their own.
func sequences(length int) [][]string {
	all := [][]string{nil}
	for range length {
		var next [][]string
		for _, s := range all {
			for _, d := range deeds {
				next = append(next, append(slices.Clone(s), d))
			}
		}
		all = next
	}
	return all
}

// TestSequences runs sequences of three deeds on a chain of two links of every kind: cut at every operation, with what was not synced
// lost in part or whole and torn; what is found opens, holds what was flushed or something later, keeps its snapshots, and goes on being
// written. With VMDK_CSI_CHAIN=long it is all sequences (make crash-long), and DEEDS=5 makes them longer; else a sample that the seed
// decides.
func TestSequences(t *testing.T) {
	defer chain.SetPiece(16<<10, 48<<10)()
	seed := seeded(t).Uint64()
	length, count, limit := 3, 3, 4
	long := os.Getenv("VMDK_CSI_CHAIN") == "long"
	if full() {
		count = 20
	}
	if raceDetector {
		count, limit = 1, 2
	}
	if n := os.Getenv("DEEDS"); n != "" {
		if _, err := fmt.Sscan(n, &length); err != nil {
			t.Fatal(err)
		}
	}
	r := newRand(seed)
	for _, b := range sequenceBases {
		t.Run(b.name, func(t *testing.T) {
			var all [][]string
			if long && length <= 3 {
				all, limit = sequences(length), 64
			} else {
				if long {
					count = 2000
				}
				for range count {
					var s []string
					for range length {
						s = append(s, deeds[r.IntN(len(deeds))])
					}
					all = append(all, s)
				}
			}
			if only := os.Getenv("SEQUENCE"); only != "" {
				all = [][]string{strings.Split(only, ",")}
			}
			states := 0
			for _, s := range all {
				n, err := runSequence(t, b.p, s, seed, limit)
				if err != nil {
					t.Fatalf("SEQUENCE=%q: %v", strings.Join(s, ","), err)
				}
				states += n
			}
			t.Logf("%d sequences, %d states", len(all), states)
			if states < len(all) {
				t.Errorf("only %d states in %d sequences", states, len(all))
			}
		})
	}
}

// TestSequenceFailures has every operation of sequences fail in turn.
func TestSequenceFailures(t *testing.T) {
	defer chain.SetPiece(16<<10, 48<<10)()
	seed := seeded(t).Uint64()
	r := newRand(seed)
	count := 2
	if full() {
		count = 8
	}
	for _, b := range sequenceBases {
		t.Run(b.name, func(t *testing.T) {
			failures := 0
			for range count {
				var s []string
				for range 3 {
					s = append(s, deeds[r.IntN(len(deeds))])
				}
				for _, errno := range []error{syscall.EIO, syscall.ENOSPC} {
					for n := r.IntN(4); ; n += 4 {
						h := newSequence(t, b.p, seed)
						h.FS.FailAt(n, errno)
						err := h.play(s)
						if n > h.FS.Ops() {
							break
						}
						h.FS.Heal()
						if err == nil {
							continue
						}
						failures++
						left := h.FS.Survivor()
						events := slices.Concat(h.setup, left.Events())
						if err := judgeSequence(left, events, h.least, h.most); err != nil {
							t.Fatalf("SEQUENCE=%q, %v at operation %d (%v): %v", strings.Join(s, ","), errno, n, err, err)
						}
					}
				}
			}
			if failures < 1 {
				t.Errorf("only %d failures", failures)
			}
		})
	}
}

// sequence is a process that does deeds.
type sequence struct {
	*changed
	least, most int64 // sizes that the disk may have
}

func newSequence(t *testing.T, p vmdk.CreateParams, seed uint64) *sequence {
	t.Helper()
	h := newChanged(t, changeCase{p: p, short: true, dir: chain.Down}, seed)
	return &sequence{h, int64(len(h.want)), int64(len(h.want))}
}

func runSequence(t *testing.T, p vmdk.CreateParams, deeds []string, seed uint64, limit int) (states int, err error) {
	t.Helper()
	h := newSequence(t, p, seed)
	least := h.least
	if err := h.play(deeds); err != nil {
		return 0, fmt.Errorf("%s: %w", h.doing, err)
	}
	for cut := range h.FS.Crashes(limit, int64(seed)) {
		states++
		if err := judgeSequence(cut, slices.Concat(h.setup, cut.Events()), least, h.most); err != nil {
			return states, fmt.Errorf("%s: %w", cut.Cut(), err)
		}
	}
	return states, nil
}

// play opens the disk, does the deeds, and closes it.
func (h *sequence) play(deeds []string) error {
	if err := h.open(false); err != nil {
		return err
	}
	for _, d := range deeds {
		if err := h.deed(d); err != nil {
			return errors.Join(err, h.c.Abandon())
		}
	}
	h.doing = "close"
	if err := h.c.Close(); err != nil {
		return err
	}
	h.Mark(change{flushed: true})
	return nil
}

func (h *sequence) deed(d string) error {
	const grain = 4096
	switch d {
	case "new grain":
		return h.put(h.find(func(x chain.Extent) bool { return !x.Present || x.Zero }), grain, false, true)
	case "copy on write":
		return h.put(h.find(func(x chain.Extent) bool { return x.Present && !x.Zero && x.Depth > 0 }), 512, false, true)
	case "overwrite":
		return h.put(h.find(func(x chain.Extent) bool { return x.Present && !x.Zero && x.Depth == 0 }), 1024, false, true)
	case "discard":
		return h.put(h.find(func(x chain.Extent) bool { return x.Present && x.Depth == 0 }), 2*grain, true, true)
	case "zero":
		return h.put(h.find(func(x chain.Extent) bool { return x.Present && x.Depth > 0 }), 2*grain, true, false)
	case "flush":
		h.doing = d
		if err := h.c.Flush(); err != nil {
			return err
		}
		h.Mark(change{flushed: true})
		return nil
	case "snapshot":
		return h.snapshot()
	case "expand":
		return h.expand()
	case "reopen":
		h.doing = d
		if err := h.c.Close(); err != nil {
			return err
		}
		h.Mark(change{flushed: true})
		return h.open(false)
	}
	if len(h.m.Refs) < 2 {
		return nil
	}
	h.k.dir, h.k.lower = map[string]chain.Direction{"merge down": chain.Down, "merge up": chain.Up}[d], h.r.IntN(len(h.m.Refs)-1)
	h.inside = func(*changed) error { return nil }
	if h.k.dir == chain.Down { // nobody needs the lower link by itself from now on
		h.m.Kept = slices.Clone(h.m.Kept)
		h.m.Kept[h.k.lower] = [32]byte{}
		if err := h.m.store(h.d); err != nil {
			return err
		}
	}
	return h.merge(ctx())
}

// find is the first byte of a piece of the disk that is so, or of any.
func (h *sequence) find(so func(chain.Extent) bool) int64 {
	var at []int64
	for x, err := range h.c.Map(0, int64(len(h.want))) {
		if err == nil && so(x) {
			at = append(at, x.Start)
		}
	}
	if len(at) == 0 {
		return h.r.Int64N(int64(len(h.want))/4096) * 4096
	}
	return at[h.r.IntN(len(at))]
}

func (h *sequence) put(off, n int64, zeros, discard bool) (err error) {
	n = min(n, int64(len(h.want))-off)
	h.doing = fmt.Sprintf("%d bytes at %d", n, off)
	fill := byte(len(h.events)%250 + 1)
	if zeros {
		fill = 0
	}
	h.Begin(change{off: off, n: n, fill: fill})
	switch {
	case !zeros:
		_, err = h.c.WriteAt(fillOf(int(n), fill), off)
	case discard:
		err = h.c.Discard(off, n)
	default:
		err = h.c.WriteZeroes(off, n)
	}
	if err == nil {
		copy(h.want[off:off+n], fillOf(int(n), fill))
	}
	return err
}

// expand grows the head: the manifest says before that it may be larger, and after it how large it is.
func (h *sequence) expand() error {
	h.doing = "expand"
	size := int64(len(h.want)) + 8192
	next := h.m
	next.Refs = slices.Clone(h.m.Refs)
	next.Refs[len(next.Refs)-1].Growing = true
	if err := next.store(h.d); err != nil {
		return err
	}
	h.most = size
	if err := h.c.Grow(ctx(), size); err != nil {
		return err
	}
	h.Mark(change{flushed: true}) // a growth commits what came before it
	h.want = append(h.want, make([]byte, size-int64(len(h.want)))...)
	next.Refs = slices.Clone(next.Refs)
	head := &next.Refs[len(next.Refs)-1]
	head.Growing, head.Size = false, size
	h.m = next
	return next.store(h.d)
}

// judgeSequence opens what a crash left, compares it, goes on writing, and opens it again.
func judgeSequence(cut *sim.FS, events []any, least, most int64) error {
	d := cut.Root()
	got, err := sequenceContent(d, nil)
	if err != nil {
		return err
	}
	if n := int64(len(got)); n < least || n > most {
		return fmt.Errorf("%d bytes, want %d to %d", n, least, most)
	}
	if err := allowed(got, events, crashCase{}); err != nil {
		return err
	}
	more := bytes.Repeat([]byte{0xfe}, 8192)
	if _, err := sequenceContent(d, func(c *chain.Chain) error {
		_, err := c.WriteAt(more, 2048)
		return err
	}); err != nil {
		return fmt.Errorf("going on: %w", err)
	}
	copy(got[2048:], more)
	again, err := sequenceContent(d, nil)
	if err == nil && !bytes.Equal(again, got) {
		err = errors.New("what was written after the crash is not what is read")
	}
	return err
}

// sequenceContent opens the disk as its manifest has it, does something, reads it all, closes it and checks it.
func sequenceContent(d fsx.Dir, do func(c *chain.Chain) error) ([]byte, error) {
	m, err := loadManifest(d)
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if err := m.ready(d); err != nil {
		return nil, err
	}
	c, err := chain.Open(d, m.Refs, chain.Options{})
	if err != nil {
		return nil, err
	}
	if do != nil {
		err = do(c)
	}
	got := make([]byte, c.Size())
	if err == nil {
		_, err = c.ReadAt(got, 0)
	}
	if err = errors.Join(err, c.Close()); err != nil {
		return nil, err
	}
	return got, verifyLinks(d, m)
}
