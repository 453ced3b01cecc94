// Package lun keeps disks on LUNs that several hosts reach: the metadata server of a LUN, and the host that has such datastores
// beside those of its base. It also lends disks in directories to hosts that do not reach them.
//
// # Roles
//
// Of the hosts that have a LUN one owns it (san/lunlease, Owner) and is its metadata server (Server): it has the store open, makes,
// deletes, snapshots and merges disks, and has every disk that a node uses open in its own process. It serves nodes over NBD and
// grants block maps (pkg/remote carries both). All hosts, the owner included, use its disks as its clients (Host): the worker process
// of an attached disk reads and writes the LUN by a map, or asks over NBD, and changes between them while it runs.
//
//	node                                  metadata server
//	Host ── remote.Client ─────────────▶  Server ── Inner (host/local over the store, in this process)
//	  └ worker ── remote.Disk ── NBD ──▶    └ Serving: the chain of a disk that a node has
//	                 └─ block map ── LUN ◀──────┘
//
// # Directories
//
// A disk in a directory that a node does not reach (its mount is away, the directory is another node's, or the datastore is unknown there)
// is attached by NBD alone, through a host that reaches it, if the order of transports has NBD: Host tries its base first, or last, as
// the order says. Every host shares the directories of its base (Share): a Server without a store or maps, whose inner host is the base
// itself. To attach is to lend there (Lender): the base opens the disk in this process, for no device and no slot, and it is none of
// this node's attachments. Any host that reaches a directory may lend a disk of it, so clients ask for each disk who has it
// (remote.Spread). Which node has a disk through this host is in files of its state directory, and which disks a node has
// through others in its own (borrowed.json).
//
//	node                                   a host that reaches the directory
//	Host ── remote.Client ──────────────▶  Share ── base (host/local)
//	  └ worker ── remote.Disk ── NBD ───▶    └ Serving: the chain of a disk that a node has
//
// # Invariants
//
//   - What the server does is the inner host's, whose manifests name the store as the owner of a disk (lun-UUID), and the server's
//     start as its boot: a server that comes after another finds its disks as after a restart of the machine, and checks them.
//   - Which node has a disk is in a file of the store (sessions), written before the disk is opened and removed after it was closed.
//     A new server opens every such disk before it answers anybody, so that a change of it finds the maps that are out.
//   - While links or size change nobody has a map: they are recalled first, and none is made meanwhile (Serving.alone). A map for
//     writing is of a flat disk of one link.
//   - A disk that is lent is attached, deleted and claimed by nobody else at its host, and served there again after a restart before
//     another node can have it; its node waits meanwhile, and takes no other host that reaches the directory for the lender.
//   - What was answered over NBD survives the server's death (device): a node does not write again what it was told is written.
//   - A server that lost its lease writes nothing (lunlease.File), and cuts its clients off before their requests can fail.
//   - With reservations (Path) a node's map ends by preempting its key, before its disk goes elsewhere. Where there are none, and the
//     administrator did not say lease-only, there are no maps for writing.
//   - A node that is dead loses a disk by eviction (pkg/remote). The session says so before anything is taken, and remembers it until the
//     node's host opens the disk anew: a process of the node from before never gets it back.
//   - Disks on LUNs have the base's bus, and their attachments name their datastore: that is how Sync knows whose one is.
//   - An id is the base's unless a LUN has it. LUNs are asked where the call does not tell (host.WithDatastore) and nothing was seen.
//
// # Goroutines and locks
//
// Owner.Run owns the server and what that starts (Server.Run: consolidation); the caller owns Owner.Run. Sync, Datastores and searches start
// goroutines that they wait for. Server.busy and Host.busy are the locks of operations on one disk, taken without waiting; Server.mu,
// sessions.mu, Serving.mu, Host.mu, claims.mu and borrowed.mu are leaves, held across no I/O but the last two across their file's.
//
// Floor 5. It must not import pkg/worker or another adapter: Inner, Lender, Client and Workers are what cmd wires in.
package lun
