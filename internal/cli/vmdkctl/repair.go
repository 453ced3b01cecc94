package vmdkctl

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
)

// Repaired is what repair answers.
type repaired struct {
	Disk    string `json:"disk"`
	Verdict string `json:"verdict"` // of the link that was repaired: clean, warnings, damaged
	*vmdk.RepairResult
}

type repairOptions struct {
	fix    []string
	undo   bool
	params vmdk.RepairParams
}

func (a *app) repairCommand() *cobra.Command {
	var o repairOptions
	codes := make([]string, 0, len(vmdk.Repairable))
	for _, c := range vmdk.Repairable {
		codes = append(codes, string(c))
	}
	c := &cobra.Command{
		Use:   "repair DISK",
		Short: "Mend what check found",
		Long: `Mend the defects of one link of a disk: the head of its chain, or the link whose path is given. Only what --fix names is
mended, by the codes that check -o json gives, or all. Without --fix nothing is changed: the answer is what --fix all would do.

The repair is planned and checked before anything is written. Where no copy of the metadata says where data are, they are lost
already; that the disk is mended all the same needs --accept-loss, and the answer lists the ranges. The old content of all that is
overwritten goes into an undo file beside the disk; --undo brings it back, after a crash too, unless the disk was written since. An
undo file in a volume's directory lasts until the volume is used next. If a guest may see other bytes after the repair, the link
gets a new content ID, and its children, if it has any, do not fit any more (see check).

Exit codes, as those of check: 0 the link is clean afterwards, 3 damage is left, 4 warnings are left, 5 the disk is in use,
1 the repair could not be done.`,
		Example: "  vmdkctl repair disk.vmdk\n  vmdkctl repair disk.vmdk --fix table-copies-differ,unclean-shutdown\n" +
			"  vmdkctl repair disk.vmdk --fix all --accept-loss\n  vmdkctl repair disk.vmdk --undo",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeDisk,
		RunE: func(c *cobra.Command, args []string) error {
			if err := o.check(codes); err != nil {
				return err
			}
			return a.repair(c.Context(), args[0], &o)
		},
	}
	f := c.Flags()
	f.StringSliceVar(&o.fix, "fix", nil, "codes of the problems to mend, or all")
	f.BoolVar(&o.params.Loss, "accept-loss", false, "mend also where data cannot be found any more")
	f.StringVar(&o.params.Prefer, "prefer", "", "which copy of a table is right where each could be: primary or redundant")
	f.BoolVar(&o.params.DryRun, "dry-run", false, "say what would be done, change nothing")
	f.StringVar(&o.params.Undo, "undo-file", "", "name of the undo file in the disk's directory (default the link's name and .undo)")
	f.BoolVar(&o.undo, "undo", false, "bring back what the last repair overwrote")
	must(c.RegisterFlagCompletionFunc("fix", fixed(append([]string{"all"}, codes...)...)))
	must(c.RegisterFlagCompletionFunc("prefer", fixed(vmdk.PreferPrimary, vmdk.PreferRedundant)))
	return c
}

func (o *repairOptions) check(codes []string) error {
	usage := func(remedy, format string, args ...any) error {
		return cli.Usage{Err: fault.New(fault.Invalid, remedy, format, args...)}
	}
	p := &o.params
	if p.Undo != "" && filepath.Base(p.Undo) != p.Undo {
		return usage("Give a name without a directory.", "the undo file lies beside the disk, %q does not", p.Undo)
	}
	if o.undo && (len(o.fix) > 0 || p.Loss || p.DryRun || p.Prefer != "") {
		return usage("Use it with --undo-file only.", "--undo does not go together with the other options")
	}
	if p.Prefer != "" && p.Prefer != vmdk.PreferPrimary && p.Prefer != vmdk.PreferRedundant {
		return usage("Use primary or redundant.", "--prefer %q is neither copy", p.Prefer)
	}
	if len(o.fix) == 0 {
		p.DryRun = p.DryRun || !o.undo
		o.fix = []string{"all"}
	}
	if slices.Contains(o.fix, "all") {
		p.Fix = vmdk.Repairable
		return nil
	}
	for _, c := range o.fix {
		if !slices.Contains(codes, c) {
			return usage("Use all, or some of "+strings.Join(codes, ", ")+".", "%q cannot be repaired", c)
		}
		p.Fix = append(p.Fix, vmdk.Code(c))
	}
	return nil
}

