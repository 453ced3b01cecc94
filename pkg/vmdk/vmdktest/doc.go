// Package vmdktest judges VMDK files as the strictest of their published readers would, without a line of the engine's code.
//
// Responsible for: Lint, the rules of output: what VirtualBox, VMware's hosted products and qemu accept only together.
//
// Invariants: it reads files by name and never writes; it imports nothing of this module, so that a mistake of the engine
// is not repeated here.
//
// Goroutines and locks: none.
package vmdktest
