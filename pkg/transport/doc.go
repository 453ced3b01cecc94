// Package transport chooses how a host reaches a disk's bytes: it tries transports in the order that was asked for, takes
// the first that works, and records why the ones before it did not.
//
// Of a directory a host by itself can do "hotadd" (the file itself, as a disk on its SCSI bus), and refuses "san" (block maps on a
// LUN) and "nbd" (another host's export): orders may name them everywhere, so that one StorageClass fits several datastores. What
// goes over the network is pkg/host/lun's, without a Picker: disks on a LUN, which change between san and nbd while they are open, and
// disks in directories that other hosts lend. An order that names anything else is fault.Invalid.
//
// A Picker is immutable after New and may be used concurrently. The package starts no goroutine.
//
// Floor 3: it imports pkg/hotadd and pkg/fault.
package transport
