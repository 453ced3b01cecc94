package node

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/kmutex"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/stage"
)

// Config is what a Service is made of.
type Config struct {
	JournalDir  string // made if missing; must survive this process, and may survive the machine
	LinkDir     string // of the links by disk, /run/vmdk-csi/by-id
	Hostd       Hostd
	Holder      *Holder // may be nil: nobody else holds the descriptors
	Devices     Devices
	Mounts      Mounts
	FileSystems FileSystems
	Partitions  Partitions
	Freezer     *Freezer     // may be nil: no file system is stopped
	Recorder    Recorder     // may be nil
	Log         *slog.Logger // may be nil
}

// Service implements stage.Volumes.
type Service struct {
	Config
	journal *journal
	locks   kmutex.Set
	// step is called between any two steps, for tests that die there.
	step func(string)
}

var _ stage.Volumes = (*Service)(nil)

// How long parts of a call may take that wait for other processes.
const (
	exportTime  = 30 * time.Second // for a worker to answer its first request
	releaseTime = 10 * time.Second // for the last user of a device to go away
	undoTime    = 60 * time.Second // for undoing what a failed call did, whatever the caller's deadline
)

// New makes a Service. Links of staged disks that a restart of the machine removed are not made again here: the next
// Stage does.
func New(c Config) (*Service, error) {
	if c.Recorder == nil {
		c.Recorder = silent{}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	j, err := openJournal(c.JournalDir)
	if err != nil {
		return nil, err
	}
	return &Service{Config: c, journal: j, step: func(string) {}}, nil
}

// Stage is a sequence of steps, each of which finds out first whether it is done:
//
//  1. write the journal's record           died before: nothing happened
//  2. attach (see ensureAttached)          died after: the next Stage continues, Unstage undoes
//  3. link by the disk's uuid
//  4. find or make the partition
//  5. make the file system, if the device is empty; the record says so first
//  6. mount
//  7. mark the record staged
//
// A failure that the orchestrator will take for final undoes everything, also what an earlier call of the same staging
// left behind: it will not ask for Unstage. A failure of a volume that was staged before undoes nothing.
func (s *Service) Stage(ctx context.Context, v stage.Volume) error {
	unlock, err := s.locks.TryLock(v.ID, "stage")
	if err != nil {
		return err
	}
	defer unlock()
	rec, err := s.journal.load(v.ID)
	if err != nil {
		return err
	}
	if rec != nil && !sameVolume(rec.Volume, v) {
		if rec.Staged {
			return fault.New(fault.Exists, "unstage it first", "volume %s is staged already at %s, as %s",
				v.ID, rec.Volume.StagingPath, describe(rec.Volume))
		}
		if err := s.dismantle(ctx, v.ID, rec); err != nil {
			return fault.Wrap(err, "undo an earlier staging of %s", v.ID)
		}
		rec = nil
	}
	if rec == nil {
		rec = &record{Volume: v}
		if err := s.journal.save(rec); err != nil {
			return err
		}
	}
	s.step("recorded")
	err = s.stage(ctx, rec)
	if err == nil {
		return nil
	}
	s.Recorder.Event(ctx, v.ID, true, "StageFailed", err.Error())
	if !rec.Staged && final(err) {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
		if uerr := s.dismantle(undo, v.ID, rec); uerr != nil {
			s.Log.Warn("A failed staging could not be undone yet", "volume", v.ID, "err", uerr)
			// Not final any more: the orchestrator has to ask for Stage or Unstage again.
			return fault.New(fault.Unavailable, "", "%w; what it left could not be undone yet: %w", err, uerr)
		}
	}
	return err
}

func (s *Service) stage(ctx context.Context, rec *record) error {
	dev, epoch, err := s.ensureAttached(ctx, rec)
	if err != nil {
		return err
	}
	defer dev.Close()
	s.step("attached")
	if rec.Volume.Mode == stage.Mount {
		if err := s.ensureMounted(ctx, rec, dev, epoch); err != nil {
			return err
		}
	}
	s.step("mounted")
	if rec.Staged {
		return nil
	}
	rec.Staged, rec.Formatting = true, false
	if err := s.journal.save(rec); err != nil {
		rec.Staged = false
		return err
	}
	s.step("staged")
	return nil
}

// Final says whether an orchestrator takes a failure of this kind for the end of the call. The others it follows by
// another Stage or by Unstage, so that what is there can stay and be continued (CSI specification, "Error Scheme").
func final(err error) bool {
	switch fault.KindOf(err) {
	case fault.Timeout, fault.Unavailable, fault.InProgress, fault.Exhausted, fault.NoSpace:
		return false
	}
	return true
}

func sameVolume(a, b stage.Volume) bool {
	return a.ID == b.ID && a.StagingPath == b.StagingPath && a.Mode == b.Mode && a.FSType == b.FSType &&
		a.Partition == b.Partition && a.ReadOnly == b.ReadOnly && slices.Equal(a.Options, b.Options)
}

func describe(v stage.Volume) string {
	text := string(v.Mode)
	if v.Mode == stage.Mount {
		text += " " + v.FSType
	}
	if v.ReadOnly {
		text += " read-only"
	}
	return text
}

// Unstage undoes Stage, also one that never finished or whose record is lost. That a half-made file system cannot be
// taken away again holds it up only while that can pass.
func (s *Service) Unstage(ctx context.Context, id, stagingPath string) error {
	unlock, err := s.locks.TryLock(id, "unstage")
	if err != nil {
		return err
	}
	defer unlock()
	rec, err := s.journal.load(id)
	if err != nil {
		return err
	}
	if rec == nil {
		// Without a record this package did not attach it. A device or mount says that the record was lost.
		rec = &record{Volume: stage.Volume{ID: id, StagingPath: stagingPath}}
		there, err := s.traces(rec)
		if err != nil || !there {
			return err
		}
	} else if rec.Volume.StagingPath != stagingPath {
		s.Log.Warn("Unstage names another path than Stage did", "volume", id, "staged", rec.Volume.StagingPath, "asked", stagingPath)
	}
	left := s.unformat(ctx, rec)
	if left != nil && !final(left) {
		return left
	}
	rec.Formatting = false // in memory: until the record is gone, a repeated Unstage tries again
	if err := s.dismantle(ctx, id, rec); err != nil || left == nil {
		return err
	}
	s.Log.Warn("A file system that was not finished stays on the disk", "volume", id, "err", left)
	s.Recorder.Event(ctx, id, true, "HalfFormatted", "a file system that was not finished stays on the disk; until it is emptied, "+
		"it can be used with volumeMode Block only: "+left.Error())
	return nil
}

func (s *Service) traces(rec *record) (bool, error) {
	if _, mounted, err := s.Mounts.At(rec.Volume.StagingPath); mounted || err != nil {
		return mounted, err
	}
	d, found, err := s.Devices.Find(rec.Volume.ID)
	d.Close()
	return found, err
}

// Attached says whether hostd has the disk open.
func (s *Service) attached(ctx context.Context, id string) (host.Attachment, bool, error) {
	all, err := s.Hostd.Attachments(ctx)
	if err != nil {
		return host.Attachment{}, false, err
	}
	i := slices.IndexFunc(all, func(a host.Attachment) bool { return a.ID == id })
	if i < 0 {
		return host.Attachment{}, false, nil
	}
	return all[i], true, nil
}
