package block

import (
	"encoding/binary"
	"errors"
	"io"
	"sync"
	"syscall"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Scratch is a sparse file of an Overlay: what was never written reads as zeros, and what was written survives the process
// that wrote it. *os.File is one.
type Scratch interface {
	io.ReaderAt
	io.WriterAt
}

// The layout of a scratch file. The map has two bits for each block; what follows it is addressed as the disk is. Both are
// sparse: the file takes room for what was written.
const (
	overlayBlock  = 4096
	overlayHeader = 4096
	perByte       = 4 // blocks whose states are in one byte of the map
	mapPage       = 4096
)

var overlayMagic = [8]byte{'V', 'M', 'D', 'K', 'O', 'V', 'L', '1'}

// What the map says of a block.
const (
	below   = 0 // the device below has it
	written = 1 // the scratch file has it
	zeroed  = 2 // it reads as zeros
)

// Overlaid is a disk whose changes go elsewhere; see Overlay.
type Overlaid struct {
	lower   Device
	scratch Scratch
	size    int64
	data    int64 // offset of block 0 in the scratch file

	mu   sync.RWMutex
	maps map[int64]*[mapPage]byte // pages of the map that were looked at, by number; guarded by pages
	// pages guards maps, which readers fill too; it is held while a page is read, never across a call into lower.
	pages sync.Mutex
}

// Overlay is d with its changes kept in scratch, a file of this overlay alone: a throw-away redo log, as VMware's
// independent-nonpersistent disks have. Whoever opens an overlay of the same disk on the same scratch file sees what an
// earlier one, in a process that may have died, had acknowledged. Flush has nothing to do: the scratch file is to outlive
// processes, not the machine. Kinds: Damaged (the scratch file is another disk's), NoSpace.
//
// A change is stored in this order: 1. the block's content, whole, 2. its state in the map. Death between them leaves a
// block whose content nobody refers to, of a write that nobody acknowledged.
func Overlay(d Device, scratch Scratch) (*Overlaid, error) {
	o := &Overlaid{lower: d, scratch: scratch, size: d.Size(), maps: map[int64]*[mapPage]byte{}}
	blocks := (o.size + overlayBlock - 1) / overlayBlock
	bytes := (blocks + perByte - 1) / perByte
	o.data = overlayHeader + (bytes+mapPage-1)/mapPage*mapPage
	var head [16]byte
	if _, err := scratch.ReadAt(head[:], 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, scratchFailed("read", err)
	}
	if head == [16]byte{} {
		copy(head[:], overlayMagic[:])
		binary.LittleEndian.PutUint64(head[8:], uint64(o.size))
		_, err := scratch.WriteAt(head[:], 0)
		return o, scratchFailed("begin", err)
	}
	if size := int64(binary.LittleEndian.Uint64(head[8:])); [8]byte(head[:8]) != overlayMagic || size != o.size {
		return nil, fault.New(fault.Damaged, "Detach the disk and attach it again.",
			"the redo log is not one of a disk of %d bytes", o.size)
	}
	return o, nil
}

// scratchFailed is the fault of a failed request to the scratch file, nil if err is.
func scratchFailed(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EFBIG):
		return fault.New(fault.NoSpace, "Free space where hostd keeps its state, or write less to a disk that is attached read-only.",
			"%s the redo log of a read-only attachment: %w", what, err)
	}
	return fault.Wrap(err, "%s the redo log of a read-only attachment", what)
}

// Size implements Device.
func (o *Overlaid) Size() int64 { return o.size }

// Flush implements Device.
func (o *Overlaid) Flush() error { return nil }

// page is page n of the map, read if nobody has looked at it.
func (o *Overlaid) page(n int64) (*[mapPage]byte, error) {
	o.pages.Lock()
	defer o.pages.Unlock()
	if p := o.maps[n]; p != nil {
		return p, nil
	}
	p := new([mapPage]byte)
	if _, err := o.scratch.ReadAt(p[:], overlayHeader+n*mapPage); err != nil && !errors.Is(err, io.EOF) {
		return nil, scratchFailed("read", err)
	}
	if *p == emptyPage {
		p = &emptyPage // of a terabyte that is read, nothing is kept but that it was never written
	}
	o.maps[n] = p
	return p, nil
}

// emptyPage stands for every page of a map that says below; nobody changes it.
var emptyPage [mapPage]byte

// state is what the map says of a block. Called with mu held.
func (o *Overlaid) state(block int64) (byte, error) {
	at := block / perByte
	p, err := o.page(at / mapPage)
	if err != nil {
		return 0, err
	}
	return p[at%mapPage] >> (2 * (block % perByte)) & 3, nil
}

