// Package scsi speaks to one logical unit: it is a block.Device, it has an identity, and its reservations fence.
//
// What carries the commands is a Transport: pkg/san/iscsi is one. The commands are those of SPC-4 (INQUIRY, PERSISTENT RESERVE) and
// SBC-3 (READ, WRITE, SYNCHRONIZE CACHE, WRITE SAME); a comment cites the section that a fact comes from.
//
// # Invariants
//
//   - Sense data decides: a unit attention is the unit's news and not the command's failure, so the command is sent again; a
//     reservation conflict is fault.Fenced and is never repeated; every other failure of a command is told.
//   - A range that was discarded reads as zeros: UNMAP alone is a hint that a unit may ignore (SBC-3 section 4.7.3.4), so a discard is
//     WRITE SAME with the UNMAP bit, which writes zeros where the unit will not unmap.
//   - What was acknowledged and not flushed is kept, up to 32 MiB, and written again when the unit says that it was reset or switched on:
//     its cache may have lost it. So a target that is started anew is a pause. A flush that fails is final (fault.Poisoned).
//
// A Unit starts no goroutine. Its RWMutex orders requests that do not begin and end at a block's edge against all others.
//
// Floor 2: it imports pkg/block, pkg/fault and the standard library only.
package scsi
