package vmdk

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// RepairParams say what Repair may do.
type RepairParams struct {
	// Fix are the problems to repair; those with other codes are left alone, unless what repairs one repairs the other too.
	Fix []Code
	// Loss allows repairs after which some guest data is gone for good or may be wrong, because no copy of the metadata
	// says where it is. RepairResult.Lost lists where.
	Loss bool
	// Prefer decides where table and copy name different places and both could be right: "primary" is what every program
	// read until now, "redundant" the other. "": such entries are left alone.
	Prefer string
	// DryRun plans, and checks what would come out, but changes nothing.
	DryRun bool
	// Undo is the name of the file that gets what the repair overwrites; default: UndoName.
	Undo string
}

// Copies that RepairParams.Prefer names.
const (
	PreferPrimary   = "primary"
	PreferRedundant = "redundant"
)

// RepairResult is what Repair did, or would do.
type RepairResult struct {
	Done []RepairStep `json:"done"`
	// Lost are guest ranges whose content is gone or may be wrong.
	Lost []Problem `json:"lost,omitempty"`
	// After is what Check says of the result.
	After Report `json:"after"`
	// Undo is the name of the undo file; "" if nothing was changed.
	Undo string `json:"undo,omitempty"`
	// Content tells that the guest may see other bytes than before: the link has a new content ID.
	Content bool `json:"contentChanged,omitempty"`
	DryRun  bool `json:"dryRun,omitempty"`
}

// RepairStep is a kind of repair and how often it was made.
type RepairStep struct {
	Code  Code   `json:"code"`
	File  string `json:"file"`
	Count int    `json:"count"`
	What  string `json:"what"`
}

// Repairable are the codes that Repair knows a remedy for, if the disk lets it.
var Repairable = []Code{TextTransfer, ExtentDamaged, BadGrainSize, BadTableSize, BadCapacity, BadOverhead, DirectoryBeyondEnd, TableBeyondEnd,
	MetadataOverlaps, TablesMissing, TableCopiesDiffer, GrainShared, GrainInMetadata, GrainBeyondEnd, GrainBeyondCapacity, GrainUnaligned,
	GrainCutOff, ZeroEntryNoFlag, CapacityDiffers, ContentIDsDiffer, ExtentShort, FreeSectorLow,
	StreamGrainDamaged, StreamTablesDiffer, StreamFooterDamaged, UncleanShutdown}

// UndoName is where Repair keeps what it overwrites.
func UndoName(name string) string { return name + ".undo" }

// Repair mends what p.Fix asks for in one link, and nothing else. Nobody may have the link open; Repair holds the write locks
// of its extents meanwhile. What cannot be mended stays in RepairResult.After.
//
// Protocol: 1. plan all changes on an overlay and check what they would leave; a plan that makes anything worse is not carried
// out; 2. write the old content of everything that will be overwritten to the undo file: temporary name, sync, link, sync of
// the directory; [a crash leaves the disk as it was, and an undo file that would change nothing] 3. carry out the changes in
// the order of the plan, with its syncs, one behind the last of each file: a new content ID, grains and tables behind the old end of the file, redundant table,
// table, directory, header; [a crash anywhere leaves each of them whole or not at all, and pointers only to what is durable:
// Undo brings back what was, repeating the repair finishes it] 4. check the result.
func Repair(ctx context.Context, d fsx.Dir, name string, p RepairParams) (*RepairResult, error) {
	r, err := repair(ctx, d, name, p)
	return r, fault.Wrap(err, "repair %s", name)
}

