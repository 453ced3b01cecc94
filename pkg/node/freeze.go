package node

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/stage"
)

// FreezerConfig is what a Freezer is made of.
type FreezerConfig struct {
	Dir     string       // of the records; made if missing
	Command []string     // starts the helper (FreezeHelper), whose arguments follow
	Log     *slog.Logger // may be nil
}

// Freezer stops file systems for a moment. Each stop is a helper process:
//
//  1. write the record                      died after: the next start thaws what is not frozen, which does nothing
//  2. start the helper, which freezes       died after: the helper notices, and thaws
//  3. the helper thaws when it is told to, and at the deadline in any case
//  4. remove the record
//
// A helper that died instead of thawing is replaced by one that thaws. One that the kernel does not let go, because a device
// does not answer, is left behind, with its record: it thaws when it can.
//
// Goroutines: one for each helper, which ends with it; Close ends all of them and waits.
type Freezer struct {
	FreezerConfig
	mu      sync.Mutex
	running map[string]*helper // by disk
	closed  bool
	watches sync.WaitGroup
}

// How long a Freezer waits for helpers that have nothing to wait for themselves.
const helperTime = 5 * time.Second

// helper is a process that freezes or thaws one file system.
type helper struct {
	job    string // doFreeze or doThaw
	cmd    *exec.Cmd
	tell   *os.File      // closed: thaw
	hear   *os.File      // what it says
	frozen chan struct{} // closed when it says so
	ended  chan struct{} // closed when it is no more, or was given up
	once   sync.Once     // of release
	result error         // after ended: nil if it did what it was for
}

// release has the helper thaw.
func (h *helper) release() { h.once.Do(func() { h.tell.Close() }) }

// NewFreezer makes a Freezer, and lets go on what one that died had stopped.
func NewFreezer(ctx context.Context, c FreezerConfig) (*Freezer, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fault.Wrap(err, "make the directory of freezes")
	}
	f := &Freezer{FreezerConfig: c, running: map[string]*helper{}}
	left, err := filepath.Glob(filepath.Join(c.Dir, "*"+recordSuffix))
	if err != nil {
		return nil, err
	}
	var all sync.WaitGroup
	defer all.Wait()
	for _, path := range left {
		id := strings.TrimSuffix(filepath.Base(path), recordSuffix)
		all.Go(func() {
			if err := f.Thaw(ctx, id); err != nil {
				f.Log.Warn("A file system that was stopped for a snapshot may stand still", "volume", id, "err", err)
			}
		})
	}
	return f, nil
}

// Close has every helper thaw, waits a little for them, and leaves those behind that the kernel does not let go.
func (f *Freezer) Close() {
	f.mu.Lock()
	f.closed = true
	var all []*helper
	for _, h := range f.running {
		all = append(all, h)
	}
	f.mu.Unlock()
	late := time.NewTimer(helperTime)
	defer late.Stop()
	for _, h := range all {
		h.release()
	}
	for _, h := range all {
		select {
		case <-h.ended:
		case <-late.C:
			late.Reset(0) // for the others too
		}
		h.hear.Close()
	}
	f.watches.Wait()
}

// Freeze stops the file system that is mounted at path until the deadline, or until the returned function is called, which
// fails if the file system did not stand still until then. Kinds: Timeout (it could not be stopped in time; it goes on as
// soon as the kernel allows), InProgress (it is being stopped).
func (f *Freezer) Freeze(ctx context.Context, id, path string, deadline time.Time) (func(context.Context) error, error) {
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	until := monotonic() + int64(time.Until(deadline))
	h, err := f.start(id, path, doFreeze, path, strconv.FormatInt(until, 10))
	if err != nil {
		return nil, err
	}
	select {
	case <-h.frozen:
		return func(ctx context.Context) error {
			select {
			case <-h.ended:
				if h.result == nil {
					return fault.New(fault.Timeout, "Allow more time.", "the file system of %s went on at the deadline", id)
				}
				return h.result
			default:
			}
			h.release()
			return h.wait(ctx)
		}, nil
	case <-h.ended:
		return nil, fault.Wrap(h.result, "stop the file system of %s", id)
	case <-ctx.Done():
		h.release()
		return nil, fault.New(fault.Timeout, "See whether its device answers.", "the file system of %s could not be stopped in time", id)
	}
}

func (h *helper) wait(ctx context.Context) error {
	select {
	case <-h.ended:
		return h.result
	case <-ctx.Done():
		return fault.New(fault.Timeout, "See whether its device answers.", "the file system does not go on yet: %w", ctx.Err())
	}
}

// Thaw lets the file system of a disk go on if it was stopped, by this process or one that died. Kinds: Timeout.
func (f *Freezer) Thaw(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, helperTime)
	defer cancel()
	for {
		f.mu.Lock()
		h := f.running[id]
		f.mu.Unlock()
		if h == nil {
			path, err := f.recorded(id)
			if err != nil || path == "" {
				return err
			}
			if h, err = f.start(id, path, doThaw, path); errors.Is(err, fault.InProgress) {
				continue // somebody else's helper
			} else if err != nil {
				return err
			}
		}
		h.release()
		if err := h.wait(ctx); ctx.Err() != nil || h.job == doThaw {
			return err
		}
	}
}

