package vmdktest

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

// MostMemory is what a process that fuzzes may ever take, whatever it is given.
const MostMemory = 256 << 20

// Bounded fails a fuzz target whose process has taken more than MostMemory at any time (VmHWM of proc(5)). A run of the corpus alone,
// in one process with all other tests, is not judged.
func Bounded(t *testing.T) {
	t.Helper()
	if f := flag.Lookup("test.fuzzworker"); f == nil || f.Value.String() != "true" {
		return
	}
	peak, err := peakMemory()
	if err != nil {
		t.Fatal(err)
	}
	if peak > MostMemory {
		t.Errorf("the process took %d MiB of memory, more than %d", peak>>20, MostMemory>>20)
	}
}

// peakMemory is the most memory that this process ever had, in bytes.
func peakMemory() (int64, error) {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(text), "VmHWM:")
	var kib int64
	if _, err := fmt.Sscanf(strings.TrimSpace(rest), "%d kB", &kib); err != nil {
		return 0, fmt.Errorf("/proc/self/status: VmHWM: %w", err)
	}
	return kib << 10, nil
}
