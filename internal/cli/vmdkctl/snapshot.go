package vmdkctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// SnapshotInfo is a snapshot as it is answered.
type snapshotInfo struct {
	host.Snapshot
	DiskName string `json:"diskName"`
}

func (a *app) snapshotCommand() *cobra.Command {
	var remove, dryRun bool
	var of childOptions
	c := &cobra.Command{
		Use:   "snapshot DISK NAME",
		Short: "Keep what a disk is now under a name",
		Long: `Take a snapshot of a datastore's disk: the links that it has are kept as they are, and what is written from now on goes into
a new one. It takes no space until the disk changes. A disk that is attached by vmdkctl goes on being used; what the
snapshot then has is what a power cut at that moment would leave, unless its file system was frozen (fsfreeze -f) or
unmounted.

Of a disk that is plain files NAME is the descriptor of a child, such as disk-000001.vmdk, which is made beside it: use the child from now
on, and what DISK names stays as it is. Nobody may write DISK any more. VMware opens chains of 32 links at most; --force goes on
to 64.

A name stands for one snapshot on the datastore; asked for again for the same disk, the one that is there is the answer.

With --delete the snapshot is forgotten. Disks restored from it stay whole; vmdkctl consolidate gives its space back.`,
		Example: "  vmdkctl snapshot --datastore /srv/disks database monday\n  vmdkctl snapshot --datastore /srv/disks --delete monday\n" +
			"  vmdkctl snapshot disk.vmdk disk-000001.vmdk",
		Args: func(_ *cobra.Command, args []string) error {
			if want := map[bool]int{false: 2, true: 1}[remove]; len(args) != want {
				return fmt.Errorf("accepts %d arg(s), received %d", want, len(args))
			}
			return nil
		},
		ValidArgsFunction: func(c *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			if remove {
				return a.completeSnapshot(c, args, word)
			}
			return a.completeDisk(c, args, word)
		},
		RunE: func(c *cobra.Command, args []string) error {
			if remove {
				return a.deleteSnapshot(c.Context(), args[0], dryRun)
			}
			of.dryRun = dryRun
			return a.snapshot(c.Context(), args[0], args[1], of)
		},
	}
	c.Flags().BoolVar(&remove, "delete", false, "delete the snapshot NAME")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be done, do nothing")
	c.Flags().StringVar(&of.diskType, "type", string(vmdk.TwoGbMaxExtentSparse), "plain files: createType of the child: "+strings.Join(childTypes, ", "))
	c.Flags().BoolVar(&of.force, "force", false, "plain files: make a chain that is longer than VMware opens")
	must(c.RegisterFlagCompletionFunc("type", fixed(childTypes...)))
	return c
}

// ChildOptions is how a child of plain files is made.
type childOptions struct {
	diskType      string
	force, dryRun bool
}

// ChildTypes are the types that a child can have.
var childTypes = []string{string(vmdk.TwoGbMaxExtentSparse), string(vmdk.MonolithicSparse), string(vmdk.VMFSSparse)}

func (a *app) snapshot(ctx context.Context, disk, name string, of childOptions) error {
	dryRun := of.dryRun
	f, err := a.find(disk)
	if err != nil {
		return err
	}
	defer f.Close()
	if f.Volume == nil {
		return a.child(ctx, f, disk, name, of)
	}
	v, err := a.openDisk(disk, "Make a volume of it: `vmdkctl create --datastore DIR` and copy the content, or use qemu-img create -b.")
	if err != nil {
		return err
	}
	defer v.Close()
	spec, err := host.SnapshotSpec{Name: name, Disk: v.id}.Normalize()
	if err != nil {
		return err
	}
	att, attached, err := v.keeper(ctx)
	if err != nil {
		return err
	}
	if dryRun {
		how := ""
		if attached {
			how = ", while it is attached as " + att.Device
		}
		_, err := fmt.Fprintf(a.out, "Would take a snapshot %s of %s%s\n", cli.Printable(name), cli.Printable(v.name), how)
		return err
	}
	var s host.Snapshot
	if attached {
		err = theRunDir().call(ctx, att.ID, keepCall{Op: opSnapshot, Snapshot: &spec}, &s, nil)
	} else {
		s, err = v.volumes.Snapshot(ctx, spec, time.Time{}, nil)
	}
	if err != nil {
		return elsewhere(err)
	}
	return a.format.Write(a.out, snapshotInfo{s, v.name}, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "Took the snapshot %s of %s: %s, %s\n", cli.Printable(s.Name), cli.Printable(v.name),
			cli.FormatSize(s.Size), consistency(s.Consistency))
		return err
	})
}

