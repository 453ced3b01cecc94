// Package iscsi is an initiator in user space: it carries SCSI commands to one logical unit of an iSCSI target (RFC 7143), so that a
// node without the kernel's initiator, or a process without the right to use it, reaches a LUN by its own path.
//
// A Session is a scsi.Transport with one connection. It logs in without authentication or by CHAP (one way or both), with or without
// CRC32C digests, and follows redirections.
//
// # What happens when the connection is lost
//
// The session logs in again with the same ISID: for the target this reinstates the session, and it ends every task of the old one
// (section 6.3.5), so no old write can come behind a new one. Then commands that were not answered are sent again if they are
// Repeatable; the outcome of the others is unknown, which is what their error says. What callers feel is a pause. After
// Config.Recover without a connection every waiting command fails with Unavailable; the session goes on trying as long as it is
// open, because the next command may find the target again. Registrations of a persistent reservation belong to the initiator's
// name and ISID, and so outlast this.
//
// Error recovery level 0 is all that is spoken: a digest that is wrong, an answer that nobody asked for and a target that does not answer
// pings end the connection.
//
// # Goroutines and locks
//
// A Session owns one goroutine that connects, and for each connection one that reads, one that writes and one that watches the
// clock; Close waits for all. A connection is given up by closing it, and its goroutines have ended before a command of it is sent
// again or fails: nobody touches a Command's memory after Do returned. Session.mu guards the queue and the tasks and is not held
// while the network is used.
//
// Floor 2: it imports pkg/fault, pkg/san/scsi and the standard library only.
package iscsi
