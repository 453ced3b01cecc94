package reserve

import (
	"context"
	"slices"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Key names a registrant; 0 is none.
type Key uint64

// Unit is a logical unit that keeps registrations and a reservation. Every command is one step that the unit takes as a whole.
//
// Six methods, one for each service action that fencing needs, and one that looks.
type Unit interface {
	// Register registers key for this path, in place of any that it had; 0 takes the registration back. persist asks the unit to keep
	// registrations through its own power loss, where it can.
	Register(ctx context.Context, key Key, persist bool) error
	// Reserve takes an Exclusive Access - Registrants Only reservation; who holds it already has it. Kind: Fenced (somebody else
	// has one, or key is not registered here).
	Reserve(ctx context.Context, key Key) error
	// Release gives the reservation up.
	Release(ctx context.Context, key Key) error
	// Preempt removes victim's registrations on all paths. aborted: its commands that the unit still had are ended too. Kind: Fenced
	// (key or victim is not registered).
	Preempt(ctx context.Context, key, victim Key) (aborted bool, err error)
	// Clear removes everything; key must be registered here.
	Clear(ctx context.Context, key Key) error
	// State looks. Kind: Unsupported.
	State(ctx context.Context) (State, error)
}

// State is what a unit keeps.
type State struct {
	Generation      uint32 // counts changes of registrations
	Keys            []Key  // one for each registered path
	Held            bool
	Holder          Key
	RegistrantsOnly bool // the reservation is Exclusive Access - Registrants Only
}

// Registered tells that key is.
func (s State) Registered(key Key) bool { return slices.Contains(s.Keys, key) }

// Own makes key the owner of the unit's reservation, as a metadata server does when it starts. Of a dead predecessor the server knows
// the key (its own records have it) and passes it as before; others' reservations are not broken. It may be repeated.
//
//  1. Register key. Crash: a registration without meaning.
//  2. Nobody holds a reservation: take it. before holds it: preempt it, which hands the reservation over (SPC-4 section 5.13.11.2.3).
//  3. Look: the reservation is key's and of the right type.
//
// Kinds: InUse (somebody else has it), Unsupported (the unit has no reservations).
func Own(ctx context.Context, u Unit, key Key, before ...Key) error {
	if key == 0 {
		return fault.New(fault.Invalid, "", "reservation key 0 is no key")
	}
	if err := u.Register(ctx, key, true); err != nil {
		return err
	}
	s, err := u.State(ctx)
	switch {
	case err != nil:
		return err
	case s.Held && s.Holder != key && !slices.Contains(before, s.Holder):
		return fault.New(fault.InUse, "Is another metadata server at work on this LUN? If not, clear its reservations.",
			"the logical unit is reserved by key %#x", uint64(s.Holder))
	case s.Held && s.Holder != key:
		if _, err := u.Preempt(ctx, key, s.Holder); err != nil {
			return err
		}
	case !s.Held:
		if err := u.Reserve(ctx, key); err != nil {
			return err
		}
	}
	if s, err = u.State(ctx); err != nil {
		return err
	}
	if !s.Held || s.Holder != key || !s.RegistrantsOnly {
		return fault.New(fault.InUse, "Is another metadata server at work on this LUN?",
			"the logical unit's reservation is held by key %#x and not by %#x (registrants only: %t)", uint64(s.Holder), uint64(key), s.RegistrantsOnly)
	}
	return nil
}

// Fence takes victim's right to reach the unit away. When it returns, the unit refuses victim's commands; settled tells that it also
// has none left that it accepted before: if false, the longest time that a command may take must pass before anybody relies on it.
// A victim that is not registered is fenced already, and settled only if an earlier Fence said so.
func Fence(ctx context.Context, u Unit, key, victim Key) (settled bool, err error) {
	s, err := u.State(ctx)
	switch {
	case err != nil:
		return false, err
	case victim == key || victim == 0:
		return false, fault.New(fault.Invalid, "", "key %#x cannot be fenced by %#x", uint64(victim), uint64(key))
	case !s.Held || s.Holder != key:
		return false, fault.New(fault.Fenced, "Another metadata server took the logical unit over.",
			"the logical unit's reservation is not ours any more (holder %#x)", uint64(s.Holder))
	case !s.Registered(victim):
		return false, nil
	}
	if settled, err = u.Preempt(ctx, key, victim); err != nil {
		return false, err
	}
	if s, err = u.State(ctx); err != nil {
		return false, err
	}
	if s.Registered(victim) {
		return false, fault.New(fault.Internal, "", "key %#x is registered after it was preempted", uint64(victim))
	}
	return settled, nil
}

// Fencer fences nodes for a metadata server that owns the unit's reservation (san.Config.Fencer).
type Fencer struct {
	Unit Unit
	Key  Key // the server's own
	// Reset ends all commands that the unit has, where Preempt does not end those of the victim; nil if there is no way to.
	Reset func(ctx context.Context) error
	// MaxIO is how long a command may take that the unit had accepted: without Reset so long is waited.
	MaxIO time.Duration
}

// Fence returns when the node's key lets nothing in any more, and nothing that it had sent is under way.
func (f *Fencer) Fence(ctx context.Context, node string, key uint64) error {
	settled, err := Fence(ctx, f.Unit, f.Key, Key(key))
	if err != nil {
		return fault.Wrap(err, "fence node %s", node)
	}
	if !settled && f.Reset != nil {
		settled = f.Reset(ctx) == nil
	}
	if settled {
		return nil
	}
	wait := time.NewTimer(f.MaxIO)
	defer wait.Stop()
	select {
	case <-wait.C:
		return nil
	case <-ctx.Done():
		return fault.Wrap(context.Cause(ctx), "fence node %s: wait until its last commands are over", node)
	}
}
