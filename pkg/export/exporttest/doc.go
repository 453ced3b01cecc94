// Package exporttest is the conformance suite of the port pkg/export: every adapter runs it against the kernel.
//
// Tests only. It imports what pkg/export does, and testing.
package exporttest
