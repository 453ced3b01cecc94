package vmdkctl

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// DiffResult is what diff answers.
type diffResult struct {
	From    string       `json:"from"`
	To      string       `json:"to"`
	Common  int          `json:"commonLinks"`    // links that both have, from the base on
	Grain   bool         `json:"wholeGrains"`    // ranges are as large as what the links allocate, not as what differs
	Live    bool         `json:"live,omitempty"` // somebody writes one of them: ranges are of different moments
	OldSize int64        `json:"fromCapacity"`   // bytes
	NewSize int64        `json:"toCapacity"`     // bytes
	Changed int64        `json:"changed"`        // bytes, those of Zeroed included
	Zeroed  int64        `json:"zeroed"`         // bytes that are known to be zeros in To
	Extents []diffExtent `json:"extents"`
}

type diffExtent struct {
	Start  int64  `json:"start"`          // bytes of the disk
	Length int64  `json:"length"`         // bytes
	Zero   bool   `json:"zero"`           // known to be zeros in To
	Link   string `json:"link,omitempty"` // that has To's data, "" if none has
}

func (a *app) diffCommand() *cobra.Command {
	var content bool
	c := &cobra.Command{
		Use:   "diff FROM TO",
		Short: "Show which parts of a disk changed between two points of its past",
		Long: `Show the parts of a disk that may differ between two of its links or snapshots, in whole grains, as the links have them
allocated: no data is read, so that this takes as long as reading tables. FROM and TO are paths of links of one directory
(head.vmdk, or base.vmdk for what was), or with --datastore ids or names of snapshots, and of disks, which stand for
what they are now. Disks restored from a snapshot share links with their source and can be compared with it.

With --content both are read and what is equal is left out, sector by sector. Takes no lock; of a live disk the parts are
those of different moments, and it is not compared by content.`,
		Example: "  vmdkctl diff disk.vmdk disk-000001.vmdk\n" +
			"  vmdkctl diff --datastore /var/lib/vmdk-csi/default monday tuesday -o json\n" +
			"  vmdkctl diff --datastore /var/lib/vmdk-csi/default monday pvc-4711 --content",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: a.completePoints(2),
		RunE: func(c *cobra.Command, args []string) error {
			r, err := a.diff(c.Context(), args[0], args[1], content)
			if err != nil {
				return err
			}
			return a.format.Write(a.out, r, func(w io.Writer) error { return writeDiff(w, r) })
		},
	}
	c.Flags().BoolVar(&content, "content", false, "read both and show what really differs")
	return c
}

// DiffSide is one of the two.
type diffSide struct {
	*chain.Chain
	found *found
}

func openSide(f *found, locks bool) (*diffSide, error) {
	c, err := chain.Open(f.Dir, f.refs(), chain.Options{ReadOnly: true, Locks: locks, Devices: f.Devices, IgnoreCID: f.IgnoreCID})
	if err != nil {
		return nil, err
	}
	return &diffSide{c, f}, nil
}

func (a *app) diff(ctx context.Context, from, to string, content bool) (*diffResult, error) {
	var sides [2]*diffSide
	r := &diffResult{From: from, To: to, Grain: !content, Extents: []diffExtent{}}
	for i, arg := range []string{from, to} {
		f, err := a.findPoint(arg)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		if f.live() {
			r.Live = true
			if content {
				return nil, fault.New(fault.InUse, "Detach it, compare snapshots of it, or leave --content out.", "%s is attached", arg)
			}
		}
		if sides[i], err = openSide(f, content); err != nil {
			return nil, fault.Wrap(err, "%s", arg)
		}
		defer sides[i].Close()
	}
	r.OldSize, r.NewSize = sides[0].Size(), sides[1].Size()
	var err error
	if r.Common, err = commonLinks(sides[0].Chain, sides[1].Chain); err != nil {
		return nil, err
	}
	if r.Common == 0 {
		return nil, fault.New(fault.Invalid, "Name two links or snapshots of one disk, or of disks restored from one another.",
			"%s and %s have no link in common", from, to)
	}
	add := r.add
	if content {
		add = (&comparison{ctx: ctx, old: sides[0], now: sides[1], add: r.add}).compare
	}
	return r, changes(ctx, sides[0].Chain, sides[1].Chain, r.Common, add)
}

// Live says that somebody holds the head that f ends in.
func (f *found) live() bool {
	v := f.Volume
	return v != nil && !v.Manifest.Released && len(f.Names) == len(v.Manifest.Links)
}

// CommonLinks is how many links from the base on are the same: a restored disk has their extents as hard links, under
// descriptors of its own.
func commonLinks(a, b *chain.Chain) (int, error) {
	n := 0
	for ; n < min(len(a.Links()), len(b.Links())); n++ {
		x, err := extentFiles(a.Links()[n])
		if err != nil {
			return 0, err
		}
		y, err := extentFiles(b.Links()[n])
		if err != nil {
			return 0, err
		}
		if !slices.Equal(x, y) {
			break
		}
	}
	return n, nil
}

type inode struct{ device, number uint64 }

