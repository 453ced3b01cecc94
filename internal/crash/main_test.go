package crash

import (
	"os"
	"runtime/debug"
	"testing"
)

func TestMain(m *testing.M) {
	debug.SetGCPercent(800) // thousands of short-lived file systems: memory for time
	os.Exit(m.Run())
}
