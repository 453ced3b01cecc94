package vmdkctl

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
	"github.com/vmdk-csi/vmdk-csi/pkg/volume"
)

// Consolidated is consolidate's answer.
type consolidated struct {
	Disk   string      `json:"disk"`
	Head   string      `json:"head,omitempty"` // descriptor by which a disk that is plain files is opened now
	Merged int         `json:"merged"`         // links that are gone
	Freed  int64       `json:"freed"`          // bytes
	Links  int         `json:"links"`          // that are left
	Waits  string      `json:"waits,omitempty"`
	DryRun bool        `json:"dryRun,omitempty"`
	Plan   []mergePlan `json:"plan,omitempty"` // of a dry run
}

// MergePlan is one merge that could be done.
type mergePlan struct {
	Lower     string          `json:"lower"`
	Upper     string          `json:"upper"`
	Direction chain.Direction `json:"direction,omitempty"` // "" if it waits
	Copies    int64           `json:"copies"`              // bytes
	Frees     int64           `json:"frees"`               // bytes, about
	Waits     string          `json:"waits,omitempty"`
}

func (a *app) consolidateCommand() *cobra.Command {
	var rate string
	var m filesMerge
	c := &cobra.Command{
		Use:   "consolidate DISK",
		Short: "Merge the links of a disk that no snapshot needs",
		Long: `Merge the links of a datastore's disk that no snapshot needs any more, one by one, each in the direction that copies less:
down, the upper link goes into the lower one, or up, the lower one goes into the upper one. Links that other disks share
are never written. A disk that is attached by vmdkctl is consolidated while it is used.

Of a disk that is plain files, and not in use, all links are merged that no other descriptor in the directory names as its
parent; with --link only that link and the one below it. A link that is merged down is gone, and when it was DISK itself the
disk goes on under its parent's name, which the answer tells; --direction up keeps the name.

It may be interrupted at any time: what was copied stays, and the next run goes on.`,
		Example: "  vmdkctl consolidate --datastore /srv/disks database --dry-run\n  vmdkctl consolidate --datastore /srv/disks database --rate 100M\n" +
			"  vmdkctl consolidate disk-000003.vmdk --link disk-000002.vmdk --direction down",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeDisk,
		RunE: func(c *cobra.Command, args []string) error {
			if rate != "" {
				var err error
				if m.rate, err = cli.ParseSize(rate); err != nil {
					return cli.Usage{Err: err}
				}
			}
			return a.consolidate(c.Context(), args[0], m)
		},
	}
	c.Flags().StringVar(&rate, "rate", "", "copy so much per second at most: 100M, ... (default: no limit)")
	c.Flags().BoolVar(&m.dryRun, "dry-run", false, "say what would be merged, in which direction, and what it frees; merge nothing")
	c.Flags().StringVar(&m.link, "link", "", "plain files: merge this link (its descriptor's name) and the one below it, no others")
	c.Flags().StringVar(&m.direction, "direction", "", "plain files: up or down (default: whichever copies less)")
	must(c.RegisterFlagCompletionFunc("direction", fixed("up", "down")))
	must(c.RegisterFlagCompletionFunc("rate", cobra.NoFileCompletions))
	return c
}

func (a *app) consolidate(ctx context.Context, arg string, m filesMerge) error {
	f, err := a.find(arg)
	if err != nil {
		return err
	}
	defer f.Close()
	if f.Volume == nil {
		return a.consolidateFiles(ctx, f, arg, m)
	}
	if m.only() {
		return fault.New(fault.Invalid, "Leave --link and --direction out.", "%s is a volume of a datastore, whose manifest says what can be merged", arg)
	}
	rate, dryRun := m.rate, m.dryRun
	v, err := a.openDisk(arg, "")
	if err != nil {
		return err
	}
	defer v.Close()
	att, attached, err := v.keeper(ctx)
	if err != nil {
		return err
	}
	done := consolidated{Disk: v.name, DryRun: dryRun}
	if dryRun {
		if done.Plan, err = v.plan(); err != nil {
			return err
		}
	}
	for !dryRun {
		p := cli.NewProgress(a.err, "consolidate "+v.name, 0)
		var res volume.ConsolidateResult
		if attached {
			err = theRunDir().call(ctx, att.ID, keepCall{Op: opConsolidate, Rate: rate}, &res, p.Set)
		} else {
			res, err = v.volumes.Consolidate(ctx, v.id, consolidateOptions(rate, p.Set), nil)
		}
		p.Done()
		if err != nil {
			return interrupted(ctx, err)
		}
		if !res.Merged {
			done.Waits = res.Waits
			break
		}
		done.Merged++
		done.Freed += res.Freed
	}
	d, err := v.describeDisk(v.id)
	if err != nil {
		return err
	}
	done.Links = d.Links
	return a.format.Write(a.out, done, func(w io.Writer) error { return writeConsolidated(w, done) })
}

