package csi

import (
	"context"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmdk-csi/vmdk-csi/pkg/node"
)

const freezeHelper = "freeze-helper"

// freezeHelperCommand starts this program again, as the process that stops one file system.
func freezeHelperCommand() []string { return []string{"/proc/self/exe", freezeHelper} }

func newFreezeHelperCommand() *cobra.Command {
	return &cobra.Command{
		Use:                freezeHelper,
		Short:              "Stop one file system for a snapshot; started by vmdk-csi-node",
		Hidden:             true,
		DisableFlagParsing: true,
		RunE:               func(_ *cobra.Command, args []string) error { return node.FreezeHelper(args, os.Stdin, os.Stdout) },
	}
}

// freezer is a kube.Freezer.
type freezer func(ctx context.Context, id string, deadline time.Time) (func(context.Context) error, error)

func (f freezer) Freeze(ctx context.Context, id string, deadline time.Time) (func(context.Context) error, error) {
	return f(ctx, id, deadline)
}