// set makes blocks [from, to) be in state s, in the file first. Called with mu held exclusively.
func (o *Overlaid) set(from, to int64, s byte) error {
	for from < to {
		n := from / perByte / mapPage
		p, err := o.page(n)
		if err != nil {
			return err
		}
		next := *p
		end := min(to, (n+1)*mapPage*perByte)
		first, last := from/perByte%mapPage, (end-1)/perByte%mapPage
		for b := from; b < end; b++ {
			c := &next[b/perByte%mapPage]
			*c = *c&^(3<<(2*(b%perByte))) | s<<(2*(b%perByte))
		}
		if _, err := o.scratch.WriteAt(next[first:last+1], overlayHeader+n*mapPage+first); err != nil {
			return scratchFailed("write", err)
		}
		o.pages.Lock()
		o.maps[n] = &next
		o.pages.Unlock()
		from = end
	}
	return nil
}

// runs calls do for each part of [off, off+n) whose blocks are in one state.
func (o *Overlaid) runs(off, n int64, do func(state byte, off, n int64) error) error {
	for n > 0 {
		s, err := o.state(off / overlayBlock)
		if err != nil {
			return err
		}
		end := min(off+n, (off/overlayBlock+1)*overlayBlock)
		for end < off+n {
			next, err := o.state(end / overlayBlock)
			if err != nil {
				return err
			}
			if next != s {
				break
			}
			end = min(off+n, end+overlayBlock)
		}
		if err := do(s, off, end-off); err != nil {
			return err
		}
		n -= end - off
		off = end
	}
	return nil
}

// ReadAt implements Device.
func (o *Overlaid) ReadAt(p []byte, off int64) (int, error) {
	if err := CheckRange(o.size, off, int64(len(p))); err != nil {
		return 0, err
	}
	o.mu.RLock()
	defer o.mu.RUnlock()
	if err := o.read(p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (o *Overlaid) read(p []byte, off int64) error {
	return o.runs(off, int64(len(p)), func(state byte, at, n int64) error {
		part := p[at-off : at-off+n]
		switch state {
		case below:
			_, err := o.lower.ReadAt(part, at)
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return err
		case zeroed:
			clear(part)
			return nil
		}
		_, err := o.scratch.ReadAt(part, o.data+at)
		return scratchFailed("read", err)
	})
}

// WriteAt implements Device.
func (o *Overlaid) WriteAt(p []byte, off int64) (int, error) {
	if err := CheckRange(o.size, off, int64(len(p))); err != nil {
		return 0, err
	}
	if len(p) == 0 {
		return 0, nil
	}
	if done, err := o.overwrite(p, off); done || err != nil {
		return count(p, err), err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	err := o.write(p, off)
	return count(p, err), err
}

func count(p []byte, err error) int {
	if err != nil {
		return 0
	}
	return len(p)
}

// overwrite writes in place if the scratch file has all of it.
func (o *Overlaid) overwrite(p []byte, off int64) (done bool, err error) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	for b := off / overlayBlock; b*overlayBlock < off+int64(len(p)); b++ {
		if s, err := o.state(b); err != nil || s != written {
			return false, err
		}
	}
	_, err = o.scratch.WriteAt(p, o.data+off)
	return err == nil, scratchFailed("write", err)
}

// write writes whole blocks; what p leaves open of the first and the last one is what they read as now.
func (o *Overlaid) write(p []byte, off int64) error {
	first := off / overlayBlock * overlayBlock
	end := min(o.size, (off+int64(len(p))+overlayBlock-1)/overlayBlock*overlayBlock)
	whole := p
	if first != off || end != off+int64(len(p)) {
		whole = make([]byte, end-first)
		if err := o.read(whole[:off-first], first); err != nil {
			return err
		}
		if tail := off + int64(len(p)); tail < end {
			if err := o.read(whole[tail-first:], tail); err != nil {
				return err
			}
		}
		copy(whole[off-first:], p)
	}
	if _, err := o.scratch.WriteAt(whole, o.data+first); err != nil {
		return scratchFailed("write", err)
	}
	return o.set(first/overlayBlock, (end+overlayBlock-1)/overlayBlock, written)
}

// Discard implements Device.
func (o *Overlaid) Discard(off, n int64) error { return o.WriteZeroes(off, n) }

// WriteZeroes implements Device: whole blocks take a change of the map only.
func (o *Overlaid) WriteZeroes(off, n int64) error {
	if err := CheckRange(o.size, off, n); err != nil {
		return err
	}
	if n == 0 {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	first, end := (off+overlayBlock-1)/overlayBlock*overlayBlock, (off+n)/overlayBlock*overlayBlock
	if off+n == o.size {
		end = o.size // its last block may be a short one
	}
	if first >= end {
		return o.write(make([]byte, n), off)
	}
	if off < first {
		if err := o.write(make([]byte, first-off), off); err != nil {
			return err
		}
	}
	if end < off+n {
		if err := o.write(make([]byte, off+n-end), end); err != nil {
			return err
		}
	}
	return o.set(first/overlayBlock, (end+overlayBlock-1)/overlayBlock, zeroed)
}
