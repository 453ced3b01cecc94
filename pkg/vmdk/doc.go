// Package vmdk is one link of a VMDK disk: the descriptor, its extents, and the grain tables of sparse extents.
//
// Responsible for: parsing and writing descriptors without losing what it does not know; creating links durably;
// opening links of all types of types.go; reading
// streamOptimized disks, by their tables or out of a pipe, and writing them; reading SESparse extents with their journal; grain
// table lookup, change and write-back; allocation of grains; growth; checking, recovering and repairing the structure
// (check*.go, recover.go, repair*.go). How links form a disk that is read and written is package chain.
//
// Invariants:
//   - A read-only Link never writes, not even a flag.
//   - The bytes of a flat extent are never interpreted: what a file is comes from the descriptor, and a file with an
//     embedded descriptor is known by its KDMV header, which no guest can write.
//   - An extent name is one path element of the descriptor's directory, or the link is refused.
//   - A descriptor becomes visible only after its extents are durable; a grain-table entry is written only when the
//     grain it names is durable (the caller syncs between Freeze and WriteTables).
//   - Repair writes only what was planned and checked on an overlay, after the undo file is durable.
//   - The grain table and its redundant copy are equal at every clean close.
//   - Memory follows the file's size, never a claim of its header; grain tables are loaded when first needed.
//
// Goroutines and locks: only a StreamWriter starts goroutines, and its Close waits for them. Lookups are lock-free once a table is loaded; Extent.mu
// guards loading, changing and evicting tables, Extent.allocMu the allocator; neither is held while calling out of
// the package, except for file I/O. Grow, Close and Recover need the caller to keep all other calls away.
//
// Floor 1: it imports internal/fsx and pkg/fault. It must not import pkg/vmdk/chain, Kubernetes, gRPC or klog.
package vmdk
