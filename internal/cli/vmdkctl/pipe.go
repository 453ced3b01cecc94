package vmdkctl

import (
	"context"
	"errors"
	"io"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
)

// PipeSource is a disk that comes out of a pipe: its content passes once.
type pipeSource struct {
	size int64
	// next is the next piece, which does not overlap the ones before, in ascending order; io.EOF: that was all.
	next func() (off int64, p []byte, err error)
}

// OpenPipe reads a streamOptimized disk, or a raw image of the size asked for.
func openPipe(in io.Reader, v conversion) (source, error) {
	if v.fromFmt == rawImage {
		size, err := cli.ParseSize(v.size)
		if err != nil || size <= 0 {
			return nil, cli.Usage{Err: fault.New(fault.Invalid, "Give --size.", "how long a raw image from standard input is cannot be seen")}
		}
		return rawPipeSource(in, size), nil
	}
	if v.size != "" {
		return nil, cli.Usage{Err: fault.New(fault.Invalid, "Leave --size out.", "a disk says itself how large it is")}
	}
	s, err := vmdk.NewStreamReader(in)
	if err != nil {
		return nil, err
	}
	last := int64(-1)
	return &pipeSource{size: s.Size(), next: func() (int64, []byte, error) {
		off, p, err := s.Next()
		if err == nil && off <= last {
			err = fault.New(fault.Unsupported, "Save it to a file and convert that.", "the grains of the stream are not in the order of the disk")
		}
		last = off
		return off, p, err
	}}, nil
}

// RawPipeSource reads size bytes; the input must have neither less nor more.
func rawPipeSource(in io.Reader, size int64) *pipeSource {
	buf, off := make([]byte, copyChunk), int64(0)
	return &pipeSource{size: size, next: func() (int64, []byte, error) {
		n, err := io.ReadFull(in, buf[:min(size-off, copyChunk)])
		if off == size {
			if k, err := in.Read(buf[:1]); k > 0 || err != nil && !errors.Is(err, io.EOF) {
				return 0, nil, fault.New(fault.Invalid, "Give its true --size.", "the image is longer than %d bytes (%v)", size, err)
			}
			return 0, nil, io.EOF
		}
		if err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				err = fault.New(fault.Damaged, "Send the whole image, or give its true --size.", "the image ends after %d bytes of %d", off+int64(n), size)
			}
			return 0, nil, err
		}
		at := off
		off += int64(n)
		return at, buf[:n], nil
	}}
}

func (s *pipeSource) Size() int64 { return s.size }

// ReadAt is not for a pipe.
func (s *pipeSource) ReadAt([]byte, int64) (int, error) {
	return 0, fault.New(fault.Internal, "", "a pipe cannot be read at a place")
}

// Data knows nothing before it has passed.
func (s *pipeSource) Data(int64) (start, end int64, err error) { return 0, 0, io.EOF }

func (s *pipeSource) Close() error { return nil }

func (s *pipeSource) copyTo(ctx context.Context, dst sink, progress func(int64)) (written int64, err error) {
	at := int64(0)
	for {
		if err := ctx.Err(); err != nil {
			return written, err
		}
		off, p, err := s.next()
		if errors.Is(err, io.EOF) {
			progress(s.size - at)
			return written, nil
		}
		if err != nil {
			return written, fault.Wrap(err, "standard input")
		}
		w, err := writeRuns(dst, p, off)
		if written += w; err != nil {
			return written, fault.Wrap(err, "write at %d", off)
		}
		progress(off + int64(len(p)) - at)
		at = off + int64(len(p))
	}
}
