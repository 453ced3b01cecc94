package datastore

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

const recordFile = "record.json"

// Volume is an open volume directory; it belongs to one goroutine.
type Volume struct {
	id     string
	dir    fsx.Dir
	lock   fsx.File
	poison error
}

// MakeVolume makes the directory and the record of a volume, or opens the volume if it has this record. Steps:
//
//  1. mkdir volumes/<id>, make it durable      a crash leaves an empty directory, which is no volume yet
//  2. publish record.json                      a crash leaves a volume without manifest: Create continues it
//
// Kinds: Precondition (the directory belongs to another record, one that was deleted and not yet removed).
func (s *Datastore) MakeVolume(r Record) (*Volume, error) {
	r.Version = Version
	if err := r.check(); err != nil {
		return nil, fault.New(fault.Invalid, "", "record of %q: %w", r.ID, err)
	}
	err := s.volumes.Mkdir(r.ID)
	made := err == nil
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if err := s.volumes.Sync(); err != nil {
		return nil, err
	}
	v, err := s.OpenVolume(r.ID)
	if err != nil {
		return nil, err
	}
	text, err := encode(r, maxRecord)
	if err == nil {
		err = publish(v.dir, recordFile, text)
	}
	if errors.Is(err, fs.ErrExist) {
		var there Record
		if there, err = v.Record(); err == nil && there.UUID != r.UUID {
			err = fault.New(fault.Precondition, "", "volume %s belongs to an earlier disk of this name", r.ID)
		}
	}
	if err != nil {
		v.Close()
		if made && !errors.Is(err, fault.Poisoned) {
			_ = s.volumes.Remove(r.ID) // only if it is empty; else it is another's by now, or is found by a retry
		}
		return nil, err
	}
	return v, nil
}

// OpenVolume opens a volume's directory. Kinds: NotFound, Invalid.
func (s *Datastore) OpenVolume(id string) (*Volume, error) {
	if err := checkEntry(id); err != nil {
		return nil, err
	}
	d, err := s.volumes.Sub(id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "", "disk %s does not exist on this datastore: %w", id, fs.ErrNotExist)
	}
	if err != nil {
		return nil, err
	}
	return &Volume{id: id, dir: d}, nil
}

// Close lets the directory and the lock go.
func (v *Volume) Close() {
	v.Unlock()
	_ = v.dir.Close() // a directory descriptor holds nothing that could be lost
}

// Dir is the volume's directory; it is the Volume's.
func (v *Volume) Dir() fsx.Dir { return v.dir }

// ID is the volume's id.
func (v *Volume) ID() string { return v.id }

// Lock excludes other operations on this volume, in this and in other processes, until Unlock or Close. On a read-only
// file system it excludes writers only: nothing here can be changed. Kinds: InProgress, NotFound (deleted meanwhile).
func (v *Volume) Lock() error {
	mode := fsx.LockWrite
	f, err := v.dir.Open(recordFile, fsx.ReadWrite)
	if errors.Is(err, fault.ReadOnly) {
		mode = fsx.LockRead
		f, err = v.dir.Open(recordFile, fsx.ReadOnly)
	}
	if err != nil {
		return err
	}
	err = f.Lock(mode)
	switch {
	case errors.Is(err, fault.InUse):
		err = fault.New(fault.InProgress, "Try again when it has finished.", "disk %s: another process works on it", v.id)
	case errors.Is(err, fault.Unsupported):
		err = nil // no locks here: the manifest's commit decides alone
	}
	if err == nil {
		err = v.same(f)
	}
	if err == nil {
		// An earlier operation may have died before its sync. What this one reads and builds on must not vanish in a crash.
		err = v.dir.Sync()
	}
	if err != nil {
		_ = f.Close()
		return err
	}
	v.lock = f
	return nil
}

// same says whether the locked record is still the one that has the name: its directory may have been deleted before
// the lock was taken, and made anew.
func (v *Volume) same(f fsx.File) error {
	mine, err := f.Stat()
	if err != nil {
		return err
	}
	there, err := v.dir.Stat(recordFile)
	if err == nil && there.Inode == mine.Inode {
		return nil
	}
	return fault.New(fault.InProgress, "Try again.", "disk %s is being deleted", v.id)
}

// Unlock ends Lock.
func (v *Volume) Unlock() {
	if v.lock != nil {
		_ = v.lock.Close() // closing an open file description drops its locks (fcntl_locking(2))
		v.lock = nil
	}
}

// Record reads the volume's record. Kinds: NotFound, Damaged.
func (v *Volume) Record() (Record, error) {
	r, err := readRecord[Record](v.dir, recordFile)
	if err == nil && r.ID != v.id {
		err = damaged(recordFile, fmt.Errorf("it is the record of %q", r.ID))
	}
	return r, fault.Wrap(err, "disk %s", v.id)
}

// latestTries is how often Latest may be overtaken. One operation on a disk commits twice or three times; to be overtaken
// so often takes several operations in the time of one open.
const latestTries = 10

// Latest reads the highest manifest; false if there is none, which is a volume whose creation has not finished. It needs
// no Lock: two commits between its list and its open remove what it chose, and it lists again.
// Kinds: Damaged, Unsupported (version), Poisoned, Unavailable (overtaken too often).
func (v *Volume) Latest() (Manifest, bool, error) {
	if v.poison != nil {
		return Manifest{}, false, v.poison
	}
	var gone error
	for range latestTries {
		names, err := v.dir.List()
		if err != nil {
			return Manifest{}, false, err
		}
		found := sortManifests(names)
		if len(found) == 0 {
			return Manifest{}, false, nil
		}
		m, err := v.manifest(found[len(found)-1])
		if !errors.Is(err, fs.ErrNotExist) {
			return m, err == nil, err
		}
		gone = err
	}
	return Manifest{}, false, fault.New(fault.Unavailable, "Try again.", "disk %s changes faster than it can be read: %v", v.id, gone)
}

