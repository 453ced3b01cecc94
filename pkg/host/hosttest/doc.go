// Package hosttest is the conformance suite of the port pkg/host, and Memory, the port in memory.
//
// Run and RunSnapshots check what every adapter must do alike, in parts that can be run one by one; an adapter's own test adds what is its own (files, processes, objects).
// Memory keeps disks and snapshots as descriptions only: no content, no kernel device; its consolidation takes no time. It is for
// tests of those who use the port.
//
// Memory's mutex guards everything in it and is held for the length of a call; no goroutine is started.
package hosttest
