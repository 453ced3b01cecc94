package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
	"github.com/vmdk-csi/vmdk-csi/pkg/worker"
)

// MeasureEngine times the engine's chain, in this process, beside qemu's driver of the same format.
func measureEngine(ctx context.Context, b *bench) (part, error) {
	s := engineSizes{writes: 32768, peerWrites: 1024, reads: 20000, disk: 2 << 30, full: 1 << 40, rounds: 5}
	if b.quick {
		s = engineSizes{writes: 256, peerWrites: 64, reads: 400, disk: 64 << 20, full: 1 << 36, rounds: 1}
	}
	p := part{title: "The engine", about: fmt.Sprintf("Writes: 4 KiB, each into a grain of its own of an empty monolithicSparse disk, each followed by a flush, so that it is durable "+
		"before the next; *depth* is how many are under way. The peer is `qemu-io` with as many `aio_write -f` before each `aio_flush`. Reads: 4 KiB, "+
		"scattered over a chain of two links (monolithicSparse, each has every second MiB of %d MiB), past the page cache; the peer is `qemu-img bench`. *cached* reads are of the same chain in "+
		"the page cache, by so many callers of one handle; how much they can bring is the machine's. Check: a monolithicSparse disk of %d GiB of which every grain is stored "+
		"(as far as its tables tell: the grains are a hole). Medians of %d.", s.disk>>20, s.full>>30, s.rounds)}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(worker.Procs)) // as where a disk is served
	for _, measure := range []func(context.Context, *bench, engineSizes) ([]row, error){flushedWrites, chainReads, checkFull} {
		rows, err := measure(ctx, b, s)
		if err != nil {
			return p, err
		}
		p.rows = append(p.rows, rows...)
	}
	return p, nil
}

type engineSizes struct {
	writes, peerWrites, reads int
	disk, full                int64 // bytes
	rounds                    int
}

var writeDepths = []int{1, 8, 64}

// FlushedWrites: group commit. A qemu flushes once for each write whatever the depth is.
func flushedWrites(ctx context.Context, b *bench, s engineSizes) ([]row, error) {
	var rows []row
	for _, depth := range writeDepths {
		writes := max(s.writes*depth/64, s.writes/8)
		var ours, theirs []time.Duration
		for range s.rounds {
			t, err := b.inPlace(func(p *place) (time.Duration, error) { return p.writeFlushed(ctx, writes, depth) })
			if err != nil {
				return nil, err
			}
			ours = append(ours, t/time.Duration(writes))
			t, err = b.inPlace(func(p *place) (time.Duration, error) { return p.qemuWriteFlushed(ctx, s.peerWrites, depth) })
			if err != nil {
				return nil, err
			}
			theirs = append(theirs, t/time.Duration(s.peerWrites))
		}
		r := row{what: fmt.Sprintf("new grains, flushed each, depth %d", depth), ours: perSecond(median(ours)), beside: "qemu-io", theirs: perSecond(median(theirs))}
		if depth == 64 {
			r.goal = atLeast(25)
		}
		rows = append(rows, r)
	}
	return rows, nil
}

func perSecond(each time.Duration) value { return value{float64(time.Second) / float64(each), "/s"} }

// InPlace measures in a directory of its own.
func (b *bench) inPlace(measure func(*place) (time.Duration, error)) (time.Duration, error) {
	p, err := b.place()
	if err != nil {
		return 0, err
	}
	t, err := measure(p)
	return t, errors.Join(err, p.leave())
}

