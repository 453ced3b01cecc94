package chain_test

import (
	"os"
	"runtime/debug"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/leaktest"
)

// TestMain fails if a test leaves a goroutine or a file descriptor behind.
func TestMain(m *testing.M) {
	if os.Getenv("VMDK_CSI_CHAIN") != "" {
		debug.SetGCPercent(400) // thousands of short-lived file systems: memory for time
	}
	leaktest.Main(m)
}
