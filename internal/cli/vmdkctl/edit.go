package vmdkctl

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// Edited is the answer of commands that change a disk that is plain files.
type edited struct {
	Disk     string   `json:"disk"`
	Done     string   `json:"done"`               // in words
	Capacity int64    `json:"capacity,omitempty"` // bytes
	Freed    int64    `json:"freed,omitempty"`    // bytes
	Files    []string `json:"files,omitempty"`    // names that it has now
	Told     []string `json:"told,omitempty"`     // descriptors of other links that were changed
	DryRun   bool     `json:"dryRun,omitempty"`
}

func (a *app) edited(e edited) error {
	return a.format.Write(a.out, e, func(w io.Writer) error {
		what := e.Done
		if e.DryRun {
			what = "would be " + what
		}
		_, err := fmt.Fprintf(w, "%s: %s\n", cli.Printable(e.Disk), what)
		return err
	})
}

// Edit is a command that changes one disk.
func (a *app) edit(use, short, long, example string, args int, run func(ctx context.Context, args []string) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Long: long, Example: example, Args: cobra.ExactArgs(args), ValidArgsFunction: a.completeDisk,
		RunE: func(c *cobra.Command, args []string) error { return run(c.Context(), args) }}
}

func dryRunFlag(c *cobra.Command, dryRun *bool) {
	c.Flags().BoolVar(dryRun, "dry-run", false, "say what would be done, do nothing")
}

// PlainDisk finds a disk that is plain files; volume says what to do with one of a datastore.
func (a *app) plainDisk(arg, volume string) (*found, error) {
	f, err := a.find(arg)
	if err == nil && f.Volume != nil {
		f.Close()
		return nil, fault.New(fault.Unsupported, volume, "%s is a volume of a datastore, whose files its manifest names", arg)
	}
	return f, err
}

func (a *app) growCommand() *cobra.Command {
	var dryRun bool
	c := a.edit("grow DISK SIZE", "Make a disk larger", `Make a disk larger that is not in use. SIZE is the new capacity, rounded up to whole MiB; partitions and file systems in it do
not grow by themselves. A flat disk takes its new space thin, or as --format says. A disk with a parent is refused: VMware opens no chain
whose links differ in size; give it one link first (vmdkctl flatten). A volume of a datastore may have snapshots.`,
		"  vmdkctl grow disk.vmdk 20G\n  vmdkctl grow --datastore /srv/disks database 20G", 2, nil)
	format := c.Flags().String("format", string(vmdk.Thin), "how a flat disk takes its space: "+list(diskFormats))
	dryRunFlag(c, &dryRun)
	must(c.RegisterFlagCompletionFunc("format", fixed(diskFormats...)))
	c.RunE = func(c *cobra.Command, args []string) error {
		size, err := cli.ParseSize(args[1])
		if err != nil {
			return cli.Usage{Err: err}
		}
		return a.grow(c.Context(), args[0], roundUp(size), vmdk.Format(*format), dryRun)
	}
	return c
}

func (a *app) grow(ctx context.Context, arg string, size int64, format vmdk.Format, dryRun bool) error {
	f, err := a.find(arg)
	if err != nil {
		return err
	}
	defer f.Close()
	done := edited{Disk: arg, Done: "grown to " + cli.FormatSize(size), Capacity: size, DryRun: dryRun}
	if f.Volume != nil {
		return a.growVolume(ctx, arg, done)
	}
	if len(f.Names) > 1 {
		return fault.New(fault.Precondition, "Give it one link first: `vmdkctl flatten "+arg+" NEW.vmdk`, or vmdkctl rebase --no-parent.",
			"%s has a parent, and VMware opens no chain whose links differ in size", arg)
	}
	c, err := chain.Open(f.Dir, f.refs(), chain.Options{Locks: true, Format: format, ReadOnly: dryRun})
	if err != nil {
		return err
	}
	if c.Size() >= size {
		err = fault.New(fault.OutOfRange, "Give a larger size; nothing makes a disk smaller.", "the disk has %s already", cli.FormatSize(c.Size()))
	} else if !dryRun {
		progress := cli.NewProgress(a.err, "grow "+arg, size)
		err = c.GrowWith(ctx, vmdk.GrowParams{Capacity: size, Format: format, Progress: progress.Set})
		progress.Done()
	}
	if cerr := c.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return a.edited(done)
}

