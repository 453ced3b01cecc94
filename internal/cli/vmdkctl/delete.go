package vmdkctl

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
)

// Deleted is delete's answer.
type deleted struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	// Snapshots that keep its links; the disk's name stays taken until they are deleted.
	Snapshots []string `json:"snapshots,omitempty"`
	DryRun    bool     `json:"dryRun,omitempty"`
}

func (a *app) deleteCommand() *cobra.Command {
	var dryRun bool
	c := &cobra.Command{
		Use:   "delete DISK",
		Short: "Delete a disk",
		Long: `Delete a volume of a datastore with its files. Refuses while it is attached. The links that snapshots of it need stay, and
so does its name, until these are deleted. Disks restored from it or cloned stay whole.

Of a disk that is plain files the link that DISK names goes, descriptor and extents; its parents stay. Refuses while it is in use, and
while a disk in the directory has it as its parent.`,
		Example:           "  vmdkctl delete --datastore /srv/disks database\n  vmdkctl delete disk.vmdk",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeDisk,
		RunE: func(c *cobra.Command, args []string) error {
			return a.delete(c.Context(), args[0], dryRun)
		},
	}
	c.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be deleted, delete nothing")
	return c
}

func (a *app) delete(ctx context.Context, arg string, dryRun bool) error {
	f, err := a.find(arg)
	if err != nil {
		return err
	}
	defer f.Close()
	if f.Volume == nil {
		files, err := vmdk.Delete(f.Dir, f.Head(), dryRun)
		if err != nil {
			return err
		}
		return a.edited(edited{Disk: arg, Done: "deleted: " + strings.Join(files, ", "), Files: files, DryRun: dryRun})
	}
	v, err := a.openDisk(arg, "Remove the files with rm.")
	if err != nil {
		return err
	}
	defer v.Close()
	att, attached, err := v.keeper(ctx)
	if err == nil && attached {
		err = fault.New(fault.InUse, "Detach it first: `vmdkctl detach "+att.Device+"`.", "the disk %s is attached as %s", v.name, att.Device)
	}
	if err != nil {
		return err
	}
	d, err := v.describeDisk(v.id)
	if err != nil {
		return err
	}
	done := deleted{ID: v.id, Name: v.name, Snapshots: d.Snapshots, DryRun: dryRun}
	if !dryRun {
		if err := v.volumes.Delete(ctx, v.id); err != nil {
			return elsewhere(err)
		}
	}
	return a.format.Write(a.out, done, func(w io.Writer) error {
		what, kept := "Deleted", ""
		if dryRun {
			what = "Would delete"
		}
		if n := len(d.Snapshots); n > 0 {
			kept = fmt.Sprintf("; its links and its name stay for %s", count(n, "snapshot"))
		}
		_, err := fmt.Fprintf(w, "%s %s%s\n", what, cli.Printable(v.name), kept)
		return err
	})
}
