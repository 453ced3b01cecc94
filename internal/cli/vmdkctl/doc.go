// Package vmdkctl is the commands of the program vmdkctl: the packages of this module in a person's shell, without
// Kubernetes.
//
//	create info chain map check repair convert diff   disks as files
//	snapshot snapshots restore clone           volumes of a datastore, by package volume: what the driver makes and
//	consolidate flatten delete                 what is made here are the same
//	attach detach list                         disks as kernel devices, kept alive by a keeper process of their own
//	completion docs version                    the program itself
//
// One file per command. find.go turns an argument into the links of a disk; it follows names inside one directory
// only. What changes nothing opens read-only and takes no lock, so that a live disk can be looked at. What changes a volume
// that a keeper serves is done by that keeper (keepcall.go, keepwork.go).
//
// Invariants: an answer goes to stdout and nothing else does; a command that fails leaves no file that it began
// (create and convert build under a temporary name and link the finished files to theirs); exit codes are those of package
// cli.
//
// Goroutines: none outlives its command; a keeper's jobs end before its disk is closed. Floor 6: only cmd imports it.
package vmdkctl