// Several runs do, for 0 to n-1, on as many goroutines as depth, each with a buffer for O_DIRECT.
func several(n, depth int, do func(i int, buf []byte) error) error {
	var next atomic.Int64
	var done sync.WaitGroup
	errs := make([]error, depth)
	for w := range depth {
		done.Go(func() {
			buf, err := unix.Mmap(-1, 0, blockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
			for i := range buf {
				buf[i] = byte(i%255 + 1)
			}
			for err == nil {
				i := int(next.Add(1)) - 1
				if i >= n {
					break
				}
				err = do(i, buf)
			}
			errs[w] = errors.Join(err, unix.Munmap(buf))
		})
	}
	done.Wait()
	return errors.Join(errs...)
}

func (p *place) writeFlushed(ctx context.Context, n, depth int) (t time.Duration, err error) {
	if _, err = vmdk.Create(ctx, p.dir, "disk.vmdk", vmdk.CreateParams{Type: vmdk.MonolithicSparse, Capacity: 8 << 30}); err != nil {
		return 0, err
	}
	c, err := p.open([]chain.Ref{{Name: "disk.vmdk"}})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	return timed(func() error {
		return several(n, depth, func(i int, buf []byte) error {
			if _, err := c.WriteAt(buf, int64(i)*grain); err != nil {
				return err
			}
			return c.Flush()
		})
	})
}

func (p *place) qemuWriteFlushed(ctx context.Context, n, depth int) (time.Duration, error) {
	if err := p.qemuImg(ctx, "create", "-f", "vmdk", "-o", "subformat=monolithicSparse", "disk.vmdk", "8G"); err != nil {
		return 0, err
	}
	var commands bytes.Buffer
	for i := range n {
		fmt.Fprintf(&commands, "aio_write -q -f -P 7 %d %d\n", i*grain, blockSize)
		if (i+1)%depth == 0 || i == n-1 {
			fmt.Fprintln(&commands, "aio_flush")
		}
	}
	var t time.Duration
	for _, in := range []string{"", commands.String()} { // what it takes to start is not counted
		cmd := exec.CommandContext(ctx, "qemu-io", "-f", "vmdk", "-n", "-t", "none", p.file("disk.vmdk"))
		cmd.Stdin = strings.NewReader(in)
		began := time.Now()
		out, err := cmd.CombinedOutput()
		if err != nil || bytes.Contains(out, []byte("failed")) {
			return 0, fmt.Errorf("qemu-io: %w\n%s", err, out)
		}
		t = time.Since(began) - t
	}
	return t, nil
}

// ScatterStep is a stride of reads: coprime to the number of blocks of a disk, which is a power of two, so that all are met.
const scatterStep = 40503 * blockSize

// ChainReads reads a chain of two links.
func chainReads(ctx context.Context, b *bench, s engineSizes) (rows []row, err error) {
	p, err := b.place()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.leave()) }()
	refs, err := p.alternating(ctx, s.disk)
	if err != nil {
		return nil, err
	}
	var ours, theirs []time.Duration
	for range s.rounds {
		t, err := p.readScattered(refs, s, 64, true)
		if err != nil {
			return nil, err
		}
		ours = append(ours, t/time.Duration(s.reads))
		t, err = timed(func() error {
			return p.qemuImg(ctx, "bench", "-f", "vmdk", "-t", "none", "-c", fmt.Sprint(s.reads), "-d", "64", "-s", fmt.Sprint(blockSize),
				"-S", fmt.Sprint(scatterStep), refs[1].Name)
		})
		if err != nil {
			return nil, err
		}
		theirs = append(theirs, t/time.Duration(s.reads))
	}
	rows = append(rows, row{what: "reads of a chain of two, depth 64", ours: perSecond(median(ours)), beside: "qemu-img bench", theirs: perSecond(median(theirs)),
		goal: atLeast(1.5)})
	more, err := p.cachedReads(refs, s)
	return append(rows, more...), err
}

// CachedReads tells what more callers bring, beside what they bring to the kernel's pread(2) of a file of the same size.
func (p *place) cachedReads(refs []chain.Ref, s engineSizes) ([]row, error) {
	raw, err := os.Create(p.file("raw"))
	if err != nil {
		return nil, err
	}
	defer raw.Close()
	for off := int64(0); off < s.disk; off += fillChunk {
		if _, err := raw.WriteAt(bytes.Repeat([]byte{1}, fillChunk), off); err != nil {
			return nil, err
		}
	}
	reads := s
	reads.reads *= 10
	ours, theirs := map[int][]time.Duration{}, map[int][]time.Duration{}
	callers := []int{1, 2, 4}
	for range s.rounds {
		for _, n := range callers {
			t, err := p.readScattered(refs, reads, n, false)
			if err != nil {
				return nil, err
			}
			ours[n] = append(ours[n], t/time.Duration(reads.reads))
			t, err = timed(func() error {
				return several(reads.reads, n, func(i int, buf []byte) error {
					_, err := raw.ReadAt(buf, int64(i)*scatterStep%s.disk)
					return err
				})
			})
			if err != nil {
				return nil, err
			}
			theirs[n] = append(theirs[n], t/time.Duration(reads.reads))
		}
	}
	var rows []row
	for _, n := range callers {
		rows = append(rows, row{what: fmt.Sprintf("cached reads, callers: %d", n), ours: perSecond(median(ours[n])), beside: "pread of a raw file",
			theirs: perSecond(median(theirs[n]))})
	}
	gain := func(t map[int][]time.Duration) value {
		return value{float64(median(t[1])) / float64(median(t[2])), "times"}
	}
	return append(rows, row{what: "the second caller brings", ours: gain(ours), beside: "pread of a raw file", theirs: gain(theirs), goal: atLeast(1)}), nil
}

// Alternating makes a chain whose links have every second MiB each.
func (p *place) alternating(ctx context.Context, size int64) ([]chain.Ref, error) {
	_, err := vmdk.Create(ctx, p.dir, "disk.vmdk", vmdk.CreateParams{Type: vmdk.MonolithicSparse, Capacity: size})
	if err != nil {
		return nil, err
	}
	refs := []chain.Ref{{Name: "disk.vmdk"}}
	if err := p.fill(ctx, refs, 0, size/2); err != nil {
		return nil, err
	}
	if refs, err = p.child(ctx, refs, size); err != nil {
		return nil, err
	}
	return refs, p.fill(ctx, refs, fillChunk, size/2)
}

func (p *place) readScattered(refs []chain.Ref, s engineSizes, depth int, direct bool) (t time.Duration, err error) {
	c, err := chain.Open(p.dir, refs, chain.Options{Direct: direct, ReadOnly: true})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	return timed(func() error {
		return several(s.reads, depth, func(i int, buf []byte) error {
			_, err := c.ReadAt(buf, int64(i)*scatterStep%s.disk)
			return err
		})
	})
}
