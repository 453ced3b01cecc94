// Package transport chooses how a host reaches a disk's bytes: it tries transports in the order that was asked for, takes
// the first that works, and records why the ones before it did not.
//
// Of a directory a host can do "hotadd" (the file itself, as a disk on its SCSI bus), and refuses "san" (block maps on a LUN)
// and "nbd" (another host's export): orders may name them everywhere, so that one StorageClass fits several datastores. Disks
// on a LUN change between san and nbd while they are open, so pkg/remote and pkg/host/lun do that without a Picker. An order
// that names anything else is fault.Invalid.
//
// A Picker is immutable after New and may be used concurrently. The package starts no goroutine.
//
// Floor 3: it imports pkg/hotadd and pkg/fault.
package transport
