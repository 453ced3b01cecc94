//go:build race

package vmdk

// raceDetector tells that tests run several times as long.
const raceDetector = true
