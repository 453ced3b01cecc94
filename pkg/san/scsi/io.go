package scsi

import (
	"context"
	"errors"

	"github.com/vmdk-csi/vmdk-csi/pkg/block"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// ReadAt reads; what does not begin or end at a block's edge is read with its blocks.
func (u *Unit) ReadAt(p []byte, off int64) (int, error) {
	if err := u.begin(off, int64(len(p))); err != nil || len(p) == 0 {
		return 0, err
	}
	n := 0
	err := u.whole(func() (err error) {
		n, err = u.readBlocks(p, off)
		return err
	})
	return n, err
}

func (u *Unit) readBlocks(p []byte, off int64) (int, error) {
	lo, hi := u.blocks(off, int64(len(p)))
	u.align.RLock()
	defer u.align.RUnlock()
	if lo == off && hi == off+int64(len(p)) {
		return u.read(p, off)
	}
	q := make([]byte, hi-lo)
	n, err := u.read(q, lo)
	return copy(p, q[min(int64(n), off-lo):n]), err
}

// WriteAt writes; of a block that it begins or ends in, the rest stays.
func (u *Unit) WriteAt(p []byte, off int64) (int, error) {
	if err := u.begin(off, int64(len(p))); err != nil || len(p) == 0 {
		return 0, err
	}
	if err := u.makeRoom(int64(len(p))); err != nil {
		return 0, err
	}
	n := 0
	err := u.whole(func() (err error) {
		n, err = u.writeBlocks(p, off)
		return err
	})
	return n, err
}

func (u *Unit) writeBlocks(p []byte, off int64) (int, error) {
	lo, hi := u.blocks(off, int64(len(p)))
	if lo == off && hi == off+int64(len(p)) {
		u.align.RLock()
		defer u.align.RUnlock()
		return u.write(p, off)
	}
	u.align.Lock()
	defer u.align.Unlock()
	q, bs := make([]byte, hi-lo), int64(u.id.BlockSize)
	if _, err := u.read(q[:bs], lo); err != nil {
		return 0, err
	}
	if hi-lo > bs {
		if _, err := u.read(q[hi-lo-bs:], hi-bs); err != nil {
			return 0, err
		}
	}
	copy(q[off-lo:], p)
	if _, err := u.write(q, lo); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (u *Unit) begin(off, n int64) error {
	if err := u.check(); err != nil {
		return err
	}
	return block.CheckRange(u.Size(), off, n)
}

// blocks widens a range to whole blocks.
func (u *Unit) blocks(off, n int64) (lo, hi int64) {
	bs := int64(u.id.BlockSize)
	return off / bs * bs, (off + n + bs - 1) / bs * bs
}

func (u *Unit) read(p []byte, off int64) (int, error) {
	return u.pieces(p, off, func(q []byte, lba uint64, blocks uint32) error {
		n, err := u.do(context.Background(), "read", Command{CDB: range16(opRead16, 0, lba, blocks), In: q, Repeatable: true})
		if err == nil && n != len(q) {
			return fault.New(fault.Unavailable, "", "read: the logical unit gave %d bytes of %d", n, len(q))
		}
		return err
	})
}

func (u *Unit) write(p []byte, off int64) (int, error) {
	k := u.keep(p, off, int64(len(p)), 0)
	n, err := u.send(p, off, false)
	k.done(err)
	return n, err
}

// send is write for what is kept already.
func (u *Unit) send(p []byte, off int64, again bool) (int, error) {
	return u.pieces(p, off, func(q []byte, lba uint64, blocks uint32) error {
		_, err := u.do(context.Background(), "write", Command{CDB: range16(opWrite16, 0, lba, blocks), Out: q, Repeatable: true, again: again})
		return err
	})
}

// pieces calls f for parts of p that one command can carry.
func (u *Unit) pieces(p []byte, off int64, f func(q []byte, lba uint64, blocks uint32) error) (done int, err error) {
	for done < len(p) {
		q := p[done:min(len(p), done+u.transfer)]
		if err := f(q, uint64(off+int64(done))/uint64(u.id.BlockSize), uint32(len(q)/u.id.BlockSize)); err != nil {
			return done, err
		}
		done += len(q)
	}
	return done, nil
}

// Flush makes what was acknowledged durable (SYNCHRONIZE CACHE(16), SBC-3 section 5.19, of the whole unit).
func (u *Unit) Flush() error {
	if err := u.check(); err != nil {
		return err
	}
	err := u.whole(func() error {
		u.align.RLock()
		defer u.align.RUnlock()
		mark := u.kept.mark()
		_, err := u.do(context.Background(), "synchronize cache", Command{CDB: range16(opSynchronizeCache, 0, 0, 0), Repeatable: true})
		if err == nil {
			u.kept.flushed(mark)
		}
		return err
	})
	if err != nil {
		return u.poison(err)
	}
	return u.check()
}

// Discard gives blocks back to the unit where they then read as zeros. Kind: Unsupported (the unit cannot promise that).
func (u *Unit) Discard(off, n int64) error {
	if err := u.begin(off, n); err != nil || n == 0 {
		return err
	}
	if !u.unmaps {
		return fault.New(fault.Unsupported, "", "the logical unit does not give space back so that it reads as zeros")
	}
	return u.whole(func() error { return u.zero(off, n, bitUnmap) })
}

// WriteZeroes makes the range read as zeros, by WRITE SAME where the unit knows it.
func (u *Unit) WriteZeroes(off, n int64) error {
	if err := u.begin(off, n); err != nil || n == 0 {
		return err
	}
	return u.whole(func() error { return u.zero(off, n, 0) })
}

func (u *Unit) zero(off, n int64, flags byte) error {
	bs := int64(u.id.BlockSize)
	lo, hi := (off+bs-1)/bs*bs, (off+n)/bs*bs
	if lo >= hi {
		_, err := u.writeBlocks(make([]byte, n), off)
		return err
	}
	if lo > off {
		if _, err := u.writeBlocks(make([]byte, lo-off), off); err != nil {
			return err
		}
	}
	if err := u.zeroBlocks(lo, hi, flags); err != nil {
		return err
	}
	if hi < off+n {
		_, err := u.writeBlocks(make([]byte, off+n-hi), hi)
		return err
	}
	return nil
}

func (u *Unit) zeroBlocks(lo, hi int64, flags byte) error {
	u.align.RLock()
	defer u.align.RUnlock()
	k := u.keep(nil, lo, hi-lo, flags)
	err := u.sendZeros(lo, hi, flags, false)
	k.done(err)
	return err
}

func (u *Unit) sendZeros(lo, hi int64, flags byte, again bool) error {
	bs := int64(u.id.BlockSize)
	block := make([]byte, bs)
	for same := true; same && lo < hi; {
		n := min((hi-lo)/bs, int64(u.sameLimit))
		_, err := u.do(context.Background(), "write same",
			Command{CDB: range16(opWriteSame16, flags, uint64(lo/bs), uint32(n)), Out: block, Repeatable: true, again: again})
		switch {
		case errors.Is(err, fault.Unsupported):
			same = false // written below
		case err != nil:
			return err
		default:
			lo += n * bs
		}
	}
	zeros := make([]byte, min(hi-lo, int64(u.transfer)))
	for ; lo < hi; lo += int64(len(zeros)) {
		zeros = zeros[:min(hi-lo, int64(len(zeros)))]
		if _, err := u.send(zeros, lo, again); err != nil {
			return err
		}
	}
	return nil
}
