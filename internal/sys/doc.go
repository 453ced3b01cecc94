// Package sys wraps the Linux system calls that this module needs and that golang.org/x/sys/unix leaves raw: page
// aligned buffers, detached mounts, pidfds, memfds, and the walls a disk worker puts around itself (Landlock, seccomp,
// capabilities).
//
// Nothing here keeps state or starts a goroutine. A descriptor that a function returns belongs to the caller; a
// descriptor that it is given stays the caller's.
//
// Floor 0: it imports only the standard library, x/sys and pkg/fault.
package sys
