package vmdkctl

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
)

// FindPoint finds a disk up to the link that arg names: with --datastore a disk as it is now, else as find does.
func (a *app) findPoint(arg string) (*found, error) {
	return a.find(arg)
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
		return a.diskNames(c.Context())
	}
}

// CompleteDisk completes the first argument with .vmdk files and directories, or with the names on the datastore.
func (a *app) completeDisk(c *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	return a.completePoints(1)(c, args, word)
}

// DiskNames are the names of the datastore's disks, for completion.
func (a *app) diskNames(ctx context.Context) ([]string, cobra.ShellCompDirective) {
	if !isDatastore(a.datastore) { // completion makes none
		return nil, cobra.ShellCompDirectiveError
	}
	store, volumes, err := openVolumes(a.datastore, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	defer store.Close()
	disks, _, err := volumes.List(ctx, 0, "")
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
