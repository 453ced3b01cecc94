package vmdkctl

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
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
		ValidArgsFunction: diskArgument,
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
	all := vmdk.Report{}
	for _, name := range f.Names {
		one, err := vmdk.Check(ctx, f.Dir, name)
		if err != nil {
			return nil, err
		}
		for _, p := range one.Problems {
			all.Add(p)
		}
		all.Omitted += one.Omitted
		r.Allocated += one.Allocated
		r.Leaked += one.Leaked
	}
	if broken != nil && all.Sound() { // else it is in the report already
		all.Add(problemOf(broken, f.Names[0]))
	}
	infos := make([]*linkInfo, len(f.Names))
	for i := range f.Names {
		// A link that cannot be opened is in the report, with its reasons.
		if l, err := describe(f, i); err == nil {
			infos[i] = l
			r.Live = r.Live || l.Live
		} else if all.Sound() {
			all.Add(problemOf(err, f.Names[i]))
		}
	}
	if v := f.Volume; v != nil && !v.Manifest.Released {
		r.Live = true
	}
	checkBonds(&all, f, infos)
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
	var loop *loopError
	switch {
	case errors.As(err, &loop):
		p.Code = vmdk.ChainLoop
	case errors.Is(err, fault.NotFound):
		p.Code = vmdk.ParentMissing
	}
	f := fault.From(err)
	p.Message, p.Remedy = cli.Message(f), f.Remedy
	return p
}

// VMware's products support this many links (base and 31 snapshots).
const vmwareDepth = 32

// CheckBonds compares neighbours: content IDs, capacities; and the volume's manifest with what the files say (I3).
func checkBonds(r *vmdk.Report, f *found, infos []*linkInfo) {
	add := func(code vmdk.Code, sev vmdk.Severity, file, remedy, format string, args ...any) {
		r.Add(vmdk.Problem{Code: code, Severity: sev, File: file, Message: fmt.Sprintf(format, args...), Remedy: remedy})
	}
	if n := len(f.Names); n > vmwareDepth {
		add(vmdk.ChainDeep, vmdk.Warning, f.Head(), "Consolidate it, or convert it", "the chain has %d links, VMware supports %d", n, vmwareDepth)
	}
	for i, l := range infos {
		if l == nil {
			continue
		}
		if f.Links != nil && f.Volume.Manifest.Growing == 0 {
			checkManifest(add, f, i, l)
		}
		if i == 0 || infos[i-1] == nil {
			continue
		}
		p := infos[i-1]
		if l.ParentCID != p.CID {
			add(vmdk.ParentModified, vmdk.Error, f.Names[i], "Restore the parent from a backup",
				"its parent %s was modified after it was made: content ID %s, expected %s", f.Names[i-1], p.CID, l.ParentCID)
		}
		if hint := baseName(l.Parent); hint != f.Names[i-1] {
			add(vmdk.ParentHintDiffers, vmdk.Warning, f.Names[i], "", "it names the parent %q, the manifest says %s", l.Parent, f.Names[i-1])
		}
		switch {
		case l.Capacity == p.Capacity:
		case l.Capacity > p.Capacity && f.Links != nil:
			add(vmdk.LinkCapacities, vmdk.Note, f.Names[i], "Convert the disk to open it with VMware's products",
				"the disk grew here from %s to %s, which VMware's products refuse", cli.FormatSize(p.Capacity), cli.FormatSize(l.Capacity))
		default:
			add(vmdk.LinkCapacities, vmdk.Error, f.Names[i], "", "its capacity is %d bytes, its parent's %d", l.Capacity, p.Capacity)
		}
	}
}

// CheckManifest compares a link with its entry. Content IDs of a live head are behind in the manifest.
func checkManifest(add func(vmdk.Code, vmdk.Severity, string, string, string, ...any), f *found, i int, l *linkInfo) {
	m := f.Links[i]
	const code = vmdk.Code("manifest-differs")
	if m.Size != l.Capacity {
		add(code, vmdk.Error, f.Names[i], "Restore the descriptor", "its capacity is %d bytes, the manifest says %d", l.Capacity, m.Size)
	}
	head := i == len(f.Volume.Manifest.Links)-1
	if m.CID != l.CID && (!head || f.Volume.Manifest.Released) {
		add(code, vmdk.Error, f.Names[i], "It was written outside of vmdk-csi; check its content", "its content ID is %s, the manifest says %s", l.CID, m.CID)
	}
	if m.ParentCID != l.ParentCID {
		add(code, vmdk.Error, f.Names[i], "Restore the descriptor", "its parent content ID is %s, the manifest says %s", l.ParentCID, m.ParentCID)
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
