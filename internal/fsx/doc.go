// Package fsx is the seam through which everything of this module reaches a file on a datastore.
//
// Crash enumeration records and cuts what passes here; a write that goes around fsx is a write that no crash test sees.
// A Dir cannot be escaped: names are single path elements, symbolic links are never followed.
// fsx.OS opens real directories (openat2 with RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS); fsx/sim is an in-memory file
// system with a model of power loss. Both pass fsx/fsxtest.
//
// Floor 0.
package fsx
