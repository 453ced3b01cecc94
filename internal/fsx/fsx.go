package fsx

import (
	"io"
	"io/fs"
)

// Flag says how a file is opened.
type Flag int

// Open flags; ReadOnly is the zero value.
const (
	ReadOnly  Flag = 0
	ReadWrite Flag = 1 << iota
	Create         // make it if it is missing (needs ReadWrite)
	Exclusive      // with Create: fail with fs.ErrExist if it is there
	Direct         // bypass the page cache where the file system can; unaligned requests still work
)

// Dir is an open directory of a datastore. Every name is one path element: "", ".", "..", a NUL or a slash in it
// gives fault.Invalid. Nothing in it follows a symbolic link. Methods may be called concurrently.
//
// The method count has its reason: these are the directory operations whose order decides what a crash leaves, and
// one seam must see them all.
type Dir interface {
	// Open opens a regular file; anything else (device, FIFO, socket, link) is fault.Invalid.
	Open(name string, flag Flag) (File, error)
	// Sub opens a directory below this one.
	Sub(name string) (Dir, error)
	// Mkdir makes a directory; fs.ErrExist if the name is taken.
	Mkdir(name string) error
	// LinkFrom makes name here a further hard link of srcName in src (link(2): atomic, fs.ErrExist if taken).
	LinkFrom(src Dir, srcName, name string) error
	// Rename replaces newName atomically.
	Rename(oldName, newName string) error
	// Remove unlinks a file or an empty directory.
	Remove(name string) error
	// List returns the names, sorted.
	List() ([]string, error)
	// Stat describes a name without following links.
	Stat(name string) (Info, error)
	// Sync makes the entries of this directory durable (fsync of the directory).
	Sync() error
	// Space is the capacity and what is free for this process, in bytes.
	Space() (total, free int64, err error)
	io.Closer
}

// Info is what Stat tells.
type Info struct {
	Inode     uint64
	Device    uint64
	Links     uint64      // st_nlink
	Size      int64       // bytes
	Allocated int64       // bytes in use on the medium (st_blocks * 512)
	Mode      fs.FileMode // type bits matter: IsRegular, IsDir
}

// File is an open regular file. Methods may be called concurrently, Close excepted. ReadAt beyond the end gives io.EOF
// as in io.ReaderAt; WriteAt beyond the end grows the file.
type File interface {
	io.ReaderAt
	io.WriterAt
	// Datasync makes data and size durable (fdatasync). After it failed once every later Datasync of this file fails:
	// the kernel may have dropped the pages (fsync(2), ERRORS), so a retry proves nothing.
	Datasync() error
	Truncate(size int64) error
	// Allocate reserves space for the range and grows the file to its end if needed (fallocate mode 0). Where the file
	// system cannot, fault.Unsupported.
	Allocate(off, n int64) error
	// Punch frees the range, which then reads as zeros; the size stays. Where the file system cannot (NFS before 4.2),
	// fault.Unsupported, and nothing is changed: writing zeros instead would take the space that is to be given back.
	Punch(off, n int64) error
	// Zero makes the range read as zeros and keeps it allocated where the file system can, else it writes zeros; the size
	// stays.
	Zero(off, n int64) error
	// Clone shares or copies a range of src into this file (FICLONERANGE, else copy_file_range, else read and write).
	Clone(src File, srcOff, dstOff, n int64) error
	// SeekData is the first data run at or after off: [start, end). No more data: io.EOF.
	SeekData(off int64) (start, end int64, err error)
	// Lock takes open-file-description byte locks without waiting: fault.InUse if another open file holds them.
	Lock(l LockMode) error
	Stat() (Info, error)
	io.Closer
}

// LockMode is who else may have the file open.
type LockMode int

// Lock modes. Besides its own byte each takes the bytes qemu locks for the same meaning (qemu block/file-posix.c,
// RAW_LOCK_PERM_BASE 100 and RAW_LOCK_SHARED_BASE 200), so that qemu refuses a live disk and we refuse one qemu writes.
const (
	Unlock    LockMode = iota
	LockRead           // many readers, no writer
	LockWrite          // one writer, no other opener that locks
)
