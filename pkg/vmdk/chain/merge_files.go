package chain

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
)

// MergeFilesParams of MergeFiles.
type MergeFilesParams struct {
	Lower     int       // refs[Lower] and refs[Lower+1] become one
	Direction Direction // "": the one that copies less of those that are possible
	Pace      func(ctx context.Context, n int64) error
	Progress  func(done, total int64)
	DryRun    bool
}

// MergedFiles is what MergeFiles did, or would do.
type MergedFiles struct {
	Direction Direction
	Copies    int64    // bytes to be copied, at most
	Stays     string   // the descriptor of what became of the two
	Gone      []string // files that were removed, the descriptor first
}

// MergeFiles makes one link of two neighbours of a closed chain that no manifest describes: its descriptors are all there is. Kinds:
// Precondition (another child needs one of them), InUse, Unsupported (a link that cannot be written), NoSpace.
//
//  1. Merge, in which whoever follows the descriptors from the head finds the disk's content at every moment. [A crash leaves the target
//     unclean; the next MergeFiles goes on.]
//  2. Remove the descriptor of the link that is gone, sync the directory. [A crash before leaves a second descriptor of the merged
//     link, after a merge down, or one of a disk that nobody needs, after a merge up.]
//  3. Remove its extents. [A crash before leaves files that nothing names.]
func MergeFiles(ctx context.Context, d fsx.Dir, refs []Ref, p MergeFilesParams) (done MergedFiles, err error) {
	if p.Lower < 0 || p.Lower > len(refs)-2 {
		return done, fault.New(fault.Invalid, "", "there is no link above link %d of %d", p.Lower, len(refs))
	}
	lower, upper := refs[p.Lower].Name, refs[p.Lower+1].Name
	if err := alone(d, refs, p.Lower); err != nil {
		return done, err
	}
	shared := alone(d, refs, p.Lower+1) // which a merge up leaves as it is
	if shared != nil && (p.Direction == Down || fault.KindOf(shared) != fault.Precondition) {
		return done, shared
	}
	refs = slices.Clone(refs)
	refs[p.Lower].Mend, refs[p.Lower+1].Mend = true, p.Lower+1 < len(refs)-1
	c, err := Open(d, refs, Options{Locks: true, Direct: true, ReadOnly: p.DryRun})
	if err != nil {
		return done, err
	}
	defer func() {
		if c != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	if done.Direction, done.Copies, err = c.choose(p.Lower, p.Direction, shared); err != nil {
		return done, err
	}
	stays, gone := c.links[p.Lower], c.links[p.Lower+1]
	if done.Direction == Up {
		stays, gone = gone, stays
	}
	done.Stays, done.Gone = stays.Name, filesOf(gone)
	if p.DryRun {
		return done, nil
	}
	err = c.Merge(ctx, MergeParams{Lower: p.Lower, Direction: done.Direction, Pace: p.Pace, Progress: p.Progress})
	err = errors.Join(err, c.Close())
	if c = nil; err != nil {
		return done, err
	}
	return done, fault.Wrap(removeFiles(d, done.Gone), "merge %s and %s: remove what is left over", lower, upper)
}

// alone tells that nothing in the directory but the chain itself names a link as its parent.
func alone(d fsx.Dir, refs []Ref, i int) error {
	children, err := vmdk.ChildrenOf(d, refs[i].Name)
	if err != nil {
		return err
	}
	for _, name := range children {
		if i+1 == len(refs) || name != refs[i+1].Name {
			return fault.New(fault.Precondition, "Delete it first, or rebase it.", "%s is the parent of %s as well", refs[i].Name, name)
		}
	}
	return nil
}

// choose is the direction of a merge of files and what it copies; not is why it cannot be down, if that is known.
func (c *Chain) choose(lower int, asked Direction, not error) (Direction, int64, error) {
	down, up, err := c.MergeCost(lower)
	if err != nil {
		return "", 0, err
	}
	if asked != "" && asked != Up && asked != Down {
		return "", 0, fault.New(fault.Invalid, "Name up or down.", "%q is no direction of a merge", asked)
	}
	switch below, above := c.links[lower], c.links[lower+1]; {
	case not != nil:
	case above.Embedded(): // its descriptor cannot become one of the merged link, and the two would not fit each other for a moment
		not = fault.New(fault.Unsupported, "Merge it up.", "%s holds its own descriptor, by which the disk must be found until the end", above.Name)
	default:
		not = below.Writable()
	}
	if asked == Up || asked == "" && (up < down || not != nil) {
		return Up, up, c.links[lower+1].Writable()
	}
	return Down, down, not
}

func filesOf(l *vmdk.Link) []string {
	files := []string{l.Name}
	for _, e := range l.Extents() {
		if e.Name != "" && !l.Embedded() && !strings.HasPrefix(e.Name, "/") {
			files = append(files, e.Name)
		}
	}
	return files
}

// removeFiles is steps 2 and 3.
func removeFiles(d fsx.Dir, files []string) error {
	if err := errors.Join(d.Remove(files[0]), d.Sync()); err != nil {
		return err
	}
	for _, name := range files[1:] {
		if err := d.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return d.Sync()
}
