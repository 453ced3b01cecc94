package vmdk

import (
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/leaktest"
)

// TestMain fails if a test leaves a goroutine or a file descriptor behind.
func TestMain(m *testing.M) { leaktest.Main(m) }
