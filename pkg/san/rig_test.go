package san_test

import (
	"context"
	"errors"
	"iter"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/san"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/store"
)

var ctx = context.Background()

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// clock is a time that tests move.
type clock struct {
	mu      sync.Mutex
	now     time.Duration
	waiting map[chan time.Time]time.Duration
	added   chan struct{} // gets something when somebody begins to wait
}

func newClock() *clock {
	return &clock{now: time.Hour, waiting: map[chan time.Time]time.Duration{}, added: make(chan struct{}, 1000)}
}

func (c *clock) Now() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) After(d time.Duration) <-chan time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	ch := make(chan time.Time, 1)
	c.waiting[ch] = c.now + d
	c.added <- struct{}{}
	return ch
}

// pass lets time go by.
func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now += d
	for ch, at := range c.waiting {
		if at <= c.now {
			ch <- time.Time{}
			delete(c.waiting, ch)
		}
	}
}

// source maps files of the root directory of a store: volume "f" is the file "f", flat; "f" with a snapshot "s" is "f" too.
type source struct{ s *store.Store }

type subject struct {
	d    fsx.Dir
	f    fsx.File
	name string
	size int64
	snap bool
}

func (s source) Open(_ context.Context, r san.Request) (san.Subject, error) {
	d := s.s.Root()
	f, err := d.Open(r.Volume, fsx.ReadWrite)
	if err != nil {
		return nil, err
	}
	lock := fsx.LockRead
	if r.Mode == san.ReadWrite {
		lock = fsx.LockWrite
	}
	if err := f.Lock(lock); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	info, err := f.Stat()
	return &subject{d, f, r.Volume, info.Size, r.Snapshot != ""}, err
}

func (s *subject) Dir() fsx.Dir { return s.d }
func (s *subject) Size() int64  { return s.size }
func (s *subject) Close() error { return s.f.Close() }
func (s *subject) Writable() error {
	if s.snap {
		return fault.New(fault.Precondition, "", "it is a snapshot")
	}
	return nil
}
func (s *subject) Runs() iter.Seq2[san.Run, error] {
	return func(yield func(san.Run, error) bool) { yield(san.Run{Len: s.size, File: s.name}, nil) }
}

// fencer notes whom it fenced.
type fencer struct {
	mu     sync.Mutex
	err    error
	fenced []string
}

func (f *fencer) Fence(_ context.Context, node string, _ uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.fenced = append(f.fenced, node)
	}
	return f.err
}

// rig is a LUN with a store and its server; each path to it is an open file of its own.
type rig struct {
	t      testing.TB
	path   string
	lun    fsx.File
	store  *store.Store
	clock  *clock
	fencer *fencer
	server *san.Server
	config san.Config
}

func newRig(t testing.TB, size int64, o store.FormatOptions) *rig {
	t.Helper()
	r := &rig{t: t, path: filepath.Join(t.TempDir(), "lun"), clock: newClock(), fencer: &fencer{}}
	must(t, os.WriteFile(r.path, nil, 0o600), os.Truncate(r.path, size))
	lun := r.open()
	_, err := store.Format(lun, o)
	must(t, err, lun.Lock(fsx.Unlock))
	r.start()
	return r
}

func (r *rig) open() fsx.File {
	r.t.Helper()
	f, err := fsx.OpenDevice(r.path, fsx.ReadWrite|fsx.Direct)
	must(r.t, err)
	r.t.Cleanup(func() { f.Close() })
	return f
}

// start is the metadata server's beginning; after die it is another process's.
func (r *rig) start() {
	r.t.Helper()
	r.lun = r.open()
	var err error
	r.store, err = store.Open(r.lun, store.Options{})
	must(r.t, err)
	r.config = san.Config{Store: r.store, Source: source{r.store}, Clock: r.clock, Fencer: r.fencer,
		Key: func(node string) uint64 { return uint64(len(node)) }}
	r.server = san.NewServer(ctx, r.config)
}

func (r *rig) die() { must(r.t, r.lun.Close()) }

// flat makes a file of which all has a place.
func (r *rig) flat(name string, size int64) {
	r.t.Helper()
	f, err := r.store.Root().Open(name, fsx.ReadWrite|fsx.Create|fsx.Exclusive)
	must(r.t, err)
	must(r.t, f.Allocate(0, size), f.Datasync(), f.Close())
}

func (r *rig) get(volume, node string, mode san.Mode) *san.Map {
	r.t.Helper()
	m, err := r.server.Get(ctx, san.Request{Volume: volume, Node: node, Mode: mode})
	must(r.t, err)
	return m
}

func (r *rig) mapper(m *san.Map, luns ...fsx.File) *san.Mapper {
	r.t.Helper()
	if len(luns) == 0 {
		luns = []fsx.File{r.open()}
	}
	d, err := san.NewMapper(m, san.MapperConfig{LUNs: luns, Sent: r.clock.Now(), Clock: r.clock, Client: r.server})
	must(r.t, err)
	return d
}
