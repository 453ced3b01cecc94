// Package crash proves that disks survive what happens to machines: it runs every sequence of three operations on a
// simulated file system (fsx/sim), cuts the power at every point, and judges what is found afterwards.
//
//	operations   create, write, flush, expand, delete, and a detach at the end; flat and sparse disks
//	power loss   after every file system operation: every subset of what was not synced (a seeded sample of the large
//	             ones), torn writes
//	mutations    each sync call of the code, taken out, must make the enumeration fail: else it is useless, or the
//	             enumeration is blind
//	failures     each file system operation fails in turn: EIO, ENOSPC, an answer that is lost, and a process that dies
//
// Stories do the same for several disks and their snapshots: what there is at the beginning, and one step that is cut or
// fails: snapshot, restore, clone, deletion, growth, or a consolidation in either direction, attached and detached. The
// death of the process is tried at every file system operation of the step, never sampled; a successor takes the disks over,
// repeats the step, and the power may fail then.
//
// Judged are (numbers of the plan's invariants):
//
//	I1 no grain is referenced twice or lies outside the file
//	I2 each sector reads its last flushed value or one written later, all else zeros
//	I3 manifest, links and content IDs agree
//	I4 one name, one volume
//	I5 a snapshot's content never changes: what is restored from it is exactly that
//	I6 collection removes exactly the files that nothing refers to
//	I8 no process's death loses an acknowledged write
//
// and that every operation can be repeated and the disk be used and deleted afterwards.
//
// history_test.go says what was promised, world_test.go runs operations, verify_test.go judges, enumerate_test.go,
// mutation_test.go and failure_test.go are the three proofs. For stories these are ledger_test.go, story_world_test.go,
// story_verify_test.go and story_test.go. SEED=n repeats a run, CRASH_LIMIT=n sets the most states per cut, CRASH_STORY=text
// keeps the stories that contain it, CRASH_EVERY=1 makes every operation fail in every way.
//
// Everything is a test; nothing imports this package.
package crash
