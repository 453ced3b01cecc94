// Package fiemap asks a file system of the kernel where a file is, and refuses wherever the answer could not be trusted.
//
// It is the second best way to a block map, for datastores whose file system cannot be given up for an extent store, and it
// is off unless somebody asks for it: the kernel's own document (Documentation/filesystems/fiemap.rst) calls every use of these
// addresses on a mounted file system undefined. What makes it work all the same, on ext4 and XFS as they are:
//
//   - Map accepts only files whose content is where FIEMAP says and nowhere else: no holes to be written, nothing unwritten,
//     shared, inline, encoded, encrypted or journalled, all in blocks of 4 KiB; a file system on one device that is the LUN or a
//     partition of it.
//   - A file that is to be written from outside is immutable (chattr +i), which keeps the kernel from truncating, writing and
//     defragmenting it, and has one name; its XFS has no reflink, because a copy would share blocks in spite of +i.
//   - Prepare makes such a file: allocated, and zeros written over all of it, since a block that is "unwritten" for the file
//     system reads as zeros whatever was written to the LUN.
//   - Fingerprint tells at each renewal whether anything moved after all. Then the map is void and its node has to be fenced.
//
// What it cannot give: the file system's cache does not see what is written to the LUN. Nobody reads the file through the
// file system while a read-write map is out, and DropCache comes before anybody does afterwards.
//
// No goroutines, no locks. Floor 2: it imports pkg/fault and golang.org/x/sys.
package fiemap
