package vmdkctl

import (
	"bytes"
	"context"
	"errors"
	"io"

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
	copyChunk = 4 << 20
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

// CopyData copies what is not zeros and returns how much that was.
func copyData(ctx context.Context, dst sink, src source, progress func(int64)) (written int64, err error) {
	buf := make([]byte, copyChunk)
	err = eachRange(ctx, src, func(start, end int64) error {
		for off := start; off < end; {
			if err := ctx.Err(); err != nil {
				return err
			}
			// Chunks end at multiples of the unit, so that zero runs are found where grains are.
			n := min(end, (off/copyChunk+1)*copyChunk) - off
			if err := readFull(src, buf[:n], off); err != nil {
				return fault.Wrap(err, "read at %d", off)
			}
			w, err := writeRuns(dst, buf[:n], off)
			if err != nil {
				return fault.Wrap(err, "write at %d", off)
			}
			written += w
			progress(n)
			off += n
		}
		return nil
	})
	return written, err
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
