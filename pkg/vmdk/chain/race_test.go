//go:build race

package chain_test

// raceDetector: the tests that run in one goroutine do less.
const raceDetector = true
