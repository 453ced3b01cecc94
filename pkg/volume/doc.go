// Package volume is what can be done with the disks of one datastore, as resumable steps: create (also from a snapshot or
// a disk), delete, get, list, expand, open for an attach, release; snapshot; consolidate, flatten.
//
// Every use case is a numbered protocol in the comment of its method, with what a crash between two steps leaves. Each
// may be repeated at any time, by this process or by another; the repetition finds on the datastore what the earlier
// one did, and undoes only what it made itself.
//
// Invariants:
//   - A change of a disk happens under an owner epoch that was committed first (pkg/lease): of two hosts that want to
//     change or attach one disk, the commit of the next manifest lets one win.
//   - One operation at a time works on a disk: a keyed lock in this process, the record's byte lock between processes.
//     A busy disk is fault.InProgress at once; nothing waits.
//   - A released manifest records the CIDs and sizes that the descriptors have (I3).
//   - Descriptors belong to one directory; extents may be shared between directories by hard links. An extent that has
//     another name elsewhere is never written: a frozen head gets a child, and no merge goes into such a link. New names are
//     made under the epoch of the disk that has the extent, so its owner can rely on the link count.
//   - A snapshot ends at a link that is not written any more. Only a merge into that link, which leaves its content as it
//     is, may change its files, and then its content ID in the manifest with them.
//   - A merge is an intent in the manifest before it begins. A commit of its result says which descriptors may be behind;
//     they are rebound before anything reads them.
//
// A disk that is attached on this host is changed through the Server of its worker; no use case waits for another host.
//
// The package reads the VMDK files through Engine only, which engine*.go implements with pkg/vmdk and pkg/vmdk/chain.
// It knows neither CSI nor Kubernetes and starts no goroutine.
//
// Floor 4: it imports pkg/datastore, pkg/lease, pkg/vmdk, pkg/vmdk/chain, pkg/host (the vocabulary) and floor 0.
package volume
