package vmdkctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// Verdicts of a check.
const (
	verdictClean   = "clean"
	verdictWarning = "warnings"
	verdictDamaged = "damaged"
)

// CheckResult is what check answers.
type checkResult struct {
	Disk      string         `json:"disk"`
	Verdict   string         `json:"verdict"` // clean, warnings, damaged
	Live      bool           `json:"live"`
	Links     int            `json:"links"`
	Allocated int64          `json:"allocated"` // bytes of grains and flat data that the links hold
	Leaked    int64          `json:"leaked"`    // bytes of grains that no table names
	Problems  []vmdk.Problem `json:"problems"`
	Omitted   int            `json:"omitted,omitempty"`
}

func (a *app) checkCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check DISK",
		Short: "Check a disk's structure, chain and content IDs",
		Long: `Check every link of a disk: descriptor, headers, grain directories, every grain table and its copy; and the chain: content
IDs, capacities, depth. Changes nothing and takes no lock. A live disk can show states in between: check says that it is live.

Exit codes: 0 clean, 3 damaged, 4 warnings only (a live disk, one that was not closed cleanly, something that some
program may object to), 1 the check could not be done. Notes do not count.`,
		Example:           "  vmdkctl check disk.vmdk\n  vmdkctl check --datastore /var/lib/vmdk-csi/default pvc-4711 -o json",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completePoints(1),
		RunE: func(c *cobra.Command, args []string) error {
			f, broken, err := a.findBroken(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			r, err := check(c.Context(), f, broken)
			if err != nil {
				return err
			}
			if err := a.format.Write(a.out, r, func(w io.Writer) error { return writeCheck(w, r) }); err != nil {
				return err
			}
			return map[string]error{verdictWarning: cli.Status(cli.ExitWarned), verdictDamaged: cli.Status(cli.ExitDamaged)}[r.Verdict]
		},
	}
}

// Check examines the links of f, and then what binds them. Broken is why the chain could not be followed to its base.
func check(ctx context.Context, f *found, broken error) (*checkResult, error) {
	r := &checkResult{Disk: f.Head(), Links: len(f.Names)}
	all, err := chain.CheckOn(ctx, f.Dir, f.refs(), f.Devices)
	if err != nil {
		return nil, err
	}
	r.Allocated, r.Leaked = all.Allocated, all.Leaked
	if broken != nil {
		// Why the chain ends too early is said once, in the words of the one who followed it.
		all.Problems = slices.DeleteFunc(all.Problems, func(p vmdk.Problem) bool { return p.Code == vmdk.ParentMissing })
		if worst, _ := all.Worst(); worst < vmdk.Fatal { // else that is why
			all.Add(problemOf(broken, f.Names[0]))
		}
	}
	for i := range f.Names {
		l, err := describe(f, i)
		if err != nil { // in the report already, but for what only the manifest knows
			if all.Sound() {
				all.Add(problemOf(err, f.Names[i]))
			}
			continue
		}
		r.Live = r.Live || l.Live
		if f.Links != nil && f.Volume.Manifest.Growing == 0 && !f.merging() {
			checkManifest(&all, f, i, l)
		}
	}
	if f.merging() {
		unfinished(&all, f)
	}
	r.Live = r.Live || f.live()
	if r.Live {
		all.Problems = append([]vmdk.Problem{{Code: "live", Severity: vmdk.Warning, File: f.Head(),
			Message: "the disk is live: what is not flushed yet can look like a defect", Remedy: "Detach it and check again"}}, all.Problems...)
	}
	r.Problems, r.Omitted = all.Problems, all.Omitted
	if r.Problems == nil {
		r.Problems = []vmdk.Problem{}
	}
	r.Verdict = verdict(&all)
	return r, nil
}

// Merging says that two links are becoming one, or that a crash interrupted that.
func (f *found) merging() bool {
	return f.Volume != nil && (f.Volume.Manifest.Merge != nil || f.Volume.Manifest.Behind != "")
}

