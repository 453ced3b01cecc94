// Command bench measures what a user of snapshots feels and prints one table: each number beside a peer's that was taken
// in the same run, and their ratio. Absolute numbers are the machine's; ratios are the product's.
//
//	bench                          everything, about five minutes
//	bench -only pause,restore      some sections
//	bench -docs docs/benchmarks.md write the results there as well
//
// Sections, one file each: pause (a snapshot under load), restore (restores, clones and full copies against capacity), merge
// (consolidation), foreground (what a merge does to those who write), nbd (reads from vmdkctl serve and from qemu-nbd), san (a
// disk by a block map and by a loop device on the same LUN). They use the real engine and package volume in this
// process; pause also goes the whole way, through a worker and a loop device, where the machine lets it.
//
// No number fails anything: a slow machine is no defect. What fails is a measurement that measured nothing.
//
// Everything is made in one directory below -dir and removed at the end. Goroutines: a load's writers, which stop waits for.
package main
