// Package datastore keeps disks in a directory: layout, records, the name journal, manifests, inventory, garbage
// collection and capacity.
//
//	<root>/.vmdk-csi/datastore.json                 identity (UUID) and version
//	<root>/names/<key>                              record that owns the name of a volume or of a snapshot
//	<root>/volumes/<id>/record.json                 id, name, uuid, specification: fixed before any extent exists
//	<root>/volumes/<id>/manifest-<epoch>-<seq>.json links, sizes, capacity steps, snapshots, merge, owner, clean release
//	<root>/volumes/<id>/disk.vmdk ...               plain VMDK
//	<root>/volumes/.deleted-<id>-<random>           a deleted volume whose files are being removed
//
// Every JSON file ends in a line "sha256 <hex>" over all bytes before it, is never changed after it got its name, and
// gets its name by link(2) (publish in commit.go), so that one of several writers wins on a local file system and on
// NFS alike.
//
// Invariants:
//   - A name has at most one record (I4): names/<key> is made by link(2) and removed only when its volume is deleted.
//   - The highest manifest of a volume is its truth. An invalid one is fault.Damaged, never skipped: skipping it would
//     go back in time, to files that are gone or to an owner that was replaced. The one before it is kept as well.
//   - Before a manifest is committed the files it will name are garbage, after it the files it does not name are.
//     Collect removes exactly these (I6).
//   - The root is never made: a mount that is missing must not become a directory on the root disk.
//   - Numbers of manifests only rise. A commit that comes to its number when a higher one is there did not happen: its
//     number is free only because everything below the last two was removed (Commit).
//   - A commit whose outcome is unknown poisons the Volume: it must be opened again, which reads what happened.
//
// Snapshots live in the manifest of their volume. A snapshot's name record is reserved before the manifest has it and freed
// after the manifest has it no more, so a record alone proves nothing.
//
// Locks (none with Options.NoLocks): Volume.Lock takes a byte lock on record.json for one operation, which excludes other processes of this host
// and, where the file system has locks between hosts, of others. Datastore and Volume hold no mutex; a Volume belongs
// to one goroutine, a Datastore may be used by several. The package starts no goroutine.
//
// Everything goes through internal/fsx. The package knows no VMDK byte, no CSI and no Kubernetes, and takes names,
// keys and ids as given. Floor 2: it imports pkg/lease, internal/fsx and pkg/fault.
package datastore
