package lunlease

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/reserve"
)

// ownerKeys marks the keys of owners: of two that want a LUN the lease decides, so whoever has it may take another owner's reservation.
const (
	ownerKeys = reserve.Key(0x564c) << 48
	ownerMask = reserve.Key(0xffff) << 48
)

// Key is the reservation key of a host as a LUN's owner; those of its disks are others.
func Key(host string) reserve.Key {
	sum := sha256.Sum256([]byte("owner\x00" + host))
	return ownerKeys | reserve.Key(binary.LittleEndian.Uint64(sum[:]))&^ownerMask
}

// register lets us read a LUN that somebody has reserved. Kind: Unsupported (it has no reservations).
func (c *contender) register(ctx context.Context) error {
	if c.Unit == nil {
		return nil
	}
	return fault.Wrap(c.Unit.Register(ctx, Key(c.me.Host), true), "register at the LUN")
}

// fence ends what the dead owner may still send: first by its reservation key, then by the caller's means.
func (c *contender) fence(ctx context.Context, old Owner) error {
	if c.Unit != nil && old.Host != c.me.Host { // a predecessor of our own has our key
		if err := c.preempt(ctx, Key(old.Host)); err != nil {
			return err
		}
	}
	if c.Fence != nil {
		return c.Fence(ctx, old)
	}
	return nil
}

func (c *contender) preempt(ctx context.Context, victim reserve.Key) error {
	s, err := c.Unit.State(ctx)
	if err != nil || !s.Registered(victim) {
		return err
	}
	aborted, err := c.Unit.Preempt(ctx, Key(c.me.Host), victim)
	if err != nil || aborted {
		return err
	}
	if c.Reset != nil && c.Reset(ctx) == nil {
		return nil
	}
	return c.sleep(ctx, c.MaxIO) // what it had accepted before is over then
}

// reserve takes the LUN's reservation, also from an owner before us, who released the LUN or lost the race for it.
func (c *contender) reserve(ctx context.Context) error {
	if c.Unit == nil {
		return nil
	}
	s, err := c.Unit.State(ctx)
	if err != nil {
		return err
	}
	var before []reserve.Key
	if s.Held && s.Holder&ownerMask == ownerKeys {
		before = append(before, s.Holder)
	}
	err = reserve.Own(ctx, c.Unit, Key(c.me.Host), before...)
	if errors.Is(err, fault.Fenced) { // another one took it between the steps
		return fault.New(fault.InUse, "Try again.", "another host takes the LUN at the same time: %w", err)
	}
	return err
}
