// Package sim is an in-memory file system behind fsx.Dir and fsx.File that can lose power.
//
// # What survives a power loss
//
// A file's writes, size changes, reservations and holes become durable at a Datasync of that file; directory entries
// become durable at a Sync of that directory. A Datasync does not make the file's name durable, nor a Sync the content
// of the files it names. Everything else may survive in any subset and in parts: every unsynced operation is kept or
// lost on its own, a kept write may be torn at 512 bytes, a rename is atomic, and a kept entry of a file that was never
// synced shows any subset of its data operations, none included. That is weaker than any real file system; code that
// passes relies on nothing but what fsync(2) promises.
//
// # Recording and enumerating
//
//	fs := sim.New(sim.Options{})
//	... build what exists before the test ...
//	fs.Record()                       // all of it is durable; from here on operations are logged
//	fs.Begin(x); ...; fs.Mark(y)      // what the caller started, and what it was promised
//	for cut := range fs.Crashes(1024, seed) {
//		... reopen cut.Root(), compare with cut.Events() ...
//	}
//
// Mutations: DropSync turns every sync of one line of code into nothing. Failures: FailAt, FailAfter and FailFrom.
//
// # Goroutines and locks
//
// No goroutines. One mutex per FS guards everything; an FS that Crashes yields is independent of the others.
package sim
