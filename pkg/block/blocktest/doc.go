// Package blocktest is the contract of block.Device as checks that any implementation can run.
//
// Run gives each check a zeroed device of Size bytes. A check returns an error instead of failing a test, so that the
// package's own test can show that each one fails for a device with the fault it is there for. Checks start goroutines
// and wait for them; they hold no lock.
//
// Floor 0, tests only: it imports pkg/block and pkg/fault.
package blocktest
