package qemu

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"
)

// TestMain fails if a test leaves a goroutine behind: every one has an owner that waits for it.
func TestMain(m *testing.M) {
	before := runtime.NumGoroutine()
	code := m.Run()
	if f := flag.Lookup("test.fuzz"); f != nil && f.Value.String() != "" { // the fuzzer keeps a goroutine for signals
		os.Exit(code)
	}
	for limit := time.Now().Add(5 * time.Second); code == 0 && runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Now().After(limit) {
			b := make([]byte, 1<<20)
			fmt.Printf("leaked goroutines:\n%s\n", b[:runtime.Stack(b, true)])
			code = 1
		}
	}
	os.Exit(code)
}
