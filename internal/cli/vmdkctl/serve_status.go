package vmdkctl

import (
	"errors"
	"iter"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/nbd"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// Allocation answers base:allocation as qemu-nbd does: what has no place in a file is a hole, and a hole reads as zeros.
func allocation(c *chain.Chain) func(off, n int64) iter.Seq2[nbd.Extent, error] {
	return status(c, func(x chain.Extent) uint32 {
		if x.Zero { // a hole of a flat file too: it has no blocks
			return nbd.StateHole | nbd.StateZero
		}
		return 0
	})
}

// ChangedAbove tells what a link above the one with the number has: that was written, discarded or zeroed since it became a
// parent, in whole grains. What the disk grew by and nobody wrote reads as zeros and is no change.
func changedAbove(c *chain.Chain, link int) func(off, n int64) iter.Seq2[nbd.Extent, error] {
	return status(c, func(x chain.Extent) uint32 {
		if x.Present && x.Link > link {
			return nbd.StateDirty
		}
		return 0
	})
}

func status(c *chain.Chain, flags func(chain.Extent) uint32) func(off, n int64) iter.Seq2[nbd.Extent, error] {
	return func(off, n int64) iter.Seq2[nbd.Extent, error] {
		return func(yield func(nbd.Extent, error) bool) {
			for x, err := range c.Map(off, n) {
				if !yield(nbd.Extent{Length: x.Length, Flags: flags(x)}, err) {
					return
				}
			}
		}
	}
}

// LinkOf is the number of the link that since names: a descriptor of the chain, or with --datastore a snapshot of the
// disk. It is the head if nothing was written since.
func (a *app) linkOf(f *found, since string) (int, error) {
	if i := slices.Index(f.Names, filepath.Base(since)); i >= 0 {
		return i, nil
	}
	if a.datastore != "" {
		s, err := openStore(a.datastore)
		if err != nil {
			return 0, err
		}
		defer s.Close()
		_, link, err := s.snapshotLink(snapshotID(since))
		if err != nil && !errors.Is(err, fault.NotFound) {
			return 0, err
		}
		if i := slices.Index(f.Names, link); err == nil && i >= 0 {
			return i, nil
		}
	}
	return 0, fault.New(fault.NotFound, "Name one of "+strings.Join(f.Names, ", ")+", or with --datastore a snapshot of the disk.",
		"%s is no point in the past of this disk", since)
}
