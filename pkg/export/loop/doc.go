// Package loop makes a file the block device /dev/loopN, as losetup does, by ioctl(2) (loop(4)).
//
// It never asks the loop driver what a device shows but reads /sys/block/loop*/loop: those files answer even when the
// server of a backing file is stalled, losetup and the status ioctls may not.
//
// A Device owns one open descriptor of the block device. With AutoClear the device lives as long as somebody has it open
// or mounted; without, until Detach. No goroutines, no locks: callers serialise operations on one Device.
//
// Floor 5, an adapter: it imports internal/sys and pkg/fault.
package loop
