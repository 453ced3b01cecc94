// Package block defines the one interface by which everything above a disk format reads and writes a disk, and
// decorators that keep that interface.
//
// Floor 0: it imports nothing of this module but pkg/fault and knows no file system, format or transport.
package block
