// Command suite runs the project's test suites one after the other, says what it does while it does it, checks after
// each that nothing was leaked (loop devices, mounts, memfds, processes, cgroups), and ends with one line that counts
// every test of every suite, below the reason of every skipped one.
//
//	suite              all suites
//	suite unit crash   only these
//	suite -list        what there is
package main
