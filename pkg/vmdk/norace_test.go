//go:build !race

package vmdk

const raceDetector = false
