// Package takeover proves that no process's death loses an acknowledged write (invariant I8): it kills the processes of
// the data path with SIGKILL at random moments while verifying writers run over the kernel's block device. Disks of a LUN that
// another host has open are among them: their servers move and their block maps are recalled as well.
//
// VMDK_CSI_TAKEOVER=full kills ten times per case, otherwise three times; SEED replays the moments.
package takeover
