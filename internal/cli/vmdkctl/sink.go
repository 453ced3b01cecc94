package vmdkctl

import (
	"context"
	"errors"
	"io"
	"slices"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// OpenSink makes an empty destination of the capacity in d.
func openSink(ctx context.Context, d fsx.Dir, name string, v conversion, capacity int64) (sink, error) {
	if v.toFmt == vmdkImage && v.shape.diskType != string(vmdk.StreamOptimized) {
		return newVMDKSink(ctx, d, name, v.shape.params(capacity))
	}
	flag := fsx.ReadWrite | fsx.Create | fsx.Exclusive
	if v.toFmt != vmdkImage { // whole pieces, which nobody reads soon: the page cache would cost a copy, and a wait at the end
		flag |= fsx.Direct
	}
	f, err := d.Open(name, flag)
	if err != nil {
		return nil, err
	}
	if v.toFmt == vmdkImage {
		w, err := vmdk.NewStreamWriter(&appendWriter{f: f}, f, vmdk.StreamParams{Capacity: capacity, Name: name, AdapterType: v.shape.adapter})
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		return &streamSink{w: w, capacity: capacity, end: func() error { return errors.Join(f.Datasync(), f.Close()) }}, nil
	}
	if err := f.Truncate(capacity); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &rawSink{f}, nil
}

// OpenPipeSink makes a destination that goes out as it comes: a streamOptimized disk or a raw image.
func openPipeSink(out io.Writer, v conversion, capacity int64) (sink, error) {
	if v.toFmt == rawImage {
		return &rawPipe{out: out, size: capacity}, nil
	}
	w, err := vmdk.NewStreamWriter(out, nil, vmdk.StreamParams{Capacity: capacity, Name: "disk.vmdk", AdapterType: v.shape.adapter})
	if err != nil {
		return nil, err
	}
	return &streamSink{w: w, capacity: capacity, end: func() error { return nil }}, nil
}

// AppendWriter writes a file from its beginning on.
type appendWriter struct {
	f   io.WriterAt
	off int64
}

func (a *appendWriter) Write(p []byte) (int, error) {
	n, err := a.f.WriteAt(p, a.off)
	a.off += int64(n)
	return n, err
}

// StreamSink is a streamOptimized disk.
type streamSink struct {
	w        *vmdk.StreamWriter
	capacity int64
	end      func() error
}

func (s *streamSink) inOrder() {}

// WriteAt takes whole grains, and the end of the disk, which it fills up to the capacity.
func (s *streamSink) WriteAt(p []byte, off int64) (int, error) {
	n := len(p)
	if end := off + int64(n); end%zeroUnit != 0 && end != s.capacity {
		p = append(slices.Clone(p), make([]byte, min(s.capacity, (end+zeroUnit-1)/zeroUnit*zeroUnit)-end)...)
	}
	return n, s.w.WriteGrains(p, off)
}

func (s *streamSink) finish() error { return errors.Join(s.w.Close(), s.end()) }

// RawPipe is a raw image that goes out from its beginning to its end, zeros and all.
type rawPipe struct {
	out       io.Writer
	at, size  int64
	zeroBytes []byte
}

func (s *rawPipe) inOrder() {}

func (s *rawPipe) WriteAt(p []byte, off int64) (int, error) {
	if err := s.zeros(off); err != nil {
		return 0, err
	}
	n, err := s.out.Write(p)
	s.at += int64(n)
	return n, err
}

func (s *rawPipe) zeros(until int64) error {
	if s.zeroBytes == nil {
		s.zeroBytes = make([]byte, 1<<20)
	}
	for s.at < until {
		n, err := s.out.Write(s.zeroBytes[:min(until-s.at, int64(len(s.zeroBytes)))])
		if s.at += int64(n); err != nil {
			return err
		}
	}
	return nil
}

func (s *rawPipe) finish() error { return s.zeros(s.size) }

type rawSink struct{ fsx.File }

func (s *rawSink) finish() error { return errors.Join(s.Datasync(), s.Close()) }

type vmdkSink struct{ *chain.Chain }

func newVMDKSink(ctx context.Context, d fsx.Dir, name string, p vmdk.CreateParams) (sink, error) {
	if _, err := vmdk.Create(ctx, d, name, p); err != nil {
		return nil, err
	}
	c, err := chain.Open(d, []chain.Ref{{Name: name}}, chain.Options{})
	if err != nil {
		return nil, err
	}
	return vmdkSink{c}, nil
}

// Finish flushes and closes: Close of a chain writes its tables and marks it clean.
func (s vmdkSink) finish() error { return errors.Join(s.Flush(), s.Chain.Close()) }
