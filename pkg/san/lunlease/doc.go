// Package lunlease decides who owns a LUN: of all hosts that reach it, one at a time is the metadata server of the store on it.
//
// The means is one block of the LUN (store.LeaseAt) that all can read and write. It is a delta lease, as sanlock has them (G. Chockler and
// D. Malkhi, Light-weight leases for storage-centric coordination): no lock, no message between hosts, only the passage of time, which every
// host measures for itself by CLOCK_BOOTTIME.
//
// # The block
//
// 4096 bytes at store.LeaseAt, little-endian; all but the first 512 are zeros, so that a torn write is none or all:
//
//	 0 8 "VMDKLEAS"                         40  8  beat: counts up while the owner lives
//	 8 4 version, 1                         48  4  the owner's Expiry, milliseconds
//	12 4 CRC32C of 512 bytes, itself zero   52  4  state: 1 owned, 2 released
//	16 16 id, drawn by each Acquire         56  2  length of the host's name, 58 2 that of the address
//	32 8 generation: counts up with owners  60 ..  both
//
// # Protocol
//
// Acquire:
//
//  1. Watch: read the block every Period until it is as before for the longer of the two Expiries, or is released, or was never used. (Crash
//     of the watcher: nothing happened.)
//  2. An owner that died without a release is fenced (Options.Unit, Options.Fence), then the block is read again: still the same.
//  3. Claim: write the block with a new id, the next generation and beat 1, and sync. If that was done later than two Periods after
//     step 2's (or 1's last) read began, the claim is void: start again. (Crash: the claim looks like an owner that does not beat, and
//     is watched until it expires.)
//  4. Settle: wait two Periods, and take the LUN's reservation, where it has reservations.
//  5. Read the block: it is still the claim, so the LUN is ours. Else start again.
//
// The owner beats every Period: read the block, which is still its own, and write it with the next beat. Release writes it as released
// when no I/O is under way and nothing can begin any more.
//
// # Why there are never two
//
// A claim that counts was written at most two Periods after its maker read a block that nobody owned. If A passed step 5, then such
// a claim of B was made after a read that had not seen A's, so it was written within two Periods of A's: before A's step 5, which would have seen
// it. What comes later is void, and its maker knows. A beat that comes late is of an owner that knows that its lease is over: it counts from when the
// last beat that was in time was sent, and ends a tenth of Expiry earlier than others count, which is more than clocks differ.
//
// # What the lease stops, and what not
//
// Lease.File is the LUN for whoever has the lease: what would begin with less than MaxIO of it left waits for the next beat, and fails with
// fault.Fenced when none comes. So a host that hangs and wakes up writes nothing. What it cannot stop is a request that was let through
// and then takes longer than MaxIO to reach the medium: stuck in a driver, in a switch, or in a process that was stopped between the look at the clock and the
// system call. If it is a Release, it may free the LUN of the next owner, who notices with his next beat. Only the array can: Options.Fence is where the dead owner's reservation key is preempted (package reserve).
//
// A LUN whose lease was lost is opened anew before the next Acquire: what keeps acknowledged writes to repeat them after a target's
// reset (package scsi) keeps those of the lost time, too.
//
// # Goroutines and locks
//
// A Lease owns two goroutines, one that beats and one that watches the clock, because a beat may hang; Release waits for both and for
// all I/O through File. Lease.mu guards the times and the count of requests, and is not held during I/O.
//
// Floor 2: it imports pkg/san, pkg/san/store, pkg/san/reserve, internal/fsx and pkg/fault.
package lunlease
