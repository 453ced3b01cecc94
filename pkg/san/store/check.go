package store

import (
	"errors"
	"fmt"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Report is what Check found.
type Report struct {
	Info     Info     `json:"info"`
	Problems []string `json:"problems"` // empty: the store is whole
	Notes    []string `json:"notes"`    // what its next owner mends by itself
}

// Check reads everything that the store says about itself and tells all contradictions, at most some dozens. It writes
// nothing and takes no lock. A LUN without a store, or one that cannot be read, is an error.
func Check(lun fsx.File) (Report, error) {
	sb, err := readSuper(lun)
	if errors.Is(err, fault.Damaged) {
		return Report{Problems: []string{err.Error()}}, nil
	}
	if err != nil {
		return Report{}, err
	}
	var r Report
	r.checkSupers(lun, sb)
	if u, _, err := ReadNonce(lun); err != nil || u != sb.uuid {
		r.Notes = append(r.Notes, "the identity block is missing; whoever opens the store writes it")
	}
	c, problems, err := readCatalogue(lun, sb)
	if err != nil {
		return r, err
	}
	r.Problems = append(r.Problems, problems...)
	r.Info = infoOf(sb, 0, 0, 1)
	if c == nil {
		r.checkOther(lun, sb)
		return r, nil
	}
	free := newBitmap(sb.extents)
	for _, n := range c.inodes {
		for _, x := range n.runs {
			if int64(x.lun)+int64(x.n) <= sb.extents {
				free.setAll(x.lun, x.n)
			}
		}
	}
	waiting := int64(0)
	for _, h := range c.held {
		waiting += int64(h.n)
	}
	r.Info = infoOf(sb, free.free-waiting, waiting, len(c.inodes))
	r.Info.Grants = len(c.grants)
	return r, nil
}

// checkSupers compares the two superblocks.
func (r *Report) checkSupers(lun fsx.File, sb *super) {
	info, err := lun.Stat()
	if err != nil {
		return
	}
	for what, at := range map[string]int64{"superblock at 4096": superblock, "copy of the superblock at the end": sb.copyAt()} {
		other, err := readSuperAt(lun, at, info.Size)
		switch {
		case err != nil:
			r.Notes = append(r.Notes, fmt.Sprintf("the %s is lost (%v); whoever opens the store writes it anew", what, err))
		case other.generation != sb.generation || other.uuid != sb.uuid:
			r.Notes = append(r.Notes, fmt.Sprintf("the %s is of generation %d, the other one of %d: a commit was cut short", what, other.generation, sb.generation))
		}
	}
}

// checkOther tells whether the catalogue before the lost one is there: what a rescue by hand would start from.
func (r *Report) checkOther(lun fsx.File, sb *super) {
	p := fsx.AlignedBuffer(blockSize)
	if _, err := lun.ReadAt(p, sb.areaAt(1-sb.area)); err != nil || [8]byte(p[:8]) != recordMagic {
		return
	}
	r.Notes = append(r.Notes, fmt.Sprintf("the other metadata area has a catalogue of generation %d, which is older and is never used by itself", le.Uint64(p[32:])))
}
