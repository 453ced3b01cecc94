// Package kmutex locks by key without waiting: an operation on a busy object is answered with fault.InProgress, so that
// the orchestrator's retry, not a queue in this process, orders the work.
//
// A Set starts no goroutine and holds its own mutex for map operations only.
//
// Floor 0: it imports nothing of this module but pkg/fault.
package kmutex
