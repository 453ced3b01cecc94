// Package volume is what can be done with the disks of one datastore, as resumable steps: create, delete, get, list,
// expand, open for an attach, release.
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
//
// The package reads the VMDK files through Engine only, which engine.go implements with pkg/vmdk and pkg/vmdk/chain.
// It knows neither CSI nor Kubernetes and starts no goroutine.
//
// Floor 4: it imports pkg/datastore, pkg/lease, pkg/vmdk, pkg/vmdk/chain, pkg/host (the vocabulary) and floor 0.
package volume
