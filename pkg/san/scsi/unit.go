package scsi

import (
	"context"
	"encoding/binary"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/vmdk-csi/vmdk-csi/pkg/block"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Limits of what a unit may say about itself.
const (
	minBlockSize = 512
	maxBlockSize = 4096
	maxTransfer  = 1 << 20 // bytes of one command, if the unit allows as many
	attempts     = 16      // how often a command is sent while the unit has news or is busy
)

// Unit is an open logical unit: a block.Device of its whole capacity.
type Unit struct {
	t  Transport
	id Identity

	transfer  int  // most bytes of a READ or WRITE
	sameLimit int  // most blocks of one WRITE SAME
	unmaps    bool // WRITE SAME(16) with UNMAP, and what is unmapped reads as zeros
	caches    bool // the unit has a volatile write cache

	align sync.RWMutex // whole blocks share it; others read, change and write what they begin or end in
	kept  kept
	lost  atomic.Pointer[fault.Fault]
}

var _ block.Device = (*Unit)(nil)

// Open finds out what the logical unit behind t is. Kinds: NotFound (no such unit), Unsupported (no disk, or blocks that are neither
// 512 nor 4096 bytes), Unavailable, Damaged (it contradicts itself).
func Open(ctx context.Context, t Transport) (*Unit, error) {
	u := &Unit{t: t, transfer: maxTransfer}
	for _, step := range []func(context.Context) error{u.ready, u.inquire, u.capacity, u.limits, u.cache} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	return u, nil
}

func (u *Unit) ready(ctx context.Context) error {
	_, err := u.do(ctx, "test unit ready", Command{CDB: make([]byte, 6), Repeatable: true})
	return err
}

func (u *Unit) inquire(ctx context.Context) error {
	p := make([]byte, 96)
	n, err := u.do(ctx, "inquiry", Command{CDB: inquiry(-1, uint16(len(p))), In: p, Repeatable: true})
	if err != nil {
		return err
	}
	// SPC-4 section 6.4.2: peripheral device type 0 is a direct access block device; qualifier 3 is a unit that cannot be.
	switch {
	case n < 36:
		return fault.New(fault.Damaged, "", "the logical unit's inquiry data has %d bytes", n)
	case p[0]>>5 == 3:
		return fault.New(fault.NotFound, "Look at the target's list of logical units.", "there is no such logical unit")
	case p[0]&0x1f != 0:
		return fault.New(fault.Unsupported, "", "the logical unit is no disk (device type %d)", p[0]&0x1f)
	}
	u.id.Vendor, u.id.Product = clean(p[8:16]), clean(p[16:32])
	if page, ok := u.page(ctx, 0x83); ok {
		if u.id.Designator, err = parseDesignators(page); err != nil {
			return err
		}
	}
	if page, ok := u.page(ctx, 0x80); ok {
		body, err := vpdBody(page, 0x80)
		if err != nil {
			return err
		}
		u.id.Serial = clean(body)
	}
	return nil
}

// page reads a vital product data page; false when the unit does not have it.
func (u *Unit) page(ctx context.Context, code byte) ([]byte, bool) {
	p := make([]byte, 1024)
	n, err := u.do(ctx, "inquiry", Command{CDB: inquiry(int(code), uint16(len(p))), In: p, Repeatable: true})
	return p[:n], err == nil && n >= 4 && p[1] == code
}

// capacity reads READ CAPACITY(16) (SBC-3 section 5.16).
func (u *Unit) capacity(ctx context.Context) error {
	p := make([]byte, 32)
	n, err := u.do(ctx, "read capacity", Command{CDB: readCapacity16(uint32(len(p))), In: p, Repeatable: true})
	if err != nil {
		return err
	}
	if n < 12 {
		return fault.New(fault.Damaged, "", "the logical unit's capacity data has %d bytes", n)
	}
	last, size := binary.BigEndian.Uint64(p), binary.BigEndian.Uint32(p[8:])
	if size != minBlockSize && size != maxBlockSize {
		return fault.New(fault.Unsupported, "", "the logical unit has blocks of %d bytes; 512 and 4096 are known", size)
	}
	if last >= 1<<63/uint64(size) {
		return fault.New(fault.Damaged, "", "the logical unit says that its last block is %d", last)
	}
	u.id.Blocks, u.id.BlockSize = last+1, int(size)
	u.unmaps = n > 14 && p[14]&0xc0 == 0xc0 // LBPME and LBPRZ
	return nil
}

// limits reads the block limits and the logical block provisioning page (SBC-3 sections 6.5.3 and 6.5.4).
func (u *Unit) limits(ctx context.Context) error {
	u.sameLimit = (1 << 20) / u.id.BlockSize * 64
	if page, ok := u.page(ctx, 0xb0); ok && len(page) >= 12 {
		if n := binary.BigEndian.Uint32(page[8:]); n > 0 {
			u.transfer = max(min(u.transfer, int(n)*u.id.BlockSize), u.id.BlockSize)
		}
		if len(page) >= 44 {
			if n := binary.BigEndian.Uint64(page[36:]); n > 0 {
				u.sameLimit = int(min(uint64(u.sameLimit), n))
			}
		}
	}
	page, ok := u.page(ctx, 0xb2)
	u.unmaps = u.unmaps && ok && len(page) >= 6 && page[5]&0x40 != 0 // LBPWS
	return nil
}

// cache reads WCE of the caching mode page (SBC-3 section 6.4.5). A unit without the page is taken to have a volatile cache.
func (u *Unit) cache(ctx context.Context) error {
	p := make([]byte, 192)
	n, err := u.do(ctx, "mode sense", Command{CDB: []byte{opModeSense6, 0x08, 0x08, 0, byte(len(p)), 0}, In: p, Repeatable: true})
	u.caches = true
	if err == nil && n >= 7 && p[4]&0x3f == 0x08 {
		u.caches = p[6]&0x04 != 0
	}
	if errors.Is(err, fault.Unsupported) || errors.Is(err, fault.Fenced) { // MODE SENSE needs a registration where there is a reservation
		return nil
	}
	return err
}

// Identity tells what the unit is.
func (u *Unit) Identity() Identity { return u.id }

// Size is the capacity in bytes.
func (u *Unit) Size() int64 { return u.id.Bytes() }

// do sends a command until it has an answer that is the command's own.
func (u *Unit) do(ctx context.Context, what string, cmd Command) (int, error) {
	var r Result
	for range attempts {
		if err := u.check(); err != nil {
			return 0, err
		}
		if u.kept.pending.Load() && !cmd.again {
			return 0, errReplay
		}
		cmd.Saw = u.saw
		var err error
		if r, err = u.t.Do(ctx, cmd); err != nil {
			return 0, fault.Wrap(err, "%s", what)
		}
		if u.kept.pending.Load() && !cmd.again { // this answer, too, may be of what a reset left
			return 0, errReplay
		}
		if again, err := u.again(r); err != nil || !again {
			return r.N, errors.Join(err, failure(what, r))
		}
	}
	return 0, failure(what, r)
}

// saw looks at every answer in the order in which the unit gave them: what it answered behind the news of a reset is of a unit that lost
// its cache.
func (u *Unit) saw(r Result) {
	if r.Status == CheckCondition && u.caches && ParseSense(r.Sense).lostCache() {
		u.kept.reset()
	}
}

// again tells that the answer is news or a full queue and not the command's own.
func (u *Unit) again(r Result) (bool, error) {
	if r.Status == Busy || r.Status == TaskSetFull {
		return true, nil
	}
	s := ParseSense(r.Sense)
	if r.Status != CheckCondition || s.Key != keyUnitAttention {
		return false, nil
	}
	return true, nil
}

func (u *Unit) check() error {
	if f := u.lost.Load(); f != nil {
		return f
	}
	return nil
}

// poison makes a failed flush final, as block.Device asks for. Who was fenced is told so from then on.
func (u *Unit) poison(err error) error {
	if fault.KindOf(err) == fault.Fenced {
		u.lost.CompareAndSwap(nil, fault.From(err))
		return u.check()
	}
	u.lost.CompareAndSwap(nil, fault.New(fault.Poisoned, "Detach the disk, check it, and attach it again.",
		"a flush failed, what it should have stored is uncertain: %w", err))
	return u.check()
}
