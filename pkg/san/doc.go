// Package san lets nodes read and write disks directly on a LUN: block maps, the server that grants them, and the device that
// a node makes of one.
//
// # Roles
//
// The owner of a store (san/store) is the metadata server. Its Server grants maps of what a Source opens, knows who has which
// until when, and gets them back. A node opens the LUN by a path of its own and makes a Mapper of a Map, which is a block.Device.
// How requests travel between them is the caller's: Request, Map and Renewal are plain data.
//
//	node                                   metadata server
//	sent := Now()
//	Get(Request)          ───────────────▶ Server.Get: rules, grant durable, map composed
//	NewMapper(map, luns, sent): validate, identity of the LUN through the node's own path
//	Mapper.Renew(...)     ───────────────▶ Server.Renew: again a lease; tells of a recall
//	Mapper.Return(...)    ───────────────▶ Server.Return: the grant ends
//	                                       Server.Expire: who was silent is fenced, then its grant ends
//
// # Rules
//
//   - A read-write map is of a flat disk without snapshots whose extents all have places, and which nobody else has a map of.
//     Read-only maps are composed: each run of the chain is where its file is, or zeros.
//   - A grant is durable before its map leaves the server. What its map names is not used for anything else before the grant
//     ended, also by a server that was started anew (store.AddGrant).
//   - A node's lease counts from when the node sent its request, on CLOCK_BOOTTIME, the server's from when it answers. A node
//     starts no I/O when less than MaxIO of its lease is left, it waits for a renewal; after the lease it has no map. The server
//     waits Lease + MaxIO + Margin before silence means death.
//   - A grant of the dead ends after the node was fenced, never before. Without a Fencer, time alone stops a node that hangs in
//     the middle of a write: read-write grants to other nodes then need Config.LeaseOnly.
//   - A server that was started anew grants nothing read-write for one lease, in which nodes renew what they have.
//   - A node believes nothing: a map's extents are sorted, without gap, inside the LUN and of whole blocks, and its digest is right.
//
// # Goroutines and locks
//
// No goroutines: who owns a Server calls Expire from time to time, who owns a Mapper calls Renew (or Run). Server.mu is not
// held across calls of a Source, a Fencer or the store; grants that are being made or ended are marked instead. Mapper.mu
// guards the lease and the count of requests under way, and is not held during I/O.
//
// Floor 2: it imports pkg/block, pkg/fault, internal/fsx and its own subtree. It knows no VMDK: a Source says where runs are.
package san
