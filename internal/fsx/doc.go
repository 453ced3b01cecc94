// Package fsx is the seam through which everything of this module reaches a file on a datastore.
//
// Crash enumeration records and cuts what passes here; a write that goes around fsx is a write that no crash test sees.
// A Dir cannot be escaped: names are single path elements, symbolic links are never followed.
//
//	OpenRoot, FromFD   real directories (openat2 with RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS; openat with O_NOFOLLOW
//	                   where the kernel or a seccomp filter has no openat2)
//	WithoutLocks       a decorator for datastores whose file system cannot lock, and for tests that must prove that
//	                   local locks are not what keeps two hosts apart
//	fsx/sim            an in-memory file system with a model of power loss
//
// All of them pass fsx/fsxtest.
//
// # Errors
//
// Every error carries a fault kind and the kernel's errno: errors.Is(err, fs.ErrExist), errors.Is(err, unix.ENOSPC)
// and errors.Is(err, fault.NoSpace) all work. A Datasync or Sync that failed once fails for ever with fault.Poisoned.
//
// # Direct I/O
//
// A file opened with Direct has two descriptors of one inode. Requests whose offset and length fit the alignment that
// statx(2) reports go through the O_DIRECT one, by a bounce buffer when only the memory does not fit. Other writes go
// through the buffered one while no direct write of this File is under way: a direct write that overtakes a buffered
// read-modify-write of the same page would be undone by its write-back (open(2), NOTES, "O_DIRECT").
//
// # Goroutines and locks
//
// The package starts no goroutine. osFile.mu orders buffered against direct writes, osFile.lockMu guards the lock mode;
// neither is held while the other is taken. Close must not run while another method does.
//
// Floor 0: it imports nothing of this module but pkg/fault.
package fsx
