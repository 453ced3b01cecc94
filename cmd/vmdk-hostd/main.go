// Program vmdk-hostd owns the datastores of one node and serves the disks that are attached on it.
package main

import (
	"context"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
	"github.com/vmdk-csi/vmdk-csi/internal/cli/hostd"
)

func main() { os.Exit(run()) }

func run() int {
	// The first signal ends the work in good order, the second one ends the process.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	defer context.AfterFunc(ctx, stop)()
	cmd := hostd.NewCommand()
	cmd.Version = cli.BuildVersion().Version
	return cli.Report(os.Stderr, cmd.ExecuteContext(ctx))
}
