// Package nbd serves disks over the NBD protocol and uses disks that are served so: the transport that is always possible.
//
// Responsible for: the protocol (fixed newstyle, TLS, simple and structured replies, contexts), who may have which export
// (Resolver, Tickets), bounds against hostile peers, and a client that survives its server. What is cited as proto.md is
// doc/proto.md of https://github.com/NetworkBlockDevice/nbd.
//
// # Server
//
// A connection has one goroutine that reads requests. While the disk answers small requests in some microseconds, as from the
// page cache, it serves those that have arrived together itself, and answers them by one system call: a goroutine switch for each
// would cost more than the work. Else, and for long requests, flushes and the like, it passes them to up to maxWorkers goroutines, which
// answer in any order. Long structured reads are sent in pieces, holes as holes.
//
// Connections that come from no unix socket must use TLS (proto.md, FORCEDTLS), never below 1.3, by the configuration that the server was
// given; ServerTLS makes one that asks for a certificate. Bounds: the length of options and their number, contexts, 32 MiB in a request, 64 MiB
// in flight on a connection, MaxBytes on all, the number of connections; a handshake, the rest of a request, and the acceptance of a reply have deadlines.
//
// Contexts: base:allocation, and those an Export adds; what serves VMDK chains adds vmdk:changed:LINK, whose flag 1 means that
// the range was written after the link got a child, in whole grains.
//
// # Client, and what it promises
//
// Client is a block.Device whose server may die and come back, as hostd does: that is a pause, up to ClientOptions.Patience. Two things
// need care, and are the protocol of this section.
//
// Acknowledged writes. A server that dies may lose what it acknowledged and did not flush (a sparse extent's table lives in its memory
// until a flush). Nobody above a block device expects that while the machine runs. So the client keeps every change since the last
// flush (bounded: at KeepBytes it flushes by itself), and
//
//  1. a change is kept by the goroutine that receives its acknowledgement, before the caller learns of it;
//  2. a flush notes the last change that is kept, and is sent; when it succeeds, what is kept up to there is forgotten;
//  3. when any connection breaks, all of them are closed, and every goroutine that receives has ended before 4;
//  4. the next session is made. If the server does not prove that it is the same instance (a random number in the description of the
//     export), every change that is kept is sent again, in the order in which they were issued;
//  5. unanswered requests are sent again: all commands are idempotent. A flush too: it covers what 4 has sent.
//
// Changes of overlapping ranges are never in flight together, so that the order of 4 and 5 is the order in which they took effect.
// Windows: a crash of the server between an acknowledgement and 1 leaves the request unanswered: 5. Between a flush's success at the server and 2:
// it is repeated. During 4: it begins again with the next session. If the client's own process dies, what was not flushed is lost where the server
// dies as well; that is the promise of every disk. If patience ends, the device fails for good (fault.Unavailable), and
// says so also to later flushes: a flush never succeeds for changes that a server has lost.
//
// Late writes. A request of a broken connection may still be about to run in a living server, when the same range has been written
// anew through the next session. So the client names its session: a random id and an epoch that grows with every reconnection, as
// the query "vmdk:session:ID:EPOCH" of NBD_OPT_SET_META_CONTEXT. Our server then closes the connections of older epochs and answers when none of their
// requests runs any more; connections of an old epoch that come late are refused. Other servers ignore the query (proto.md lets them). With those
// the window stays open as long as a request can hang in them; a server that died has none. Two servers of one disk at a time are ruled out by
// the lock of the disk.
//
// # Tickets
//
// A Ticket is a right to open one disk or snapshot, for reading or writing, from one node: 128 random bits, used as the name of the
// export. It is bound to the client's certificate, found by the hash of the bits, expires if it is not used, counts its uses, and
// ends when it is revoked, which closes its connections. It is in no log: its String is a prefix of its hash, and NBD_OPT_LIST is refused.
//
// # Goroutines and locks
//
// Server: one per connection, plus its workers, which it waits for; Close waits for all connections. Server.mu guards the tables of
// connections and sessions; no I/O under it but closing. conn.out is held while a reply is written.
// Client: one per connection that receives, and one that reconnects; Close waits for them. Client.mu guards the state; no I/O under it. The
// lock of a connection's sender is held while a request is written.
//
// Floor 2. It imports pkg/block and pkg/fault; it knows no disk format.
package nbd
