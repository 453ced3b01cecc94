// Package gpt reads, makes and grows the GUID partition table of a disk that has one partition (UEFI specification 2.10,
// section 5.3). It reads from user space, so that a kernel without a partition parser does not matter.
//
// A table is believed only if signature, size and both checksums are right; when the primary is damaged the backup is
// read. Writes go backup first, then primary, so that one of the two is valid at any moment; each is followed by a sync.
//
// No goroutines, no locks. It imports pkg/fault and the standard library.
package gpt
