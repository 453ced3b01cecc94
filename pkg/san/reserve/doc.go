// Package reserve fences: it decides, on the logical unit itself, whose writes are let in.
//
// The means are SCSI-3 persistent reservations, used as RFC 8154 (the SCSI layout of pNFS) uses them: the metadata server holds an
// Exclusive Access - Registrants Only reservation, every node registers a key of its own before it reads or writes, and the server
// preempts the key of a node that it cannot reach. From then on the unit refuses that node's commands, also those that it sends
// hours later: this is what a lease, which only the node itself can keep, does not give.
//
// Unit is the port: pkg/san/scsi implements it over any SCSI transport, Kernel over the ioctls of a block device (linux/pr.h).
//
// # What it does not give
//
//   - It stops the dead and the slow, not the hostile: a fenced node can register again by itself. Node code registers only with a
//     grant; who does not trust a node needs LUN masking or a CHAP secret per initiator.
//   - Its grain is the logical unit: every registrant can write every block.
//   - A unit that cannot abort (Preempt says so) may still carry out commands that it had accepted: the fence holds from then on
//     only after the longest time that a command takes.
//   - Reservations outlive everybody. Clear takes them away.
//
// The package starts no goroutine. Floor 2: it imports pkg/fault and x/sys only.
package reserve
