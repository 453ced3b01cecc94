package vmdkctl

import (
	"bytes"
	"context"
	"errors"
	"io"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Source is a disk's content that is read from its beginning to its end.
type source interface {
	io.ReaderAt
	Size() int64
	// Data is the first range at or after off that may hold data; io.EOF if only zeros follow.
	Data(off int64) (start, end int64, err error)
	Close() error
}

// Sink takes a disk's content; what is not written reads as zeros.
type sink interface {
	io.WriterAt
	// Finish makes the content durable and closes the sink; after an error elsewhere it only closes.
	finish() error
}

const (
	copyChunk = 2 << 20
	// ZeroUnit is the unit in which zeros become holes: the grain of sparse disks.
	zeroUnit = 64 << 10
)

// DataBytes is how much of src may be data.
func dataBytes(ctx context.Context, src source) (total int64, err error) {
	err = eachRange(ctx, src, func(start, end int64) error {
		total += end - start
		return nil
	})
	return total, err
}

func eachRange(ctx context.Context, src source, f func(start, end int64) error) error {
	for off := int64(0); off < src.Size(); {
		if err := ctx.Err(); err != nil {
			return err
		}
		start, end, err := src.Data(off)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		end = min(end, src.Size())
		if end <= start || start < off {
			return fault.New(fault.Internal, "", "data from %d to %d at offset %d", start, end, off)
		}
		if err := f(start, end); err != nil {
			return err
		}
		off = end
	}
	return nil
}

// An orderedSink is one that must be written in ascending order, by one goroutine, in whole units.
type orderedSink interface {
	sink
	inOrder()
}

// A piece is a part of the source on its way to the sink.
type piece struct {
	off  int64
	n    int
	buf  []byte
	done chan error // of an orderedSink: it is read
}

// CopyData copies what is not zeros, several pieces at once, and returns how much that was. progress is called by one goroutine at a
// time.
func copyData(ctx context.Context, dst sink, src source, progress func(int64)) (written int64, err error) {
	workers := runtime.GOMAXPROCS(0) + 1
	ordered, inOrder := dst.(orderedSink)
	jobs, order, free := make(chan *piece), make(chan *piece, 2*workers), make(chan *piece, 3*workers)
	for range cap(free) {
		free <- &piece{buf: fsx.AlignedBuffer(copyChunk)}
	}
	var mu sync.Mutex // guards written, progress
	put := func(dst io.WriterAt, p *piece) error {
		w, err := writeRuns(dst, p.buf[:p.n], p.off)
		mu.Lock()
		defer mu.Unlock()
		written += w
		progress(int64(p.n))
		return fault.Wrap(err, "write at %d", p.off)
	}
	parent, stop := context.WithCancel(ctx)
	defer stop()
	g, ctx := errgroup.WithContext(parent)
	g.Go(func() error {
		defer close(jobs)
		defer close(order)
		return eachPiece(ctx, src, func(off int64, n int) error {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case p := <-free:
				p.off, p.n, p.done = off, n, make(chan error, 1)
				if inOrder {
					order <- p // there is room for all that are under way but those that wait for it
				}
				select {
				case jobs <- p:
				case <-ctx.Done():
					p.done <- ctx.Err()
					return ctx.Err()
				}
				return nil
			}
		})
	})
	share := sharing(dst, src)
	for range workers {
		g.Go(func() error {
			for p := range jobs {
				if share != nil && share(p.off, int64(p.n)) {
					mu.Lock()
					written += int64(p.n)
					progress(int64(p.n))
					mu.Unlock()
					free <- p
					continue
				}
				err := fault.Wrap(readFull(src, p.buf[:p.n], p.off), "read at %d", p.off)
				if inOrder {
					p.done <- err
					continue
				}
				if err == nil {
					err = put(dst, p)
				}
				if free <- p; err != nil {
					return err
				}
			}
			return nil
		})
	}
	var failed error // the first error of what goes in order; what follows it is its consequence
	g.Go(func() error {
		for p := range order {
			err := <-p.done
			if failed == nil && err == nil {
				err = put(ordered, p)
			}
			if failed == nil && err != nil {
				failed = err
				stop() // the others end, and close the order
			}
			free <- p
		}
		return failed
	})
	err = g.Wait()
	if failed != nil {
		err = failed
	}
	return written, err
}

// Sharing is how dst comes to share the blocks of src; nil where their kinds do not allow it. It answers false for what must be copied.
func sharing(dst sink, src source) func(off, n int64) bool {
	from, ok := src.(*chainSource)
	if !ok {
		return nil
	}
	var share func(off, n int64) error
	switch to := dst.(type) {
	case *rawSink:
		share = func(off, n int64) error { return from.ShareTo(to.File, off, n) }
	case vmdkSink:
		share = func(off, n int64) error { return to.ShareFrom(from.Chain, off, n) }
	default:
		return nil
	}
	var not atomic.Bool // most file systems cannot: not asked again
	return func(off, n int64) bool {
		if not.Load() {
			return false
		}
		err := share(off, n) // any other failure is the copy's to meet
		if fault.KindOf(err) == fault.Unsupported {
			not.Store(true)
		}
		return err == nil
	}
}

// EachPiece calls f for pieces of up to copyChunk that begin and end at multiples of the unit, or at the end of the source.
func eachPiece(ctx context.Context, src source, f func(off int64, n int) error) error {
	at := int64(0)
	return eachRange(ctx, src, func(start, end int64) error {
		at = max(at, start/zeroUnit*zeroUnit)
		for end = min((end+zeroUnit-1)/zeroUnit*zeroUnit, src.Size()); at < end; {
			n := min(end, (at/copyChunk+1)*copyChunk) - at
			if err := f(at, int(n)); err != nil {
				return err
			}
			at += n
		}
		return nil
	})
}

// ReadFull is io.ReadFull at an offset: io.ReaderAt may return io.EOF with a full buffer.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

var zeros [zeroUnit]byte

// WriteRuns writes the units of p that are not zeros, neighbours in one write.
func writeRuns(dst io.WriterAt, p []byte, off int64) (written int64, err error) {
	from := -1 // begin of the run that waits
	flush := func(to int) error {
		if from < 0 {
			return nil
		}
		_, err := dst.WriteAt(p[from:to], off+int64(from))
		written += int64(to - from)
		from = -1
		return err
	}
	for at := 0; at < len(p); {
		// To the next multiple of the unit on the disk.
		next := min(len(p), at+zeroUnit-int((off+int64(at))%zeroUnit))
		if bytes.Equal(p[at:next], zeros[:next-at]) {
			if err := flush(at); err != nil {
				return written, err
			}
		} else if from < 0 {
			from = at
		}
		at = next
	}
	return written, flush(len(p))
}
