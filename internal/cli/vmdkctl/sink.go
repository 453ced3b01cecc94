package vmdkctl

import (
	"context"
	"errors"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// OpenSink makes an empty destination of the capacity in d.
func openSink(ctx context.Context, d fsx.Dir, name string, v conversion, capacity int64) (sink, error) {
	if v.toFmt == vmdkImage {
		return newVMDKSink(ctx, d, name, v.shape.params(capacity))
	}
	f, err := d.Open(name, fsx.ReadWrite|fsx.Create|fsx.Exclusive)
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(capacity); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &rawSink{f}, nil
}

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
