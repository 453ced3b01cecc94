package scsi

import (
	"context"
	"encoding/binary"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/reserve"
)

// Service actions of PERSISTENT RESERVE OUT (SPC-4 table 232) and IN (table 218).
const (
	proRegister       = 0
	proReserve        = 1
	proRelease        = 2
	proClear          = 3
	proPreempt        = 4
	proPreemptAbort   = 5
	proRegisterIgnore = 6
	priReadKeys       = 0
	priReservation    = 1
)

var _ reserve.Unit = (*Unit)(nil)

// typeEARO is Exclusive Access - Registrants Only on the wire (SPC-4 table 222).
const typeEARO = 6

// Register registers key for this initiator port, in place of any that it had; 0 takes the registration back. With persist the
// unit keeps registrations through its own power loss; a unit that cannot registers without.
func (u *Unit) Register(ctx context.Context, key reserve.Key, persist bool) error {
	err := u.reserveOut(ctx, "register", proRegisterIgnore, 0, key, persist)
	if persist && unsupported(err) {
		err = u.reserveOut(ctx, "register", proRegisterIgnore, 0, key, false)
	}
	return err
}

// Reserve takes the reservation Exclusive Access - Registrants Only. Kind: Fenced (somebody else has one).
func (u *Unit) Reserve(ctx context.Context, key reserve.Key) error {
	return u.reserveOut(ctx, "reserve", proReserve, key, 0, false)
}

// Release gives the reservation up.
func (u *Unit) Release(ctx context.Context, key reserve.Key) error {
	return u.reserveOut(ctx, "release", proRelease, key, 0, false)
}

// Preempt removes the registration of victim. aborted tells that the unit also ended victim's commands that it still had; a unit
// that cannot (its PREEMPT AND ABORT is an illegal request) only lets no new ones in.
func (u *Unit) Preempt(ctx context.Context, key, victim reserve.Key) (aborted bool, err error) {
	err = u.reserveOut(ctx, "preempt and abort", proPreemptAbort, key, victim, false)
	if unsupported(err) {
		return false, u.reserveOut(ctx, "preempt", proPreempt, key, victim, false)
	}
	return err == nil, err
}

// Clear removes the reservation and all registrations. The key must be registered.
func (u *Unit) Clear(ctx context.Context, key reserve.Key) error {
	return u.reserveOut(ctx, "clear", proClear, key, 0, false)
}

func unsupported(err error) bool { return fault.KindOf(err) == fault.Unsupported }

// reserveOut is PERSISTENT RESERVE OUT (SPC-4 section 6.14) with the basic parameter list of 24 bytes.
func (u *Unit) reserveOut(ctx context.Context, what string, action byte, key, service reserve.Key, aptpl bool) error {
	c := make([]byte, 10)
	c[0], c[1], c[2] = opPersistReserveOut, action, typeEARO
	if action == proRegisterIgnore || action == proClear {
		c[2] = 0
	}
	binary.BigEndian.PutUint32(c[5:], 24)
	p := make([]byte, 24)
	binary.BigEndian.PutUint64(p, uint64(key))
	binary.BigEndian.PutUint64(p[8:], uint64(service))
	if aptpl {
		p[20] = 1
	}
	_, err := u.do(ctx, "persistent reservation, "+what, Command{CDB: c, Out: p})
	return err
}

// State reads who is registered and who holds the reservation (SPC-4 section 6.13).
func (u *Unit) State(ctx context.Context) (reserve.State, error) {
	keys, err := u.reserveIn(ctx, priReadKeys, 8192)
	if err != nil {
		return reserve.State{}, err
	}
	s := reserve.State{Generation: binary.BigEndian.Uint32(keys)}
	for b := keys[8:]; len(b) >= 8; b = b[8:] {
		s.Keys = append(s.Keys, reserve.Key(binary.BigEndian.Uint64(b)))
	}
	held, err := u.reserveIn(ctx, priReservation, 64)
	if err != nil {
		return reserve.State{}, err
	}
	if b := held[8:]; len(b) >= 16 {
		s.Held, s.Holder = true, reserve.Key(binary.BigEndian.Uint64(b))
		s.RegistrantsOnly = b[13]&0xf == typeEARO
	}
	return s, nil
}

// reserveIn gives the header of 8 bytes and what the unit says follows it.
func (u *Unit) reserveIn(ctx context.Context, action byte, size int) ([]byte, error) {
	c := make([]byte, 10)
	c[0], c[1] = opPersistReserveIn, action
	binary.BigEndian.PutUint16(c[7:], uint16(size))
	p := make([]byte, size)
	n, err := u.do(ctx, "persistent reservations", Command{CDB: c, In: p, Repeatable: true})
	if err != nil {
		return nil, err
	}
	if n < 8 {
		return nil, fault.New(fault.Damaged, "", "persistent reservations: the logical unit answered %d bytes", n)
	}
	return p[:min(uint64(n), 8+uint64(binary.BigEndian.Uint32(p[4:])))], nil
}
