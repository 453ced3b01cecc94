package leaktest

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// Main runs the tests and ends the program; it fails if they leave a goroutine or a file descriptor behind.
func Main(m *testing.M) {
	fds, goroutines := descriptors(), runtime.NumGoroutine()
	code := m.Run()
	if f := flag.Lookup("test.fuzz"); f != nil && f.Value.String() != "" { // the fuzzer keeps a goroutine for signals
		os.Exit(code)
	}
	for deadline := time.Now().Add(5 * time.Second); code == 0; time.Sleep(10 * time.Millisecond) {
		f, g := descriptors(), runtime.NumGoroutine()
		if f <= fds && g <= goroutines {
			break
		}
		if time.Now().After(deadline) {
			fmt.Printf("leaked: %d descriptors, %d goroutines\n", f-fds, g-goroutines)
			code = 1
		}
	}
	os.Exit(code)
}

// descriptors counts open files and directories; the runtime keeps some of /sys open.
func descriptors() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	n := 0
	for _, e := range entries {
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && strings.HasPrefix(to, "/") && !strings.HasPrefix(to, "/sys/") && !strings.HasPrefix(to, "/proc/") && !strings.HasPrefix(to, "/dev/") {
			n++
		}
	}
	return n
}
