// Program vmdk-csi-controller is the CSI controller service: it turns claims into disks. It has no access to any host.
package main

import (
	"context"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
	"github.com/vmdk-csi/vmdk-csi/internal/cli/csi"
)

func main() { os.Exit(run()) }

func run() int {
	defer klog.Flush()
	// The first signal ends the work in good order, the second one ends the process.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	defer context.AfterFunc(ctx, stop)()
	cmd := csi.NewControllerCommand()
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.Version = cli.BuildVersion().Version
	return cli.Report(os.Stderr, cmd.ExecuteContext(ctx))
}
