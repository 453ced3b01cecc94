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
// Judged are (numbers of the plan's invariants):
//
//	I1 no grain is referenced twice or lies outside the file
//	I2 each sector reads its last flushed value or one written later, all else zeros
//	I3 manifest, links and content IDs agree
//	I4 one name, one volume
//	I6 collection removes exactly the files that nothing refers to
//
// and that every operation can be repeated and the disk be used and deleted afterwards.
//
// history_test.go says what was promised, world_test.go runs operations, verify_test.go judges, enumerate_test.go,
// mutation_test.go and failure_test.go are the three proofs. SEED=n repeats a run, CRASH_LIMIT=n sets the most states
// per cut.
//
// Everything is a test; nothing imports this package.
package crash