func (a *app) repair(ctx context.Context, arg string, o *repairOptions) error {
	f, err := a.findToRepair(arg)
	if err != nil {
		return err
	}
	defer f.Close()
	if o.undo {
		return a.undoRepair(f, o.params.Undo)
	}
	if f.merging() && !o.params.DryRun {
		return fault.New(fault.InProgress, "Wait for it, or attach the disk once.", "links of %s are being merged, or a merge was interrupted", f.Head())
	}
	if f.live() && !o.params.DryRun {
		return fault.New(fault.InUse, "Detach it first.", "%s is in use", f.Head())
	}
	r, err := vmdk.Repair(ctx, f.Dir, f.Head(), o.params)
	if err != nil {
		return err
	}
	res := &repaired{Disk: f.Head(), Verdict: verdict(&r.After), RepairResult: r}
	if err := a.format.Write(a.out, res, func(w io.Writer) error { return writeRepair(w, res) }); err != nil {
		return err
	}
	return map[string]error{verdictWarning: cli.Status(cli.ExitWarned), verdictDamaged: cli.Status(cli.ExitDamaged)}[res.Verdict]
}

// FindToRepair finds a disk that may be too damaged to be followed to its base. A volume's snapshots are not offered: other
// disks may have their links.
func (a *app) findToRepair(arg string) (*found, error) {
	if a.datastore != "" {
		return a.find(arg)
	}
	f, _, err := a.findBroken(arg)
	return f, err
}

func (a *app) undoRepair(f *found, name string) error {
	if name == "" {
		name = vmdk.UndoName(f.Head())
	}
	if err := vmdk.UndoRepair(f.Dir, name); err != nil {
		return err
	}
	done := struct {
		Disk   string `json:"disk"`
		Undone string `json:"undone"`
	}{f.Head(), name}
	return a.format.Write(a.out, done, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%s is what it was before the repair\n", cli.Printable(f.Head()))
		return err
	})
}

func writeRepair(w io.Writer, r *repaired) error {
	would := ""
	if r.DryRun {
		would = "would do: "
	}
	for _, s := range r.Done {
		fmt.Fprintf(w, "%s%s: %s: %s\n", would, cli.Printable(s.File), s.Code, cli.Printable(times(s.What, s.Count)))
	}
	for _, p := range r.Lost {
		fmt.Fprintf(w, "lost     %s at %s of the disk: %s\n", cli.FormatSize(p.Len), exact(p.Off), cli.Printable(p.Message))
	}
	if len(r.Done) == 0 {
		fmt.Fprintln(w, "nothing that was asked for can be mended")
	}
	for _, p := range r.After.Problems {
		fmt.Fprintf(w, "left     %s: %s: %s (%s)\n", p.Severity, cli.Printable(p.File), cli.Printable(p.Message), p.Code)
	}
	if r.After.Omitted > 0 {
		fmt.Fprintf(w, "%d more problems are not listed\n", r.After.Omitted)
	}
	text := map[string]string{verdictClean: "clean", verdictWarning: "no damage, but warnings", verdictDamaged: "DAMAGED"}[r.Verdict]
	switch {
	case r.DryRun:
		text = "nothing was changed; it would be " + text
	case r.Undo != "":
		text += "; `vmdkctl repair --undo` brings back what was, from " + r.Undo
	}
	_, err := fmt.Fprintf(w, "%s: %s\n", cli.Printable(r.Disk), cli.Printable(text))
	return err
}

func times(what string, n int) string {
	if n == 1 {
		return what
	}
	return fmt.Sprintf("%s (%d times)", what, n)
}
