package vmdkctl

import (
	"context"
	"errors"
	"io"
	"slices"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// FilesMerge is what consolidate is asked to do with a disk that is plain files.
type filesMerge struct {
	link      string // "": every link that nothing else needs
	direction string // "": whichever copies less
	rate      int64
	dryRun    bool
}

func (m filesMerge) only() bool { return m.link != "" || m.direction != "" }

// ConsolidateFiles merges links of a chain without a manifest, lowest first, so that each is copied once.
func (a *app) consolidateFiles(ctx context.Context, f *found, arg string, m filesMerge) error {
	refs := f.refs()
	lower, one := 0, m.link != ""
	if one {
		lower = slices.IndexFunc(refs, func(r chain.Ref) bool { return r.Name == m.link }) - 1
		if lower < 0 {
			return fault.New(fault.Invalid, "Name a link of the chain that has a parent; `vmdkctl chain` shows them.", "%s is no link above another one of %s", m.link, arg)
		}
	}
	before, err := allocatedBy(f, refs)
	if err != nil {
		return err
	}
	done := consolidated{Disk: arg, DryRun: m.dryRun}
	for lower < len(refs)-1 {
		p := cli.NewProgress(a.err, "consolidate "+refs[lower+1].Name, 0)
		merged, err := chain.MergeFiles(ctx, f.Dir, refs, chain.MergeFilesParams{Lower: lower, Direction: chain.Direction(m.direction),
			Pace: cli.Pace(m.rate), Progress: p.Set, DryRun: m.dryRun})
		p.Done()
		switch {
		case errors.Is(err, fault.Precondition) && !one: // another disk needs one of them
			done.Waits = err.Error()
			lower++
			continue
		case err != nil:
			return interrupted(ctx, err)
		}
		if m.dryRun {
			done.Plan = append(done.Plan, mergePlan{Lower: refs[lower].Name, Upper: refs[lower+1].Name, Direction: merged.Direction, Copies: merged.Copies})
			lower++
		} else {
			done.Merged++
			refs = slices.DeleteFunc(refs, func(r chain.Ref) bool { return r.Name == merged.Gone[0] })
		}
		if one {
			break
		}
	}
	done.Links = len(refs)
	if !m.dryRun {
		after, err := allocatedBy(f, refs)
		if err != nil {
			return err
		}
		done.Freed, done.Head = max(before-after, 0), refs[len(refs)-1].Name
	}
	return a.format.Write(a.out, done, func(w io.Writer) error { return writeConsolidated(w, done) })
}

// AllocatedBy is the space that the links of a chain take.
func allocatedBy(f *found, refs []chain.Ref) (total int64, err error) {
	c, err := chain.Open(f.Dir, refs, chain.Options{ReadOnly: true, Devices: f.Devices})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	for i := range refs {
		n, err := c.Allocated(i)
		if err != nil {
			return 0, err
		}
		total += n
	}
	return total, nil
}