func repair(ctx context.Context, d fsx.Dir, name string, p RepairParams) (*RepairResult, error) {
	if p.Prefer != "" && p.Prefer != PreferPrimary && p.Prefer != PreferRedundant {
		return nil, fault.New(fault.Invalid, "", "%q is not %q or %q", p.Prefer, PreferPrimary, PreferRedundant)
	}
	for _, c := range p.Fix {
		if !slices.Contains(Repairable, c) {
			return nil, fault.New(fault.Unsupported, "see the remedy that check gives", "%s cannot be repaired in place", c)
		}
	}
	p.Undo = orDefault(p.Undo, UndoName(name))
	if !p.DryRun {
		locks, err := lockFiles(d, name)
		if err != nil {
			return nil, err
		}
		defer locks.close()
		if _, err := d.Stat(p.Undo); err == nil {
			return nil, fault.New(fault.Exists, "undo that repair, or remove its undo file", "%s of an earlier repair is there", p.Undo)
		}
	}
	before, err := Check(ctx, d, name)
	if err != nil {
		return nil, err
	}
	// Whether the guest will see other bytes, the first plan tells; then the second begins with a new content ID.
	r, o, err := planRepair(ctx, d, name, p, false)
	if err == nil && r.Content {
		err = o.Close()
		if err == nil {
			r, o, err = planRepair(ctx, d, name, p, true)
		}
	}
	if o != nil {
		defer o.Close()
	}
	if err != nil {
		return nil, err
	}
	if err := worse(&before, &r.After); err != nil {
		return nil, err
	}
	if p.DryRun || len(o.log) == 0 {
		r.DryRun = p.DryRun
		return r, nil
	}
	if err := carryOut(d, name, p.Undo, o); err != nil {
		return nil, err
	}
	r.Undo = p.Undo
	r.After, err = Check(ctx, d, name)
	return r, err
}

// planRepair notes all changes on an overlay.
func planRepair(ctx context.Context, d fsx.Dir, name string, p RepairParams, newID bool) (*RepairResult, *overlay, error) {
	o := newOverlay(d)
	r := &repairer{ctx: ctx, o: o, name: name, p: p, newID: newID, res: &RepairResult{Done: []RepairStep{}}}
	err := r.link()
	if err == nil {
		r.res.After, err = Check(ctx, o, name)
	}
	if err != nil {
		return nil, nil, errors.Join(err, o.Close())
	}
	return r.res, o, nil
}

// worse refuses a plan that would leave a defect of a kind that was not there.
func worse(before, after *Report) error {
	had := map[Code]bool{}
	fatal := false
	for _, p := range before.Problems {
		had[p.Code] = true
		fatal = fatal || p.Severity == Fatal
	}
	for _, p := range after.Problems {
		// What a fatal defect hid is seen only now.
		if p.Severity >= Error && !had[p.Code] && !fatal {
			return fault.New(fault.Precondition, "repair the disk from a backup, or convert what is readable",
				"nothing was changed: the repair would leave another defect: %s", p)
		}
	}
	return nil
}

// repairer plans the repair of one link.
type repairer struct {
	ctx   context.Context
	o     *overlay
	name  string
	p     RepairParams
	newID bool
	res   *RepairResult

	desc     *Descriptor
	embedded bool
}

func (r *repairer) asked(c Code) bool { return slices.Contains(r.p.Fix, c) }

func (r *repairer) did(c Code, file string, n int, format string, args ...any) {
	what := fmt.Sprintf(format, args...)
	for i := range r.res.Done {
		if s := &r.res.Done[i]; s.Code == c && s.File == file && s.What == what {
			s.Count += n
			return
		}
	}
	r.res.Done = append(r.res.Done, RepairStep{Code: c, File: file, Count: n, What: what})
}

func (r *repairer) lost(c Code, file string, off, n int64, format string, args ...any) {
	r.res.Lost = append(r.res.Lost, Problem{Code: c, Severity: Error, File: file, Off: off, Len: n, Message: fmt.Sprintf(format, args...)})
}

// link repairs headers first, because nothing else can be read without them, then the descriptor, then tables.
func (r *repairer) link() error {
	ok, err := r.readDescriptor()
	if err != nil || !ok {
		return err
	}
	lines := r.desc.Extents()
	for i := range lines {
		if r.embedded {
			lines[i].Name = r.name
		}
		if lines[i].Type == "SPARSE" && lines[i].Access != "NOACCESS" {
			if err := r.header(lines, i); err != nil {
				return err
			}
		}
	}
	if r.newID {
		if err := r.newContentID(); err != nil {
			return err
		}
	}
	var start int64
	changed := false
	for i := range lines {
		was := lines[i].Sectors
		if err := r.extent(&lines[i], start); err != nil {
			return err
		}
		changed = changed || lines[i].Sectors != was
		start += lines[i].Sectors * SectorSize
	}
	return r.descriptor(lines, changed)
}