func extentFiles(l *vmdk.Link) ([]inode, error) {
	all, err := l.Inodes()
	if err != nil {
		return nil, err
	}
	if !l.Embedded() {
		all = all[1:] // the descriptor
	}
	out := make([]inode, len(all))
	for i, x := range all {
		out[i] = inode{x.Device, x.Inode}
	}
	return out, nil
}

// Changes calls add, in order, for the pieces that a link above the common ones has allocated on either side.
func changes(ctx context.Context, old, now *chain.Chain, common int, add func(diffExtent) error) error {
	var was []chain.Extent
	for x, err := range old.Map(0, old.Size()) {
		if err = first(err, ctx.Err()); err != nil {
			return err
		}
		if x.Present && x.Link >= common {
			was = append(was, x)
		}
	}
	names := now.Links()
	for x, err := range now.Map(0, now.Size()) {
		if err = first(err, ctx.Err()); err != nil {
			return err
		}
		e := diffExtent{Start: x.Start, Length: x.Length, Zero: x.Zero}
		if x.Present {
			e.Link = names[x.Link].Name
		}
		if x.Present && x.Link >= common {
			if err := add(e); err != nil {
				return err
			}
			continue
		}
		// Here the newer side has what was there before both; the older one may have changed it since.
		for len(was) > 0 && was[0].Start+was[0].Length <= x.Start {
			was = was[1:]
		}
		for _, o := range was {
			from, to := max(o.Start, x.Start), min(o.Start+o.Length, x.Start+x.Length)
			if from >= to {
				break
			}
			e.Start, e.Length = from, to-from
			if err := add(e); err != nil {
				return err
			}
		}
	}
	for _, o := range was { // what the newer side is too short for
		if from := max(o.Start, now.Size()); from < o.Start+o.Length {
			if err := add(diffExtent{Start: from, Length: o.Start + o.Length - from, Zero: true}); err != nil {
				return err
			}
		}
	}
	return nil
}

func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// Add appends e, or makes the last extent longer.
func (r *diffResult) add(e diffExtent) error {
	r.Changed += e.Length
	if e.Zero {
		r.Zeroed += e.Length
	}
	if n := len(r.Extents); n > 0 {
		last := &r.Extents[n-1]
		if last.Start+last.Length == e.Start && last.Zero == e.Zero && last.Link == e.Link {
			last.Length += e.Length
			return nil
		}
	}
	r.Extents = append(r.Extents, e)
	return nil
}

// Comparison passes on the sectors that differ.
type comparison struct {
	ctx      context.Context
	old, now *diffSide
	add      func(diffExtent) error
	a, b     []byte
}

func (c *comparison) compare(e diffExtent) error {
	if c.a == nil {
		c.a, c.b = make([]byte, copyChunk), make([]byte, copyChunk)
	}
	for off, end := e.Start, e.Start+e.Length; off < end; {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		n := min(end-off, copyChunk)
		a, b := c.a[:n], c.b[:n]
		if err := readPadded(c.old, a, off); err != nil {
			return fault.Wrap(err, "read at %d", off)
		}
		if err := readPadded(c.now, b, off); err != nil {
			return fault.Wrap(err, "read at %d", off)
		}
		off += n
		if bytes.Equal(a, b) {
			continue
		}
		for at := 0; at < len(a); at += vmdk.SectorSize {
			to := min(at+vmdk.SectorSize, len(a))
			if bytes.Equal(a[at:to], b[at:to]) {
				continue
			}
			if err := c.add(diffExtent{Start: off - n + int64(at), Length: int64(to - at), Zero: e.Zero, Link: e.Link}); err != nil {
				return err
			}
		}
	}
	return nil
}

// ReadPadded reads zeros behind the end of the disk.
func readPadded(s *diffSide, p []byte, off int64) error {
	n := max(0, min(int64(len(p)), s.Size()-off))
	clear(p[n:])
	if n == 0 {
		return nil
	}
	return readFull(s, p[:n], off)
}

func writeDiff(w io.Writer, r *diffResult) error {
	if len(r.Extents) > 0 {
		t := cli.NewTable(">START", ">LENGTH", "WHAT", "LINK")
		for _, e := range r.Extents {
			what := "data"
			if e.Zero {
				what = "zeros"
			}
			t.Row(exact(e.Start), exact(e.Length), what, e.Link)
		}
		if err := t.Write(w); err != nil {
			return err
		}
		fmt.Fprintln(w)
	}
	what := "changed, in whole grains"
	if !r.Grain {
		what = "changed"
	}
	fmt.Fprintf(w, "%s to %s: %s in %s %s", cli.Printable(r.From), cli.Printable(r.To), cli.FormatSize(r.Changed), count(len(r.Extents), "part"), what)
	if r.Zeroed > 0 {
		fmt.Fprintf(w, ", %s of it zeros now", cli.FormatSize(r.Zeroed))
	}
	if r.OldSize != r.NewSize {
		fmt.Fprintf(w, "; the capacity went from %s to %s", cli.FormatSize(r.OldSize), cli.FormatSize(r.NewSize))
	}
	if r.Live {
		fmt.Fprint(w, "; one of them is attached: the parts are of different moments")
	}
	_, err := fmt.Fprintln(w)
	return err
}
