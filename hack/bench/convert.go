package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/cli/vmdkctl"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
)

// MeasureConvert times `vmdkctl convert` beside `qemu-img convert`, and how long it takes to open a large disk.
func measureConvert(ctx context.Context, b *bench) (part, error) {
	amount, rounds := int64(1<<30), 3
	if b.quick {
		amount, rounds = 8<<20, 1
	}
	p := part{title: "Conversion", about: fmt.Sprintf("`vmdkctl convert` beside `qemu-img convert`: %d MiB, of which a third is zeros, a third can be "+
		"compressed to about a half and a third cannot; from files that are not in the page cache, durable at the end. Median of %d. Opening is of an empty "+
		"twoGbMaxExtentSparse disk, beside `qemu-img info`, which starts a program.", amount>>20, rounds)}
	pl, err := b.place()
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, pl.leave()) }()
	if err := mixedImage(pl.file("a.raw"), amount, b.seed); err != nil {
		return p, err
	}
	if err := pl.qemuImg(ctx, "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", "a.raw", "stream.vmdk"); err != nil {
		return p, err
	}
	for _, c := range []struct {
		what, from, fromFormat, to, toFormat string
		target                               float64
	}{
		{"raw to monolithicSparse", "a.raw", "raw", "out.vmdk", "monolithicSparse", 1},
		{"raw to streamOptimized", "a.raw", "raw", "out.vmdk", "streamOptimized", 2},
		{"streamOptimized to raw", "stream.vmdk", "vmdk", "out.raw", "raw", 1.5},
	} {
		var ours, theirs []time.Duration
		for range rounds {
			t, err := pl.converted(func() error {
				var said bytes.Buffer
				args := []string{"convert", "--from", c.fromFormat, "--to", c.toFormat, pl.file(c.from), pl.file(c.to)}
				if code := vmdkctl.Main(ctx, args, io.Discard, &said); code != 0 {
					return fmt.Errorf("vmdkctl convert: %s", said.String())
				}
				return nil
			})
			if err != nil {
				return p, err
			}
			ours = append(ours, t)
			t, err = pl.converted(func() error {
				args := []string{"convert", "-f", c.fromFormat, "-O", "raw", c.from, c.to}
				if c.toFormat != "raw" {
					args = []string{"convert", "-f", c.fromFormat, "-O", "vmdk", "-o", "subformat=" + c.toFormat, c.from, c.to}
				}
				return errors.Join(pl.qemuImg(ctx, args...), pl.durable("out"))
			})
			if err != nil {
				return p, err
			}
			theirs = append(theirs, t)
		}
		p.rows = append(p.rows, row{c.what, value{speed(amount, median(ours)), "MiB/s"}, "qemu-img convert", value{speed(amount, median(theirs)), "MiB/s"},
			atLeast(c.target)})
	}
	opened, memory, err := pl.openings(ctx, 10*rounds)
	p.rows = append(p.rows, opened, memory)
	return p, err
}

// Converted times a conversion from cold files, and removes what it made.
func (p *place) converted(do func() error) (time.Duration, error) {
	if err := p.cold(); err != nil {
		return 0, err
	}
	t, err := timed(do)
	return t, errors.Join(err, p.remove("out"))
}

// Openings times the opening of a sparse disk of 2 TiB, and tells how much memory an open one takes.
func (p *place) openings(ctx context.Context, rounds int) (took, memory row, err error) {
	d, err := fsx.OpenRoot(p.path)
	if err != nil {
		return took, memory, err
	}
	defer d.Close()
	if _, err := vmdk.Create(ctx, d, "large.vmdk", vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse, Capacity: 2 << 40}); err != nil {
		return took, memory, err
	}
	open := func() error {
		l, err := vmdk.Open(d, "large.vmdk", vmdk.Options{})
		if err != nil {
			return err
		}
		return l.Close()
	}
	peak, err := peakMemory(open)
	if err != nil {
		return took, memory, err
	}
	var ours, theirs []time.Duration
	for range rounds {
		t, err := timed(open)
		if err != nil {
			return took, memory, err
		}
		ours = append(ours, t)
		if t, err = timed(func() error { return p.qemuImg(ctx, "info", "-f", "vmdk", "large.vmdk") }); err != nil {
			return took, memory, err
		}
		theirs = append(theirs, t)
	}
	took = row{"open 2 TiB", duration(median(ours)), "qemu-img info", duration(median(theirs)), atMost(value{20, "ms"})}
	return took, row{"open 2 TiB, memory", value{peak / (1 << 20), "MiB"}, "", value{}, atMost(value{32, "MiB"})}, nil
}

// MixedImage makes a raw image of zeros, of what can be compressed, and of what cannot, in stretches of up to 8 MiB.
func mixedImage(path string, size int64, seed uint64) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	r := rand.New(rand.NewPCG(seed, 3))
	buf := make([]byte, 8<<20)
	for off := int64(0); off < size; {
		n := min(size-off, 64<<10+r.Int64N(int64(len(buf))-64<<10))
		b := buf[:n]
		switch r.IntN(3) {
		case 0:
			off += n
			continue
		case 1:
			for i := range b {
				b[i] = byte(r.Uint32()) & 0x0f
			}
		default:
			for i := range b {
				b[i] = byte(r.Uint32())
			}
		}
		if _, err := f.WriteAt(b, off); err != nil {
			return err
		}
		off += n
	}
	return f.Truncate(size)
}