// MergeUnfinished is a volume whose consolidation runs, or was interrupted.
const mergeUnfinished vmdk.Code = "merge-unfinished"

// Unfinished takes from the report what a merge explains: until its end the descriptors may not say what the links are.
func unfinished(r *vmdk.Report, f *found) {
	if f.Volume.Manifest.Behind != "" {
		r.Problems = slices.DeleteFunc(r.Problems, func(p vmdk.Problem) bool {
			return p.Code == vmdk.ParentModified || p.Code == vmdk.ParentHintDiffers || p.Code == vmdk.ParentMissing
		})
	}
	r.Add(vmdk.Problem{Code: mergeUnfinished, Severity: vmdk.Warning, File: f.Head(),
		Message: "links are being merged, or a merge was interrupted", Remedy: "Wait for it; whoever attaches or consolidates the disk next finishes it"})
}

func verdict(r *vmdk.Report) string {
	switch worst, _ := r.Worst(); {
	case !r.Sound():
		return verdictDamaged
	case worst >= vmdk.Warning:
		return verdictWarning
	}
	return verdictClean
}

func problemOf(err error, file string) vmdk.Problem {
	p := vmdk.Problem{Code: vmdk.NotOpenable, Severity: vmdk.Fatal, File: file}
	if errors.Is(err, fault.NotFound) {
		p.Code = vmdk.ParentMissing
	}
	f := fault.From(err)
	p.Message, p.Remedy = cli.Message(f), f.Remedy
	return p
}

// ManifestDiffers is a volume whose files are not what its manifest says (I3).
const manifestDiffers vmdk.Code = "manifest-differs"

// CheckManifest compares a link with its entry. The content ID of a live head is behind in the manifest.
func checkManifest(r *vmdk.Report, f *found, i int, l *linkInfo) {
	m := f.Links[i]
	add := func(remedy, format string, args ...any) {
		r.Add(vmdk.Problem{Code: manifestDiffers, Severity: vmdk.Error, File: f.Names[i], Message: fmt.Sprintf(format, args...), Remedy: remedy})
	}
	if m.Size != l.Capacity {
		add("Restore the descriptor", "its capacity is %d bytes, the manifest says %d", l.Capacity, m.Size)
	}
	head := i == len(f.Volume.Manifest.Links)-1
	if m.CID != l.CID && (!head || f.Volume.Manifest.Released) {
		add("It was written outside of vmdk-csi; check its content", "its content ID is %s, the manifest says %s", l.CID, m.CID)
	}
	if m.ParentCID != l.ParentCID {
		add("Restore the descriptor", "its parent content ID is %s, the manifest says %s", l.ParentCID, m.ParentCID)
	}
}

func writeCheck(w io.Writer, r *checkResult) error {
	for _, p := range r.Problems {
		at := ""
		if p.Len > 0 {
			at = fmt.Sprintf(" (%s at %s of the disk)", cli.FormatSize(p.Len), exact(p.Off))
		}
		text := cli.Message(&fault.Fault{Message: p.Message, Remedy: p.Remedy})
		fmt.Fprintf(w, "%-7s  %s: %s%s\n", p.Severity, cli.Printable(p.File), cli.Printable(text), at)
		if p.Remedy != "" {
			fmt.Fprintf(w, "         %s\n", cli.Printable(cli.Sentence(p.Remedy)))
		}
	}
	if r.Omitted > 0 {
		fmt.Fprintf(w, "%d more problems are not listed\n", r.Omitted)
	}
	if len(r.Problems) > 0 {
		fmt.Fprintln(w)
	}
	text := map[string]string{
		verdictClean:   "clean",
		verdictWarning: "no damage, but see the warnings",
		verdictDamaged: "DAMAGED",
	}[r.Verdict]
	_, err := fmt.Fprintf(w, "%s: %s. %s, %s allocated, %s leaked\n", cli.Printable(r.Disk), text, count(r.Links, "link"),
		cli.FormatSize(r.Allocated), cli.FormatSize(r.Leaked))
	return err
}
