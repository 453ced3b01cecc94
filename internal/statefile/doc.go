// Package statefile keeps small maps in JSON files that are replaced in one step: what a host remembers beside its datastores.
//
// Who writes a file keeps others from writing it meanwhile. No goroutines, no locks. Floor 0: it imports pkg/fault only.
package statefile