func consolidateOptions(rate int64, progress func(done, total int64)) volume.ConsolidateOptions {
	return volume.ConsolidateOptions{Pace: cli.Pace(rate), Progress: progress}
}

// Interrupted says what an interruption left of work that goes on where it stopped.
func interrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fault.New(fault.Timeout, "Run it again: it goes on where it stopped.", "interrupted")
	}
	return elsewhere(err)
}

// Plan is what consolidate would do, lowest links first. Each merge is planned as if it were the only one.
func (v *aVolume) plan() (plan []mergePlan, err error) {
	f, err := findOnDatastore(v.root, v.id)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	c, err := chain.Open(f.Dir, f.refs(), chain.Options{ReadOnly: true})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	for lower := range len(f.Names) - 1 {
		if f.Volume.Manifest.SnapshotAt(f.Names[lower]) {
			continue
		}
		p := mergePlan{Lower: f.Names[lower], Upper: f.Names[lower+1]}
		if err := p.cost(f, c, lower); err != nil {
			return nil, err
		}
		plan = append(plan, p)
	}
	return plan, nil
}

// LongChain is from how many links on a shared link is copied, which frees nothing (package volume).
const longChain = 8

func (p *mergePlan) cost(f *found, c *chain.Chain, lower int) error {
	down, up, err := c.MergeCost(lower)
	if err != nil {
		return err
	}
	lowerShared, err := sharedExtents(f, lower)
	if err != nil {
		return err
	}
	upperShared, err := sharedExtents(f, lower+1)
	if err != nil {
		return err
	}
	allocated, err := c.Allocated(lower)
	if err != nil {
		return err
	}
	// What both have, the merged link has once.
	p.Frees = max(0, allocated-up)
	switch {
	case !lowerShared && (upperShared || down <= up):
		p.Direction, p.Copies = chain.Down, down
		if upperShared {
			p.Frees = 0
		}
	case !lowerShared:
		p.Direction, p.Copies = chain.Up, up
	case !upperShared && len(f.Names) > longChain:
		p.Direction, p.Copies, p.Frees = chain.Up, up, 0
	default:
		p.Frees, p.Waits = 0, "other disks share it"
	}
	return nil
}

// SharedExtents says that another directory names an extent of the link.
func sharedExtents(f *found, link int) (bool, error) {
	for _, e := range f.Links[link].Extents {
		st, err := f.Dir.Stat(e)
		if err != nil {
			return false, err
		}
		if st.Links > 1 {
			return true, nil
		}
	}
	return false, nil
}

func writeConsolidated(w io.Writer, c consolidated) error {
	if !c.DryRun {
		fmt.Fprintf(w, "%s: %s merged, %s freed; %s left\n", cli.Printable(c.Disk), count(c.Merged, "link"), cli.FormatSize(c.Freed), count(c.Links, "link"))
		if c.Head != "" && c.Head != baseName(c.Disk) {
			fmt.Fprintf(w, "The disk is %s now\n", cli.Printable(c.Head))
		}
		if c.Waits != "" {
			fmt.Fprintf(w, "More waits: %s\n", cli.Printable(c.Waits))
		}
		return nil
	}
	if len(c.Plan) == 0 {
		_, err := fmt.Fprintf(w, "%s: every link is needed, nothing would be merged\n", cli.Printable(c.Disk))
		return err
	}
	t := cli.NewTable("LOWER", "", "UPPER", ">COPIES", ">FREES ABOUT", "REMAINS")
	for _, p := range c.Plan {
		switch p.Direction {
		case chain.Down:
			t.Row(p.Lower, "<-", p.Upper, cli.FormatSize(p.Copies), cli.FormatSize(p.Frees), p.Lower)
		case chain.Up:
			t.Row(p.Lower, "->", p.Upper, cli.FormatSize(p.Copies), cli.FormatSize(p.Frees), p.Upper)
		default:
			t.Row(p.Lower, "", p.Upper, "", "", "both: "+p.Waits)
		}
	}
	return t.Write(w)
}
