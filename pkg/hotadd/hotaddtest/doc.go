// Package hotaddtest is the conformance suite of the port hotadd.Bus, for every bus to run in its tests: Run is about slots, ReadOnly about the
// redo log of a read-only disk. The emulated bus runs ReadOnly in test/takeover, with the processes that keep its redo log.
package hotaddtest