// start writes the record and starts a helper.
func (f *Freezer) start(id, path string, args ...string) (*helper, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.closed:
		return nil, fault.New(fault.Unavailable, "", "the node service ends")
	case f.running[id] != nil:
		return nil, fault.New(fault.InProgress, "", "the file system of %s is being stopped, or goes on only now", id)
	}
	if err := f.record(id, path); err != nil {
		return nil, err
	}
	inOut, inEnd, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	outOut, outEnd, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, inOut.Close(), inEnd.Close())
	}
	h := &helper{job: args[0], tell: inEnd, hear: outOut, frozen: make(chan struct{}), ended: make(chan struct{})}
	h.cmd = exec.Command(f.Command[0], append(f.Command[1:len(f.Command):len(f.Command)], args...)...)
	h.cmd.Stdin, h.cmd.Stdout, h.cmd.Stderr = inOut, outEnd, outEnd
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // what ends the node plugin is not for it
	err = h.cmd.Start()
	inOut.Close()
	outEnd.Close()
	if err != nil {
		h.release()
		h.hear.Close()
		return nil, errors.Join(fault.Wrap(err, "start what stops file systems"), f.forget(id))
	}
	f.running[id] = h
	f.watches.Go(func() { f.watch(id, path, h) })
	return h, nil
}

// watch hears the helper until it is no more.
func (f *Freezer) watch(id, path string, h *helper) {
	frozen, last, failure := false, "", ""
	lines := bufio.NewScanner(h.hear)
	for lines.Scan() {
		switch text := lines.Text(); {
		case text == saysFrozen:
			frozen, last = true, text
			close(h.frozen)
		case text == saysThawed, text == saysLate:
			last = text
		case failure == "": // what comes behind it is a remedy for whoever runs it by hand
			failure, _ = strings.CutPrefix(text, "Error: ")
		}
	}
	givenUp := errors.Is(lines.Err(), os.ErrClosed)
	h.release()
	h.hear.Close()
	if !givenUp {
		_ = h.cmd.Wait() // what it said counts
	}
	// It goes on: the helper says so, or that it could not freeze.
	goesOn := last == saysThawed || last == saysLate
	switch {
	case last == saysThawed:
	case last == saysLate:
		h.result = fault.New(fault.Timeout, "", "the file system of %s could not be stopped in time", id)
	case givenUp:
		h.result = fault.New(fault.Timeout, "", "the process that stops the file system of %s does not end", id)
	case failure != "":
		goesOn = h.job == doFreeze && !frozen
		h.result = fault.New(fault.Precondition, "", "%s", failure)
	default:
		h.result = fault.New(fault.Unavailable, "", "the process that stops the file system of %s was killed", id)
	}
	if goesOn {
		if err := f.forget(id); err != nil {
			f.Log.Warn("The record of a freeze stays", "volume", id, "err", err)
		}
	}
	f.mu.Lock()
	delete(f.running, id)
	f.mu.Unlock()
	close(h.ended)
	if goesOn || givenUp || h.job == doThaw {
		return
	}
	f.Log.Warn("What stopped a file system ended without letting it go on; another process does", "volume", id, "err", h.result)
	if _, err := f.start(id, path, doThaw, path); err != nil && !errors.Is(err, fault.InProgress) {
		f.Log.Error("A file system that was stopped for a snapshot may stand still", "volume", id, "err", err)
	}
}

// The record of a stop is one small file, written like the journal's.
type freezeRecord struct {
	Path string `json:"path"` // where the file system is mounted
}

func (f *Freezer) file(id string) string { return filepath.Join(f.Dir, id+recordSuffix) }

func (f *Freezer) record(id, path string) error {
	b, err := json.Marshal(freezeRecord{Path: path})
	if err != nil {
		return err
	}
	return fault.Wrap(replaceSynced(f.file(id), b), "record a stop of %s", id)
}

// recorded is where the file system is that a record says is stopped; "" for no record.
func (f *Freezer) recorded(id string) (string, error) {
	b, err := os.ReadFile(f.file(id))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	var r freezeRecord
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	return r.Path, fault.Wrap(err, "read the record of a stop of %s", id)
}

func (f *Freezer) forget(id string) error {
	if err := os.Remove(f.file(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil // a record that comes back after a power failure does no harm
}

// Freeze stops the file system of a disk that is staged on this node; see Freezer.Freeze. Kinds: NotFound (no file system of
// it is mounted here for writing).
func (s *Service) Freeze(ctx context.Context, id string, deadline time.Time) (func(context.Context) error, error) {
	if s.Freezer == nil {
		return nil, fault.New(fault.Unsupported, "", "this node service stops no file systems")
	}
	unlock, err := s.locks.TryLock(id, "freeze")
	if err != nil {
		return nil, err
	}
	defer unlock() // a file system that is stopped may be published, measured, and unstaged, which lets it go on first
	rec, err := s.journal.load(id)
	if err != nil {
		return nil, err
	}
	if rec == nil || !rec.Staged || rec.Volume.Mode != stage.Mount || rec.Volume.ReadOnly {
		return nil, fault.New(fault.NotFound, "", "no file system of disk %s is mounted on this node for writing", id)
	}
	return s.Freezer.Freeze(ctx, id, rec.Volume.StagingPath, deadline)
}

// letGoOn ends a stop of the file system, since unmounting one that is stopped leaves its superblock stopped: the next mount
// of it, or of the same device, would stand still (fs/super.c: an active reference of the freeze).
func (s *Service) letGoOn(ctx context.Context, id string) error {
	if s.Freezer == nil {
		return nil
	}
	return s.Freezer.Thaw(ctx, id)
}
