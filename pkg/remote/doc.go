// Package remote lets a node use disks of a datastore that another host has open: the control protocol, both ends of it, and
// the disk of a client, which changes between the LUN itself (SAN, pkg/san) and NBD (pkg/nbd) while it is used.
//
// # Control
//
// JSON over HTTPS, TLS 1.3 with certificates on both sides. The common name of the client's certificate is the node's name and must be
// the node of the request. Failures are faults; one with status 421 says that the datastore is served elsewhere. A Client asks the server
// that answered last, then all peers who serves. All calls may be repeated, also to another server.
//
// A LUN has one server. A directory (Spread) may be served by several hosts, of which one has a disk open for the node: "serves" is asked
// with the disk, and answered with whether it is open for the node. What goes on with a session, or ends it, goes to that host alone: until
// it answers nobody serves. Everything else may go to any host that has the disk.
//
//	/v1/create delete get list expand snapshot/... space   host.Disks, host.Snapshots
//	/v1/open     the server has the disk open for the node; a ticket for one session of NBD
//	/v1/close    the node has no process any more that uses the disk
//	/v1/evict    another node, which is dead, loses the disk
//	/v1/map      a block map, or with "check" why there is none
//	/v1/renew, return, recall   of a map; recall answers when the map is wanted back, or after 30 s
//
// A session is one OpenDisk. Its number grows with the node's clock; a request of an earlier one is fault.Fenced, so that a process that
// should be dead gets nothing.
//
// # Who may write where
//
// At any time a disk is written by one way: by its server for NBD, or by the node for SAN. What makes that true is the server's:
//
//	a map is made only when no connection of NBD has a request any more (tickets revoked, connections ended, waited for);
//	a connection begins only when no read-write map is out;
//	a map that is out keeps other nodes from opening the disk, also at a server that was started anew (its grants are durable).
//
// From NBD to SAN, tried at the opening, and every Retry while NBD serves:
//
//  1. The server is asked for a map without a grant, and the LUN that it names is opened and looked at. Nobody waits for this; what is
//     refused is the reason in State.
//  2. New requests wait; those under way end.
//  3. NBD is flushed and its connections are closed. (Server dies: its successor is flushed, after it got what was lost.)
//  4. The map is got. (Refused, or the LUN is gone: NBD again. The answer is lost, with its server or on its way: who opens the disk for
//     NBD, or asks again, says that it has no map, and the grant ends. Such a request that is late, and arrives behind one for a map, is
//     refused by its number. Our process dies: its successor's session ends the grant.)
//  5. Requests go on by the LUN.
//
// From SAN to NBD, when the map is recalled or has ended, or a request on the LUN has failed:
//
//  1. New requests wait, and so does the request that failed; those under way end.
//  2. The LUN is flushed and the map returned. (Process dies before: what was flushed is there, as for any disk.)
//  3. If it could not be flushed, because the path or the lease is gone, the server ends the grant. (No server: a pause, up to Patience.)
//  4. What the LUN had acknowledged and no flush has covered was kept (kept, at most 64 MiB: then it flushes); it is made again through the
//     server and flushed. A flush through another path alone would not tell that the LUN's cache has lost something. (Server dies: again from the
//     beginning. Our process dies: what was flushed is there.)
//  5. NBD is connected. Requests go on, the failed one is done again: its user has seen no error.
//
// A request that failed on the LUN must not be executed later: that is a duty of OpenLUN's file. A device of the kernel keeps it; an iSCSI
// session ends the connection, and with it what was sent (san/lunpath). A process that dies with requests in its sockets leaves them to
// the target for moments: who opens the LUN next as the same initiator ends that session (RFC 7143, 6.3.5).
//
// # A server that is gone
//
// By NBD it is a pause: nbd.Client finds the successor, opens the disk there, and sends again what was acknowledged and not flushed. An
// opening that is another one, in whichever process, is told from the one before by the value of Export.Device. Who loses its right
// to the disk ends Export.Revoked first: nothing is answered any more, so that no client takes that failure for one of the disk. By SAN
// nothing happens as long as the lease lasts; the question for a recall breaks, and the disk is opened at the successor before it is asked again.
//
// # Closing
//
// Disk.Close flushes and returns the map. Client.CloseVolume, when no process uses the disk any more, revokes tickets, waits for
// requests, ends maps that a dead process had, and has the server close and release the disk.
//
// # Eviction
//
// A node that is dead closes nothing. Any host with a certificate of the authority may have its disk taken away; that the node is down
// is the asker's knowledge, and being wrong costs the node its disk, never the disk its content:
//
//  1. It is durable that the node has lost the disk (Evictor.Expel). From now on its processes are refused (Fenced), at a successor too.
//     (Server dies: the disk is open for the node still, and for nobody else. Who asked asks again, the successor.)
//  2. Its tickets are revoked, its connections closed, and what runs ends. (Dies: as 1.)
//  3. Its block maps are not renewed; they end after the node was fenced, or lease, MaxIO and margin are over (san.Server.Evict).
//     (Dies: as 1; the successor gives a map that is out its whole time anew.)
//  4. The disk is flushed and released; the session ends (Datastore.Close). (Dies: as 1, or it is done.)
//
// A request that is repeated goes on where it is; one for a node that has nothing is done. The node's host, if it lives, may open the disk
// anew when nobody else has it (a request without a session): its worker of before never does.
//
// # Goroutines and locks
//
// A Disk has one goroutine that makes every change of the way (keep), and by SAN two more: one renews the lease, one listens for a recall;
// Close waits for them. Disk.mu guards the gate and is not held during I/O. Server.Serve owns its listeners, their connections and their
// handlers, and waits for them. What opens, closes or maps one disk of one node takes turns (attached.turn); attached.mu guards the rest.
//
// Floor 3: it joins pkg/nbd and pkg/san, and knows no disk format.
package remote
