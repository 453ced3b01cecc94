// Package cli is what the module's programs share when they speak to a person: sizes, tables, output formats, progress,
// bars, and errors with a remedy. Its sub-packages hold the commands of one program each.
//
// A program's output is for people first: columns are aligned, sizes are in KiB, MiB or GiB, long work shows progress
// when stderr is a terminal. `-o json` and `-o yaml` are for programs and carry bytes, never rounded sizes.
//
// Nothing here starts a goroutine or takes a lock; a Progress belongs to the goroutine that reports.
//
// Floor 6: only cmd imports it, and it may import everything.
package cli
