// Package block defines the one interface by which everything above a disk format reads and writes a disk, and
// decorators that keep that interface.
//
//	Memory      a disk in memory, for tests and scratch
//	ReadOnly    refuses every change
//	Overlay     keeps every change in a scratch file: a read-only disk for who must write, as a journal's replay does
//	Gate        lets nothing through while it is closed, and knows when everything is out: the pause of a snapshot
//	Stats       counts requests, bytes and time
//	Poison      makes a failed Flush final
//
// blocktest checks the contract of Device; every implementation in this module runs it.
//
// # Goroutines and locks
//
// No goroutines. Gate blocks callers while it is closed; the mutexes of Gate, Poison and Memory are never held across
// a call into another Device; that of Overlay is, because a block that is half written takes its other half from below.
//
// Floor 0: it imports nothing of this module but pkg/fault and knows no file system, format or transport.
package block