// readDescriptor reads the text if it is there; false: Check says why not.
func (r *repairer) readDescriptor() (bool, error) {
	var err error
	r.desc, r.embedded, err = readDescriptor(r.o, r.name)
	switch fault.KindOf(err) {
	case "":
	case fault.Damaged, fault.Invalid, fault.Unsupported:
		return r.brokenEmbedded()
	default:
		return false, err
	}
	return !r.embedded || len(r.desc.Extents()) == 1, nil
}

// brokenEmbedded reads the descriptor of a file whose header is damaged where that does not matter for the descriptor.
func (r *repairer) brokenEmbedded() (ok bool, err error) {
	f, err := r.o.Open(r.name, fsx.ReadOnly)
	if err != nil {
		return false, err
	}
	text := embeddedText(f)
	if text == nil {
		return false, nil
	}
	r.embedded = true
	if r.desc, err = ParseDescriptor(text); err != nil || len(r.desc.Extents()) != 1 {
		return false, nil //nolint:nilerr // Check says so
	}
	return true, nil
}

// newContentID is the first change of a link whose content changes; a change tracking file would not know of it.
func (r *repairer) newContentID() error {
	next := r.desc.Clone()
	c := NewCID(next.CID())
	if err := next.setContent(c, newLongContentID(c)); err != nil {
		return err
	}
	next.dropChangeTracking()
	return r.storeDescriptor(next)
}

func (r *repairer) storeDescriptor(next *Descriptor) error {
	r.desc = next
	if r.embedded {
		return storeEmbedded(r.o, r.name, next.Text())
	}
	return r.o.replace(r.name, next.Text())
}

// descriptor is what is wrong with the text itself, last.
func (r *repairer) descriptor(lines []ExtentLine, changed bool) error {
	next := r.desc.Clone()
	long := next.LongContentID()
	if r.asked(ContentIDsDiffer) && !r.newID && idsDiffer(next) && len(long) >= 8 {
		if err := next.Set("ddb.longContentID", long[:len(long)-8]+next.CID().String()); err != nil {
			return err
		}
		r.did(ContentIDsDiffer, r.name, 1, "longContentID ends in the CID")
	}
	if changed {
		if r.embedded {
			lines[0].Name = r.desc.Extents()[0].Name // a stale name is nobody's harm
		}
		if err := errors.Join(next.SetExtents(lines), next.setGeometry()); err != nil {
			return err
		}
	}
	if string(next.Text()) == string(r.desc.Text()) {
		return nil
	}
	return r.storeDescriptor(next)
}

// extent repairs what an extent's tables say, or a flat one that is too short.
func (r *repairer) extent(x *ExtentLine, start int64) error {
	switch {
	case x.Access == "NOACCESS" || x.Type == "ZERO":
		return nil
	case x.Type == "SPARSE":
		return r.sparse(x, start)
	case x.Type == "VMFSSPARSE":
		return r.cowd(x, start)
	case (x.Type == "FLAT" || x.Type == "VMFS") && r.asked(ExtentShort):
		return r.extend(x, start)
	}
	return nil
}

// extend makes a flat extent as long as its line says; what it lacked reads as zeros.
func (r *repairer) extend(x *ExtentLine, start int64) error {
	f, err := r.o.Open(x.Name, fsx.ReadWrite)
	if err != nil {
		return r.skip(err)
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	need := (x.Offset + x.Sectors) * SectorSize
	if info.Size >= need || !r.p.Loss {
		return nil
	}
	at := max(0, info.Size-x.Offset*SectorSize)
	r.lost(ExtentShort, x.Name, start+at, x.Sectors*SectorSize-at, "reads as zeros: the file was cut off")
	r.did(ExtentShort, x.Name, 1, "the file is extended with zeros")
	r.res.Content = true
	return errors.Join(f.Truncate(need), f.Datasync())
}

// skip leaves alone what cannot be opened or read; Check says why.
func (r *repairer) skip(err error) error {
	switch fault.KindOf(err) {
	case "", fault.Damaged, fault.Invalid, fault.Unsupported, fault.NotFound:
		return nil
	}
	return err
}
