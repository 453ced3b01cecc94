package vmdkctl

import (
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
)

func (a *app) listCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "Show the disks that vmdkctl attached on this machine, or those of a datastore",
		Long: `Show the disks that vmdkctl attached on this machine, with the process that serves each and how often it was replaced.
With --datastore show the disks that are on it: size, links, snapshots, and who has them attached. A disk that was deleted
and whose links snapshots still need is shown in brackets.`,
		Example: "  vmdkctl list\n  vmdkctl list -o json\n  vmdkctl list --datastore /srv/disks",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if a.datastore != "" {
				disks, err := a.storeDisks(c.Context())
				if err != nil {
					return err
				}
				return a.format.Write(a.out, disks, func(w io.Writer) error { return writeDisks(w, disks) })
			}
			all, err := theRunDir().all(c.Context())
			if err != nil {
				return err
			}
			return a.format.Write(a.out, all, func(w io.Writer) error { return writeList(w, all, time.Now()) })
		},
	}
}

func writeList(w io.Writer, all []attachment, now time.Time) error {
	if len(all) == 0 {
		_, err := io.WriteString(w, "Nothing is attached.\n")
		return err
	}
	t := cli.NewTable("DEVICE", "DISK", ">SIZE", "MODE", "STATE", ">WORKER", ">RESTARTS", ">ATTACHED")
	for _, x := range all {
		mode, worker := "rw", ""
		if x.ReadOnly {
			mode = "ro"
		}
		if x.WorkerPID > 0 {
			worker = strconv.Itoa(x.WorkerPID)
		}
		t.Row(x.Device, x.Disk, cli.FormatSize(x.Size), mode, x.State, worker, strconv.Itoa(x.Restarts), cli.FormatDuration(now.Sub(x.Since)))
	}
	return t.Write(w)
}
