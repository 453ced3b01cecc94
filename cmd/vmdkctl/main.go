// Program vmdkctl makes, inspects, checks, converts and attaches VMDK disks without Kubernetes; docs/vmdkctl.md is its
// manual.
package main

import (
	"context"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/cli/vmdkctl"
)

func main() { os.Exit(run()) }

func run() int {
	// The first signal ends the work in good order (temporary files go), the second one ends the process.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	defer context.AfterFunc(ctx, stop)()
	return vmdkctl.Main(ctx, os.Args[1:], os.Stdout, os.Stderr)
}
