package vmdkctl

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
)

// Flattened is flatten's answer.
type flattened struct {
	Disk      string  `json:"disk"`
	Links     int     `json:"links"`     // there were
	Allocated int64   `json:"allocated"` // bytes, now
	Seconds   float64 `json:"seconds"`
	DryRun    bool    `json:"dryRun,omitempty"`
}

func (a *app) flattenCommand() *cobra.Command {
	var dryRun bool
	c := &cobra.Command{
		Use:   "flatten DISK [DESTINATION]",
		Short: "Make one stand-alone link of a disk's chain",
		Long: `Copy a detached volume's content into one base link that replaces its chain. Afterwards it shares nothing with other
disks, and VMware's products take it whatever steps of capacity its chain had. Its snapshots must be deleted before.

For a disk that is plain files name a DESTINATION: it becomes one monolithicFlat disk with the content, and the chain
stays as it is (as vmdkctl convert does, which knows more types).`,
		Example:           "  vmdkctl flatten --datastore /srv/disks database\n  vmdkctl flatten disk-000003.vmdk flat.vmdk",
		Args:              cobra.RangeArgs(1, 2),
		ValidArgsFunction: a.completeDisk,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 2 {
				return a.convert(c.Context(), conversion{from: args[0], to: args[1], fromFmt: vmdkImage, toFmt: vmdkImage, dryRun: dryRun,
					shape: shape{string(vmdk.MonolithicFlat), string(vmdk.Thin), defaultAdapter}})
			}
			return a.flatten(c.Context(), args[0], dryRun)
		},
	}
	c.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be done, do nothing")
	return c
}

func (a *app) flatten(ctx context.Context, arg string, dryRun bool) error {
	v, err := a.openDisk(arg, "Name a DESTINATION, which becomes one disk with the content.")
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
	before, err := v.describeDisk(v.id)
	if err != nil {
		return err
	}
	done := flattened{Disk: v.name, Links: before.Links, Allocated: before.Allocated, DryRun: dryRun}
	if !dryRun {
		begin := time.Now()
		p := cli.NewProgress(a.err, "flatten "+v.name, 0)
		_, err := v.volumes.Flatten(ctx, v.id, p.Set)
		p.Done()
		if err != nil {
			return elsewhere(err)
		}
		after, err := v.describeDisk(v.id)
		if err != nil {
			return err
		}
		done.Allocated, done.Seconds = after.Allocated, time.Since(begin).Seconds()
	}
	return a.format.Write(a.out, done, func(w io.Writer) error {
		if dryRun {
			_, err := fmt.Fprintf(w, "Would flatten %s: %s, %s allocated\n", cli.Printable(v.name), count(done.Links, "link"), cli.FormatSize(done.Allocated))
			return err
		}
		_, err := fmt.Fprintf(w, "Flattened %s: %s became one, %s allocated\n", cli.Printable(v.name), count(done.Links, "link"), cli.FormatSize(done.Allocated))
		return err
	})
}
