package lun

import (
	"iter"

	"github.com/vmdk-csi/vmdk-csi/pkg/block"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/nbd"
)

// device is a served disk as NBD exports it. What was answered survives the death of this process, because the disk's user
// lives on another machine and will not write it again: data goes to the LUN at once, and what only memory would have about it
// (a new place in a grain table, a new extent of the store) is made durable before the answer. A disk whose places are all there
// pays nothing for that.
type device struct{ w *Serving }

var _ block.Device = device{}

func (d device) Size() int64 { return d.w.chain.Size() }

func (d device) ReadAt(p []byte, off int64) (int, error) {
	d.w.requests.Add(1)
	n, err := d.w.chain.ReadAt(p, off)
	return n, d.w.noted(err)
}

func (d device) Flush() error {
	d.w.requests.Add(1)
	return d.w.noted(d.w.chain.Flush())
}

func (d device) WriteAt(p []byte, off int64) (n int, err error) {
	err = d.change(func() error {
		n, err = d.w.chain.WriteAt(p, off)
		return err
	})
	return n, err
}

func (d device) Discard(off, n int64) error {
	return d.change(func() error { return d.w.chain.Discard(off, n) })
}

func (d device) WriteZeroes(off, n int64) error {
	return d.change(func() error { return d.w.chain.WriteZeroes(off, n) })
}

func (d device) change(do func() error) error {
	d.w.requests.Add(1)
	if d.w.pending == nil {
		return fault.New(fault.ReadOnly, "Attach it for writing.", "disk %s is open for reading", d.w.spec.ID)
	}
	before := d.w.pending.Mark()
	if err := do(); err != nil {
		return d.w.noted(err)
	}
	if d.w.pending.Mark() != before { // this request's entries, or those of one beside it
		if err := d.w.chain.Flush(); err != nil {
			return d.w.noted(err)
		}
	}
	if d.w.s.store == nil {
		return nil // the files of a directory outlive this process as they are
	}
	return d.w.noted(d.w.s.store.Sync())
}

// allocation answers base:allocation: what has no place in a file is a hole, and reads as zeros.
func (w *Serving) allocation(off, n int64) iter.Seq2[nbd.Extent, error] {
	return func(yield func(nbd.Extent, error) bool) {
		for x, err := range w.chain.Map(off, n) {
			e := nbd.Extent{Length: x.Length}
			if err == nil && (!x.Data || x.Zero) {
				e.Flags = nbd.StateHole | nbd.StateZero
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}