func (a *app) growVolume(ctx context.Context, arg string, done edited) error {
	v, err := a.openDisk(arg, "")
	if err != nil {
		return err
	}
	defer v.Close()
	att, attached, err := v.keeper(ctx)
	if err == nil && attached {
		err = fault.New(fault.InUse, "Detach it first: `vmdkctl detach "+att.Device+"`.", "the disk %s is attached as %s", v.name, att.Device)
	}
	if err == nil && !done.DryRun {
		_, err = v.volumes.Expand(ctx, v.id, done.Capacity, nil)
	}
	if err != nil {
		return elsewhere(err)
	}
	return a.edited(done)
}

func (a *app) shrinkCommand() *cobra.Command {
	var dryRun bool
	c := a.edit("shrink DISK", "Give the space of zeros back", `Give the space that zeros take in a disk back to the file system: grains of zeros become zeros without space, zeros of a
thin flat disk become holes. The capacity stays. Zero the free space of the disk's file systems before (fstrim, or a file of zeros that is
deleted again). The disk must not be in use; only the link that DISK names changes, and what it reads stays the same.`,
		"  vmdkctl shrink disk.vmdk", 1, nil)
	dryRunFlag(c, &dryRun)
	c.RunE = func(c *cobra.Command, args []string) error {
		f, err := a.plainDisk(args[0], "Attach it and run fstrim on it: what a guest discards comes back at once.")
		if err != nil {
			return err
		}
		defer f.Close()
		progress := cli.NewProgress(a.err, "shrink "+args[0], 0)
		freed, err := chain.Shrink(c.Context(), f.Dir, f.refs(), chain.EditParams{Progress: progress.Set, DryRun: dryRun})
		progress.Done()
		if err != nil {
			return err
		}
		return a.edited(edited{Disk: args[0], Done: "shrunk, " + cli.FormatSize(freed) + " came back", Freed: freed, DryRun: dryRun})
	}
	return c
}

func (a *app) defragmentCommand() *cobra.Command {
	var dryRun bool
	c := a.edit("defragment DISK", "Write a disk's grains in order", `Write the sparse extents of a link anew: grains in the order of the disk, without space that no entry names, with the header
and the tables that every reader takes. Each extent is replaced as a whole, so that there is room for one more of it needed. The disk must
not be in use; what it reads, its content ID and its names stay.`,
		"  vmdkctl defragment disk.vmdk", 1, nil)
	dryRunFlag(c, &dryRun)
	c.RunE = func(c *cobra.Command, args []string) error {
		f, err := a.plainDisk(args[0], "vmdkctl flatten writes it anew.")
		if err != nil {
			return err
		}
		defer f.Close()
		progress := cli.NewProgress(a.err, "defragment "+args[0], 0)
		var r vmdk.Defragmented
		if dryRun {
			r, err = vmdk.PlanDefragment(c.Context(), f.Dir, f.Head())
		} else {
			r, err = vmdk.Defragment(c.Context(), f.Dir, f.Head(), progress.Set)
		}
		progress.Done()
		if err != nil {
			return err
		}
		return a.edited(edited{Disk: args[0], Freed: r.Before - r.After, DryRun: dryRun,
			Done: fmt.Sprintf("%s written anew: %s, %s before", count(r.Extents, "extent"), cli.FormatSize(r.After), cli.FormatSize(r.Before))})
	}
	return c
}

func (a *app) renameCommand() *cobra.Command {
	var dryRun bool
	c := a.edit("rename DISK NAME", "Give a disk another name", `Give a disk another name in its directory: the descriptor, its extents, and what its children there record of it. NAME ends
in .vmdk. An interrupted run leaves the disk under one of the names, or under both; repeated, it goes on. The disk must not be in use.`,
		"  vmdkctl rename disk.vmdk database.vmdk", 2, nil)
	dryRunFlag(c, &dryRun)
	c.RunE = func(_ *cobra.Command, args []string) error {
		f, err := a.plainDisk(args[0], "A volume's name cannot change; clone it under another one.")
		if err != nil {
			return err
		}
		defer f.Close()
		next := args[1]
		if dir := filepath.Dir(next); dir != "." && filepath.Clean(dir) != filepath.Clean(f.Path) {
			return cli.Usage{Err: fault.New(fault.Invalid, "Move all its files with mv, or convert it.", "%s is in another directory", next)}
		}
		do := vmdk.Rename
		if dryRun {
			do = vmdk.PlanRename
		}
		r, err := do(f.Dir, f.Head(), filepath.Base(next))
		if err != nil {
			return err
		}
		return a.edited(edited{Disk: args[0], Done: "renamed to " + strings.Join(r.Files, ", "), Files: r.Files, Told: r.Children, DryRun: dryRun})
	}
	return c
}

