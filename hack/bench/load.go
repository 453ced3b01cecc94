package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	grain     = 64 << 10
	blockSize = 4 << 10
	// HotGrains is how many grains a load writes, spread evenly over the disk: the space that it takes does not depend on the
	// disk's capacity, and neither does how often it meets a grain that the head lacks.
	hotGrains = 1024
	writers   = 4
)

// Load is random writes of 4 KiB.
type load struct {
	begin time.Time
	stop  atomic.Bool
	done  sync.WaitGroup
	ops   [writers][]op
	errs  [writers]error
}

// StartLoad writes to a disk of size bytes until finish.
func startLoad(disk io.WriterAt, size int64, seed uint64) (*load, error) {
	l := &load{begin: time.Now()}
	buf, err := unix.Mmap(-1, 0, blockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS) // aligned, for O_DIRECT
	if err != nil {
		return nil, err
	}
	for i := range buf {
		buf[i] = byte(i%255 + 1)
	}
	var left atomic.Int32
	left.Store(writers)
	for i := range writers {
		l.done.Go(func() {
			l.errs[i] = l.write(disk, size, buf, rand.New(rand.NewPCG(seed, uint64(i))), &l.ops[i])
			if left.Add(-1) == 0 {
				_ = unix.Munmap(buf) // nothing is lost but address space
			}
		})
	}
	return l, nil
}

func (l *load) write(disk io.WriterAt, size int64, buf []byte, r *rand.Rand, ops *[]op) error {
	for len(*ops) == 0 || !l.stop.Load() { // one at least, so that a broken disk is told
		at := hotGrain(size, r.Int64N(hotGrains)) + blockSize*r.Int64N(grain/blockSize)
		o := op{start: l.now()}
		_, err := disk.WriteAt(buf, at)
		o.end = l.now()
		if err != nil {
			return fmt.Errorf("write at %d: %w", at, err)
		}
		*ops = append(*ops, o)
	}
	return nil
}

// HotGrain is the place of the n-th grain that a load writes.
func hotGrain(size, n int64) int64 {
	return n * (size / hotGrains) / grain * grain
}

// Now is the load's clock.
func (l *load) now() time.Duration { return time.Since(l.begin) }

// Finish ends the load; the operations are in no order.
func (l *load) finish() ([]op, error) {
	l.stop.Store(true)
	l.done.Wait()
	var all []op
	for _, o := range l.ops {
		all = append(all, o...)
	}
	err := errors.Join(l.errs[:]...)
	if err == nil && len(all) == 0 {
		err = errors.New("the load wrote nothing: nothing was measured")
	}
	return all, err
}
