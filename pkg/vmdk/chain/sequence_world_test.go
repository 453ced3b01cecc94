package chain_test

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx/sim"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// sequence is a process that does deeds.
type sequence struct {
	*changed
	least, most int64 // sizes that the disk may have
	last        int   // where in the log the last deed begins
	lastOp      int   // how many operations were before
}

// newSequence makes a disk of two links with content.
func newSequence(t *testing.T, k sequenceKind, seed uint64) *sequence {
	t.Helper()
	h := newChanged(t, changeCase{p: k.p, short: true, dir: chain.Down, child: k.child}, seed)
	return &sequence{changed: h, least: int64(len(h.want)), most: int64(len(h.want))}
}

// again is another process, on a copy of the disk on which nothing was done yet.
func (h *sequence) again(seed uint64) *sequence {
	c, s := *h.changed, *h
	c.journal = &journal{FS: h.FS.Copy()}
	c.FS.Record()
	c.d, c.r, c.pending, c.want = c.FS.Root(), newRand(seed), &chain.MemoryPending{Max: 24}, slices.Clone(h.want)
	s.changed = &c
	return &s
}

// powerLoss does the deeds, cuts the power everywhere, or everywhere in the last one, and judges what is left.
func (h *sequence) powerLoss(deeds []string, seed uint64, limit int, last bool) (states int, err error) {
	least := h.least
	if err := h.play(deeds); err != nil {
		return 0, fmt.Errorf("%s: %w", h.doing, err)
	}
	from := 0
	if last && len(deeds) > 1 {
		from = h.last
	}
	merged := slices.ContainsFunc(deeds, func(d string) bool { return strings.HasPrefix(d, "merge") })
	for cut := range h.FS.CrashesFrom(from, limit, int64(seed)) {
		states++
		if err := visible(cut.Root()); err != nil && !merged { // of a link that was merged away anything may be left
			return states, fmt.Errorf("%s: %w", cut.Cut(), err)
		}
		if err := judgeSequence(cut, slices.Concat(h.setup, cut.Events()), least, h.most); err != nil {
			return states, fmt.Errorf("%s: %w", cut.Cut(), err)
		}
	}
	return states, nil
}

// reach says which sequences reach each sync.
func (h *sequence) reach(t *testing.T, all [][]string, seed uint64) map[string][][]string {
	t.Helper()
	bySite := map[string][][]string{}
	for _, s := range all {
		c := h.again(seed)
		if err := c.play(s); err != nil {
			t.Fatal(err)
		}
		for site := range c.FS.SyncSites() {
			if !strings.Contains(site, "_test.go") { // the manifest's, which stands for a datastore's
				bySite[site] = append(bySite[site], s)
			}
		}
	}
	return bySite
}

var descriptorName = regexp.MustCompile(`^disk(-\d{6})?\.vmdk$`)

// visible: a descriptor that can be seen can be opened, in the manifest or not (package vmdk, Create).
func visible(d fsx.Dir) error {
	names, err := d.List()
	if err != nil {
		return err
	}
	for _, n := range names {
		if !descriptorName.MatchString(n) {
			continue
		}
		l, err := vmdk.Open(d, n, vmdk.Options{})
		if err != nil {
			return fmt.Errorf("visible: %w", err)
		}
		if err := l.Close(); err != nil {
			return err
		}
	}
	return nil
}

// fail does the deeds again and again; each time another operation of the last deed, or of the close behind it, fails.
func (h *sequence) fail(deeds []string, how error, seed uint64) (failures int, err error) {
	for n := 0; ; n++ {
		c := h.again(seed)
		if n == 0 && len(deeds) > 1 {
			if err := c.play(deeds); err != nil {
				return 0, fmt.Errorf("%s: %w", c.doing, err)
			}
			n, c = c.lastOp, h.again(seed)
		}
		c.FS.FailAt(n, how)
		perr := c.play(deeds)
		if n >= c.FS.Ops() {
			return failures, nil
		}
		failures++
		c.FS.Heal()
		left := c.FS.Survivor()
		if err := judgeSequence(left, slices.Concat(h.setup, left.Events()), h.least, c.most); err != nil {
			return failures, fmt.Errorf("%w at operation %d (%v): %v", how, n, perr, err)
		}
	}
}

// play opens the disk, does the deeds, and closes it.
func (h *sequence) play(deeds []string) error {
	if err := h.open(false); err != nil {
		return err
	}
	for _, d := range deeds {
		h.last, h.lastOp = h.Position(), h.FS.Ops()
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