func (a *app) rebaseCommand() *cobra.Command {
	var parent string
	var none bool
	var p chain.RebaseParams
	c := a.edit("rebase DISK", "Give a disk another parent", `Give a link another parent of the same directory and capacity, or none. What the disk reads stays the same: where the old
parent's content differs from the new one's, it is copied into the link first. With --unsafe nothing is compared or copied, and the disk
reads what the new parent has: for a parent that was moved or copied. None of the disks may be in use.`,
		"  vmdkctl rebase disk-000002.vmdk --parent disk.vmdk\n  vmdkctl rebase disk-000001.vmdk --no-parent", 1, nil)
	c.Flags().StringVar(&parent, "parent", "", "descriptor of the new parent")
	c.Flags().BoolVar(&none, "no-parent", false, "make it a base: copy all that its parents have")
	c.Flags().BoolVar(&p.Unsafe, "unsafe", false, "change the parent only")
	dryRunFlag(c, &p.DryRun)
	c.MarkFlagsOneRequired("parent", "no-parent")
	c.MarkFlagsMutuallyExclusive("parent", "no-parent")
	must(c.MarkFlagFilename("parent", "vmdk"))
	c.RunE = func(c *cobra.Command, args []string) error {
		if none && p.Unsafe {
			return cli.Usage{Err: fault.New(fault.Invalid, "Leave --unsafe out.", "a disk without the content of its parents would be half a disk")}
		}
		f, parents, err := a.rebaseOn(args[0], parent, p.Unsafe)
		if err != nil {
			return err
		}
		defer f.Close()
		progress := cli.NewProgress(a.err, "rebase "+args[0], 0)
		p.Progress = progress.Set
		err = chain.Rebase(c.Context(), f.Dir, f.refs(), parents, p)
		progress.Done()
		if err != nil {
			return err
		}
		what := "a base now"
		if !none {
			what = "a child of " + filepath.Base(parent) + " now"
		}
		return a.edited(edited{Disk: args[0], Done: what, DryRun: p.DryRun})
	}
	return c
}

// RebaseOn finds the disk, of which an unsafe rebase needs no parents, and the links of its new parent.
func (a *app) rebaseOn(arg, parent string, unsafe bool) (f *found, parents []chain.Ref, err error) {
	const volume = "Its manifest says what its links are; clone or flatten it."
	if !unsafe {
		f, err = a.plainDisk(arg, volume)
	} else if f, _, err = a.findBroken(arg); err == nil && f.Volume != nil {
		f.Close()
		return nil, nil, fault.New(fault.Unsupported, volume, "%s is a volume of a datastore", arg)
	}
	if err != nil || parent == "" {
		return f, nil, err
	}
	if unsafe {
		f.Names = []string{filepath.Base(arg)} // its old parents may be gone
	}
	if filepath.Dir(parent) != "." && filepath.Clean(filepath.Dir(parent)) != filepath.Clean(f.Path) {
		f.Close()
		return nil, nil, cli.Usage{Err: fault.New(fault.Invalid, "Move the files together.", "%s is in another directory", parent)}
	}
	path := filepath.Join(f.Path, filepath.Base(parent))
	if _, err := os.Stat(path); err != nil {
		f.Close()
		return nil, nil, err
	}
	if parents, err = chain.Resolve(f.Dir, filepath.Base(parent)); err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, parents, nil
}

func (a *app) fixCIDCommand() *cobra.Command {
	var dryRun bool
	c := a.edit("fix-cid DISK", "Make links name the content IDs that their parents have", `Make every link of a chain name the content ID that its parent has. They differ after a parent was written that has a child: then
the child's content is a mixture of then and now, and no tool opens it. Use this only if you know that the parents' content is the right one,
for example because it was opened for writing and nothing changed. The disk must not be in use.`,
		"  vmdkctl fix-cid --dry-run disk-000001.vmdk\n  vmdkctl fix-cid disk-000001.vmdk", 1, nil)
	c.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be changed, change nothing")
	c.RunE = func(_ *cobra.Command, args []string) error {
		f, err := a.plainDisk(args[0], "vmdkctl check says what is wrong with it.")
		if err != nil {
			return err
		}
		defer f.Close()
		fixed, err := chain.FixCIDs(f.Dir, f.Names, dryRun)
		if err != nil {
			return err
		}
		e := edited{Disk: args[0], Done: "left as it is: every link names its parent's content ID", DryRun: dryRun && len(fixed) > 0}
		for _, x := range fixed {
			e.Told = append(e.Told, x.Name)
		}
		if len(fixed) > 0 {
			e.Done = "changed in " + strings.Join(e.Told, ", ")
		}
		return a.edited(e)
	}
	return c
}
