package lease

import (
	"math"
	"strings"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Identity is a host that may own a disk.
type Identity struct {
	// Host is the stable name of the machine, the same after a restart (its Kubernetes node name).
	Host string `json:"host"`
	// BootID changes with every start of the machine's kernel (/proc/sys/kernel/random/boot_id, random(4)).
	BootID string `json:"bootID"`
}

// State is a disk's ownership, as a manifest records it.
type State struct {
	// Epoch counts acquisitions, from 1. It names the owner: no two owners have the same one.
	Epoch int64 `json:"epoch"`
	// Seq counts the manifests of an epoch, from 1.
	Seq int64 `json:"seq"`
	// Owner is who holds or last held the epoch.
	Owner Identity `json:"owner"`
	// Released is the clean release record: the owner flushed and closed everything.
	Released bool `json:"released"`
}

// Before is what the previous owner left behind.
type Before string

// What Acquire finds.
const (
	Clean    Before = "clean"    // released: nothing to check
	Crashed  Before = "crashed"  // not released, by this host since its last start: its page cache is intact
	Rebooted Before = "rebooted" // not released, by this host before its last start: full unclean check
)

// Acquire is the state that makes me the owner after cur, and what cur's owner left. The caller commits it; who loses
// the race of that commit does not own the disk. Kinds: InUse (another host has not released it), Invalid.
func Acquire(cur State, me Identity) (State, Before, error) {
	if err := me.Check(); err != nil {
		return State{}, "", err
	}
	if cur.Epoch < 0 || cur.Epoch == math.MaxInt64 {
		return State{}, "", fault.New(fault.Damaged, "", "owner epoch %d has no successor", cur.Epoch)
	}
	next := State{Epoch: cur.Epoch + 1, Seq: 1, Owner: me}
	switch {
	case cur.Epoch == 0, cur.Released:
		return next, Clean, nil
	case cur.Owner.Host != me.Host:
		return State{}, "", fault.New(fault.InUse,
			"Detach it there first. If that host is gone for good and surely does not run any more, its claim must be fenced before another host may write.",
			"the disk is held by host %q (epoch %d) without a clean release", cur.Owner.Host, cur.Epoch)
	case cur.Owner.BootID != me.BootID:
		return next, Rebooted, nil
	}
	return next, Crashed, nil
}

// Next is the state of the owner's next commit within its epoch.
func Next(cur State) State {
	cur.Seq++
	return cur
}

// Release is the clean release record after cur. Kinds: Precondition (released already, or me is not the owner).
func Release(cur State, me Identity) (State, error) {
	if err := Holds(cur, cur.Epoch, me); err != nil {
		return State{}, err
	}
	next := Next(cur)
	next.Released = true
	return next, nil
}

// Holds says whether me still owns epoch in cur: a successor process asks this before it serves the disk again.
// Kinds: Precondition.
func Holds(cur State, epoch int64, me Identity) error {
	if cur.Epoch == epoch && !cur.Released && cur.Owner.Host == me.Host {
		return nil
	}
	state := "held"
	if cur.Released {
		state = "released"
	}
	return fault.New(fault.Precondition, "Attach the disk again.",
		"host %q does not own epoch %d: epoch %d is %s by host %q", me.Host, epoch, cur.Epoch, state, cur.Owner.Host)
}

// Check says whether the identity can own a disk: both parts are needed, of printable characters, at most 253 bytes.
func (i Identity) Check() error {
	for _, p := range []struct{ name, val string }{{"host", i.Host}, {"boot id", i.BootID}} {
		if p.val == "" || len(p.val) > 253 || strings.ContainsFunc(p.val, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return fault.New(fault.Invalid, "Give the host a name of 1 to 253 printable ASCII characters.",
				"%s %q cannot identify the owner of a disk", p.name, p.val)
		}
	}
	return nil
}
