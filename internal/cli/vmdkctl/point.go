package vmdkctl

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// FindPoint finds a disk up to the link that arg names: with --datastore that of a snapshot, or a disk as it is now; else as
// find does. A name that both have is refused.
func (a *app) findPoint(arg string) (*found, error) {
	if a.datastore == "" || host.ValidDiskID(arg) {
		return a.find(arg)
	}
	s, err := openStore(a.datastore)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	v, link, err := s.snapshotLink(snapshotID(arg))
	if errors.Is(err, fault.NotFound) {
		f, derr := a.find(arg)
		if errors.Is(derr, fault.NotFound) {
			derr = fault.New(fault.NotFound, "`vmdkctl list` and `vmdkctl snapshots` with --datastore "+a.datastore+" show what there is.",
				"datastore %s has no disk or snapshot with the id or name %q", a.datastore, arg)
		}
		return f, derr
	}
	if err != nil {
		return nil, err
	}
	if f, err := a.find(arg); err == nil {
		f.Close()
		return nil, fault.New(fault.Invalid, "Use the id of the one that is meant.", "both a snapshot and a disk are called %q", arg)
	}
	return findVolume(filepath.Join(s.root, "volumes", v), link)
}

// SnapshotLink is the disk of a snapshot and the descriptor of the link where it ends. Kinds: NotFound.
func (s *onStore) snapshotLink(id string) (disk, link string, err error) {
	if disk, err = s.volumes.SnapshotDisk(id); err != nil {
		return "", "", err
	}
	v, err := readVolumeOn(s.store, disk)
	if err != nil {
		return "", "", err
	}
	for _, p := range v.Manifest.Snapshots {
		if p.ID == id {
			return disk, p.Link, nil
		}
	}
	return "", "", fault.New(fault.NotFound, "", "snapshot %s does not exist", id)
}

// CompletePoints completes the first n arguments with what findPoint takes.
func (a *app) completePoints(n int) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) >= n {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		if a.datastore == "" {
			return []string{"vmdk"}, cobra.ShellCompDirectiveFilterFileExt
		}
		names, how := a.diskNames(c.Context())
		more, _ := a.snapshotNames(c.Context())
		return append(names, more...), how
	}
}

// CompleteSnapshot completes the first argument with the names of snapshots.
func (a *app) completeSnapshot(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.snapshotNames(c.Context())
}

func (a *app) snapshotNames(ctx context.Context) ([]string, cobra.ShellCompDirective) {
	s, err := openStore(a.datastore)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	defer s.Close()
	all, _, err := s.volumes.ListSnapshots(ctx, "", 0, "")
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []string
	for _, x := range all {
		names = append(names, x.Name+"\t"+s.diskName(x.Disk))
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// CompleteDisk completes the first argument with .vmdk files and directories, or with the names of the datastore's disks.
func (a *app) completeDisk(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	switch {
	case len(args) > 0:
		return nil, cobra.ShellCompDirectiveNoFileComp
	case a.datastore == "":
		return []string{"vmdk"}, cobra.ShellCompDirectiveFilterFileExt
	}
	return a.diskNames(c.Context())
}

// DiskNames are the names of the datastore's disks, for completion.
func (a *app) diskNames(ctx context.Context) ([]string, cobra.ShellCompDirective) {
	s, err := openStore(a.datastore)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	defer s.Close()
	disks, _, err := s.volumes.List(ctx, 0, "")
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []string
	for _, d := range disks {
		if d.Spec.Name != "" {
			names = append(names, d.Spec.Name+"\t"+cli.FormatSize(d.Size))
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func isDatastore(root string) bool {
	_, err := os.Stat(filepath.Join(root, ".vmdk-csi", "datastore.json"))
	return err == nil
}
