// Package lease decides who may write a disk: owner epochs and clean release records (rule 9 of the on-disk rules).
//
// A State stands in every manifest. Somebody who wants to change a disk commits a successor of the highest manifest
// that Acquire made: the epoch is one higher, the owner is named, the release is open. The commit (link(2) of a name
// that holds the epoch) lets one of several contenders win. Only the owner of an epoch commits under it, and Release
// ends it. So:
//
//   - another host acquires only after a clean release record;
//   - the same host acquires again after its own process's or machine's death: nobody but it could have written. It
//     then learns whether the machine was restarted since (another boot id), in which case page cache and shared
//     memory are gone and the disk needs the full unclean check;
//   - no clock is read: two machines' clocks are never compared.
//
// The package is pure: it does no I/O, starts no goroutine and holds no lock.
//
// Floor 1: it imports pkg/fault and the standard library only.
package lease
