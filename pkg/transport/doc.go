// Package transport chooses how a host reaches a disk's bytes: it tries transports in the order that was asked for, takes
// the first that works, and records why the ones before it did not.
//
// Known here is "hotadd" (the file itself, as a disk on the host's SCSI bus). san (block maps on a LUN) and nbd (another
// host's export) join by implementing Transport; an order that names what a Picker does not have is fault.Invalid.
//
// A Picker is immutable after New and may be used concurrently. The package starts no goroutine.
//
// Floor 3: it imports pkg/hotadd and pkg/fault.
package transport