// manifest reads one by its name.
func (v *Volume) manifest(name string) (Manifest, error) {
	var m Manifest
	if err := readText(v.dir, name, maxManifest, &m); err != nil {
		return Manifest{}, fault.Wrap(err, "disk %s", v.id)
	}
	epoch, seq, _ := parseManifestName(name)
	err := m.check()
	switch {
	case err != nil:
	case m.Epoch != epoch || m.Seq != seq:
		err = fmt.Errorf("it is manifest %d-%d", m.Epoch, m.Seq)
	case m.Disk != v.id:
		err = fmt.Errorf("it is a manifest of %q", m.Disk)
	}
	if err != nil {
		return Manifest{}, fault.Wrap(damaged(name, err), "disk %s", v.id)
	}
	return m, nil
}

// Commit makes m the volume's truth. Steps:
//
//  1. publish it under its number   the commit point, if the number is still the highest
//  2. list: a higher one was there  crash before 3: a manifest below the highest, which is garbage
//  3. unlink it again, and it never was
//  4. unlink what is older than the last two
//
// Step 2 is for a committer that was stalled between reading and linking: meanwhile its number may have been taken,
// superseded and removed (4, of others), and a name that is free proves nothing. Numbers only rise, so one that is the
// highest after it was linked was never passed.
//
// Kinds: Exists (somebody else committed this epoch and sequence, or a later one), Invalid, Poisoned (the outcome is
// unknown: open the volume again), NoSpace, ReadOnly.
func (v *Volume) Commit(m Manifest) error {
	if v.poison != nil {
		return v.poison
	}
	m.Version, m.Disk = Version, v.id
	if err := m.check(); err != nil {
		return fault.New(fault.Invalid, "", "manifest of disk %s: %w", v.id, err)
	}
	text, err := encode(m, maxManifest)
	if err != nil {
		return err
	}
	name := manifestName(m.Epoch, m.Seq)
	err = publish(v.dir, name, text)
	if errors.Is(err, fault.NoSpace) && v.makeRoom() {
		// A detach needs a few blocks even when the guest has filled the datastore.
		err = publish(v.dir, name, text)
	}
	var names []string
	if err == nil {
		names, err = v.confirm(name)
	}
	if err != nil {
		if fault.KindOf(err) == fault.Poisoned {
			v.poison = err
		}
		return fault.Wrap(err, "disk %s", v.id)
	}
	// Older manifests are garbage from here on: what cannot be removed now is collected at the next attach.
	for _, n := range stale(names) {
		_ = v.dir.Remove(n)
	}
	return nil
}

// confirm is steps 2 and 3 of Commit; it returns the names of the directory.
func (v *Volume) confirm(name string) ([]string, error) {
	names, err := v.dir.List()
	if err != nil {
		return nil, unknown(name, err)
	}
	found := sortManifests(names)
	if len(found) > 0 && found[len(found)-1] == name {
		return names, nil
	}
	_ = v.dir.Remove(name) // below the highest it is garbage, whether it can be removed or not
	return nil, fault.New(fault.Exists, "", "%s came too late: a later manifest is there: %w", name, fs.ErrExist)
}

// makeRoom removes every manifest but the highest, and says whether there was one.
func (v *Volume) makeRoom() bool {
	names, err := v.dir.List()
	if err != nil {
		return false
	}
	found := sortManifests(names)
	made := false
	for _, n := range found[:max(0, len(found)-1)] {
		made = v.dir.Remove(n) == nil || made
	}
	return made
}

// stale are the manifests before the last two.
func stale(names []string) []string {
	found := sortManifests(names)
	return found[:max(0, len(found)-2)]
}

// Drop removes the files of link l that m does not name. The caller has committed m, holds the Lock, and knows that nobody
// opens l any more. What a crash leaves of it is collected by whoever opens the volume next.
func (v *Volume) Drop(m Manifest, l Link) error {
	keep := m.files()
	var errs []error
	for _, n := range l.Files() {
		if !keep[n] {
			errs = append(errs, removeFile(v.dir, n))
		}
	}
	return errors.Join(errs...)
}

// Collect removes the files that neither m nor this package's protocol refers to (I6), and returns their names. m is
// the volume's latest manifest, or the zero Manifest of a volume without one. The caller holds the Lock. Kinds:
// Precondition (m is growing or merging: a descriptor may name extents that m does not, so nothing is surely unreferenced).
func (v *Volume) Collect(m Manifest) ([]string, error) {
	if m.Merge != nil || m.Behind != "" {
		return nil, fault.New(fault.Precondition, "Finish its consolidation first.", "the links of disk %s are being merged", v.id)
	}
	if m.Growing != 0 {
		return nil, fault.New(fault.Precondition, "Finish its expansion first.", "disk %s is growing to %d bytes", v.id, m.Growing)
	}
	names, err := v.dir.List()
	if err != nil {
		return nil, err
	}
	keep := m.files()
	keep[recordFile] = true
	found := sortManifests(names)
	for _, n := range found[max(0, len(found)-2):] {
		keep[n] = true
	}
	var removed []string
	for _, n := range names {
		// NFS keeps removed open files under such names and removes them itself.
		if keep[n] || strings.HasPrefix(n, ".nfs") {
			continue
		}
		if info, err := v.dir.Stat(n); err != nil || !info.Mode.IsRegular() {
			continue // a directory (another product's lock) or a link is nothing that this package made
		}
		if err := removeFile(v.dir, n); err != nil {
			return removed, err
		}
		removed = append(removed, n)
	}
	return removed, nil // no sync: a file that comes back after a crash is still unreferenced, and collected again
}
