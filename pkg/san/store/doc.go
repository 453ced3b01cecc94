// Package store keeps files on a LUN: a block device, or anything else behind an fsx.File, becomes an fsx.Dir.
//
// It is what a datastore of kind "lun" is made of. One process, the store's owner, allocates and names; nothing else moves an
// extent, and no kernel caches one. So a place on the LUN that the owner tells (Extents) stays what it is until the file
// gives it up, and can be used by others meanwhile: that is a block map (package san).
//
// # On the LUN
//
// All numbers are little-endian, all checksums CRC32C (Castagnoli) over the range named with the checksum's own bytes zero.
//
//	0          4096   not used: a partition table of the old kind may be here
//	4096       4096   superblock
//	8192       4096   identity block
//	12288      4096   lease: who owns the LUN (package lunlease)
//	1 MiB      A      metadata area 0
//	1 MiB + A  A      metadata area 1
//	D          n * E  data extents, D the next multiple of E
//	size-4096  4096   copy of the superblock
//
// Superblock (512 bytes and zeros, so that a torn write of it is none or all):
//
//	 0  8  "VMDK-LUN"             56  8  D, where data begins, bytes
//	 8  4  version, 1             64  8  n, extents
//	12  4  checksum of 512 bytes  72  8  generation of the catalogue
//	16 16  UUID                   80  4  area that has it, 0 or 1
//	32  8  size in use, bytes     84  4  its checksum
//	40  8  E, extent size, bytes  88  8  its length, bytes
//	48  8  A, area size, bytes
//
// Identity block: 0 8 "VMDKNONC", 8 4 version, 12 4 checksum of 512 bytes, 16 16 UUID, 32 16 a number that the owner draws
// at every Open. Who reads it through another path to the LUN knows that it is this LUN, now.
//
// Catalogue record, at the beginning of an area:
//
//	 0  8  "VMDKCATA"                       48  8  next file number
//	 8  4  version, 1                       56  8  next grant number
//	12  4  checksum of the whole record     64  4  files and directories
//	16 16  UUID                             68  4  runs of held extents
//	32  8  generation                       72  4  grants
//	40  8  length, bytes                    76 20  zeros
//	96     the files and directories by number, the held runs, the grants by number:
//
//	file       0 8 number  8 8 size, bytes  16 1 kind 1  17 3 zeros  20 4 runs, then the runs
//	run        0 4 first extent of the file  4 4 first extent of the LUN  8 4 count; ascending, without overlap
//	directory  0 8 number  8 8 zeros  16 1 kind 2  17 3 zeros  20 4 entries, then the entries, sorted
//	entry      0 8 number  8 1 length of the name  9 .. name
//	held       0 8 generation that freed them  8 4 first extent  12 4 count
//	grant      0 8 number  8 8 generation  16 4 length  20 .. what its maker wrote, 2048 bytes at most
//
// File 1 is the root directory. A file may have several names, a directory has one. No extent is named twice. What a file has
// no run for reads as zeros.
//
// # Protocols
//
// Each is numbered at its function, with what a crash leaves: Format, Open, Store.write (the commit), file.extend (allocation),
// Store.growable (the end of a file). Invariants:
//   - The superblock is the commit point. The catalogue that it names is whole, or the store is fault.Damaged: an older one is
//     never taken by itself, because that would go back behind what was acknowledged.
//   - A commit never writes into the area that the superblock on the medium names.
//   - An extent that a catalogue names had been zeroed, or written, before the sync that precedes its superblock.
//   - An extent that was freed is given to no other file before the commit that no longer names it is durable, and before
//     every grant that is not younger than that commit has ended. Held extents are in the catalogue while there are grants.
//   - Bytes between a file's end and the end of its extent are zeros before the file grows over them, and they are not
//     zeroed before it is durable that they were cut off.
//   - After a sync, or the writing of a superblock, failed, nothing is committed any more: fault.Poisoned.
//
// Datasync of a file whose size and places are durable is a sync of the LUN; every other Datasync or Sync is a commit, which
// covers all that was done before it, and is shared by those who ask at the same time.
//
// # Locks and goroutines
//
// No goroutines. Outermost first: inode.mu (shared by reads and writes of what is allocated), group.mu (not held during a
// commit), Store.mu (never held across I/O). Runs and sizes change under both inode.mu and Store.mu.
//
// Floor 2: it imports internal/fsx and pkg/fault.
package store
