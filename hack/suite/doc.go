// Command suite runs the project's test suites, says what it does while it does it, checks that nothing was leaked (loop
// devices, mounts, memfds, processes, cgroups), and ends with one line that counts every test of every suite, below the
// reason of every skipped one.
//
//	suite              all suites
//	suite unit crash   only these
//	suite -list        what there is
//
// Suites that mostly wait run beside suites that mostly compute: suites have a stage and a lane (suites.go). Stages come one
// after the other; the lanes of a stage run beside each other, each lane's suites in their order. Leaks are looked for after
// each stage.
//
// The kind cluster of the suites that need one comes up behind the first stages, and goes after the last suite that needs it;
// then all that it brought must be gone too.
//
// Goroutines: one a lane, and one that waits for the cluster; runAll waits for all of them.
package main
