//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/test/cluster"
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) (code int) {
	ctx := context.Background()
	defer func() {
		if err := cluster.Leave(ctx, os.Stdout, code == 0); err != nil {
			fmt.Fprintln(os.Stderr, "e2e: the cluster was not removed:", err)
			code = 1
		}
	}()
	began := time.Now()
	if err := cluster.Enter(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "e2e: set-up failed:", err)
		cluster.Dump(os.Stdout)
		return 1
	}
	fmt.Printf("e2e: cluster and driver ready after %s\n", time.Since(began).Round(time.Second))
	code = m.Run()
	if code != 0 {
		cluster.Dump(os.Stdout)
	}
	return code
}