// Child makes a child of a disk that is plain files.
func (a *app) child(ctx context.Context, f *found, disk, name string, of childOptions) (err error) {
	if !slices.Contains(childTypes, of.diskType) {
		return cli.Usage{Err: fault.New(fault.Invalid, "Name "+strings.Join(childTypes, ", ")+".", "a child cannot be of type %q", of.diskType)}
	}
	if filepath.Dir(name) != "." && filepath.Clean(filepath.Dir(name)) != filepath.Clean(f.Path) {
		return cli.Usage{Err: fault.New(fault.Invalid, "Give a name without a directory.", "a child lies beside its parent, %s does not", name)}
	}
	if n := len(f.Names); n >= host.MaxLinks && !of.force || n >= chain.MaxDepth {
		remedy := "Merge links: vmdkctl consolidate."
		if n < chain.MaxDepth {
			remedy = "Merge links: vmdkctl consolidate; or --force it."
		}
		return fault.New(fault.Exhausted, remedy, "%s has %d links already, as many as VMware opens", disk, n)
	}
	l, err := vmdk.Open(f.Dir, f.Head(), vmdk.Options{Lock: true, Devices: f.Devices})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	if l.Unclean() {
		return fault.New(fault.Precondition, "Attach and detach it, or vmdkctl repair --fix unclean-shutdown.", "%s was not closed cleanly", disk)
	}
	done := edited{Disk: disk, Done: "the parent of " + filepath.Base(name) + " now", Capacity: l.Size(), DryRun: of.dryRun}
	if !of.dryRun {
		adapter, _ := l.Descriptor().Get("ddb.adapterType")
		info, err := vmdk.Create(ctx, f.Dir, filepath.Base(name), vmdk.CreateParams{Capacity: l.Size(), Type: vmdk.Type(of.diskType),
			AdapterType: adapter, Parent: l.AsParent()})
		if err != nil {
			return err
		}
		done.Files = []string{info.Name}
		for _, e := range info.Extents {
			done.Files = append(done.Files, e.Name)
		}
	}
	return a.edited(done)
}

// Elsewhere tells a person what can be done about a disk that another host has.
func elsewhere(err error) error {
	f := fault.From(err)
	if f != nil && f.Kind == fault.InUse && f.Remedy == "" {
		return fault.New(fault.InUse, "Do it there (in Kubernetes with a VolumeSnapshot or a claim), or detach it there first.", "%w", err)
	}
	return err
}

func consistency(c host.Consistency) string {
	if c == host.FilesystemConsistent {
		return "of a clean file system"
	}
	return "as a power cut would leave it"
}

func (a *app) deleteSnapshot(ctx context.Context, name string, dryRun bool) error {
	s, err := openStore(a.datastore)
	if err != nil {
		return err
	}
	defer s.Close()
	id := snapshotID(name)
	snap, err := s.volumes.GetSnapshot(ctx, id)
	if err != nil {
		return noSnapshot(err, s.root, name)
	}
	if dryRun {
		_, err := fmt.Fprintf(a.out, "Would delete the snapshot %s\n", cli.Printable(snap.Name))
		return err
	}
	if err := s.volumes.DeleteSnapshot(ctx, id); err != nil {
		return elsewhere(err)
	}
	return a.format.Write(a.out, snap, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "Deleted the snapshot %s. `vmdkctl consolidate` gives its space back.\n", cli.Printable(snap.Name))
		return err
	})
}

func noSnapshot(err error, root, name string) error {
	if fault.KindOf(err) != fault.NotFound {
		return err
	}
	return fault.New(fault.NotFound, "`vmdkctl snapshots --datastore "+root+"` shows them.", "datastore %s has no snapshot with the id or name %q", root, name)
}

func (a *app) snapshotsCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "snapshots [DISK]",
		Short:             "Show the snapshots on a datastore, or of a disk",
		Long:              "Show the snapshots on a datastore, or of one disk, the oldest first. A disk that was deleted and whose snapshots are left shows in brackets.",
		Example:           "  vmdkctl snapshots --datastore /srv/disks\n  vmdkctl snapshots --datastore /srv/disks database -o json",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeDisk,
		RunE: func(c *cobra.Command, args []string) error {
			all, err := a.snapshots(c.Context(), args)
			if err != nil {
				return err
			}
			return a.format.Write(a.out, all, func(w io.Writer) error { return writeSnapshots(w, all, time.Local) })
		},
	}
}

func (a *app) snapshots(ctx context.Context, args []string) ([]snapshotInfo, error) {
	s, err := openStore(a.datastore)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	disk := ""
	if len(args) > 0 {
		f, err := a.find(args[0])
		if err != nil {
			return nil, err
		}
		disk = f.Volume.Record.ID
		f.Close()
	}
	list, _, err := s.volumes.ListSnapshots(ctx, disk, 0, "")
	if err != nil {
		return nil, err
	}
	out := make([]snapshotInfo, len(list))
	for i, x := range list {
		out[i] = snapshotInfo{x, s.diskName(x.Disk)}
	}
	slices.SortStableFunc(out, func(a, b snapshotInfo) int { return a.Created.Compare(b.Created) })
	return out, nil
}

// DiskName is the name of a disk, also of a deleted one that has snapshots left; its id if nothing tells.
func (s *onStore) diskName(id string) string {
	v, err := readVolumeOn(s.store, id)
	switch {
	case err != nil:
		return id
	case v.Manifest.Retired:
		return "[" + v.Record.Name + "]"
	}
	return v.Record.Name
}

func writeSnapshots(w io.Writer, all []snapshotInfo, zone *time.Location) error {
	if len(all) == 0 {
		_, err := io.WriteString(w, "There are no snapshots.\n")
		return err
	}
	t := cli.NewTable("NAME", "DISK", ">SIZE", "TAKEN", "CONTENT", "ID")
	for _, x := range all {
		t.Row(x.Name, x.DiskName, cli.FormatSize(x.Size), x.Created.In(zone).Format("2006-01-02 15:04:05"), consistency(x.Consistency), x.ID)
	}
	return t.Write(w)
}
