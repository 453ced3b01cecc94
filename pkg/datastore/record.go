package datastore

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Record fixes what a volume is before it has any extent, so that every retry continues the same volume.
type Record struct {
	Version int    `json:"version"`
	ID      string `json:"id"`   // directory below volumes/
	Key     string `json:"key"`  // file below names/
	Name    string `json:"name"` // the orchestrator's name
	UUID    string `json:"uuid"` // ddb.uuid: 32 lower-case hex digits
	Size    int64  `json:"size"` // capacity asked for, bytes
	Format  string `json:"format"`
	Type    string `json:"type"`
	// Source of the first content, nil for zeros; CloneMode is how it is taken over.
	Source    *Source `json:"source,omitempty"`
	CloneMode string  `json:"cloneMode,omitempty"`
}

// Source is a snapshot or a disk; exactly one of them is set.
type Source struct {
	Snapshot string `json:"snapshot,omitempty"`
	Disk     string `json:"disk,omitempty"`
}

func (r Record) check() error {
	if err := errors.Join(checkEntry(r.ID), checkEntry(r.Key)); err != nil {
		return err
	}
	if err := checkUUID(r.UUID); err != nil {
		return err
	}
	if r.Name == "" || len(r.Name) > maxName {
		return fmt.Errorf("a name of %d bytes", len(r.Name))
	}
	if r.Size <= 0 {
		return fmt.Errorf("a size of %d bytes", r.Size)
	}
	if r.Source == nil {
		return nil
	}
	if (r.Source.Snapshot == "") == (r.Source.Disk == "") {
		return fmt.Errorf("the source is %q and %q, one of which must be set", r.Source.Snapshot, r.Source.Disk)
	}
	return checkEntry(r.Source.Snapshot + r.Source.Disk)
}

// SnapshotRecord fixes which disk a snapshot's name belongs to. It is reserved before the disk's manifest has the snapshot,
// and freed after the manifest has it no more: a manifest has the last word on what exists.
type SnapshotRecord struct {
	Version  int    `json:"version"`
	ID       string `json:"id"`
	Key      string `json:"key"`  // file below names/
	Name     string `json:"name"` // the orchestrator's name
	Disk     string `json:"disk"` // id of the volume
	DiskUUID string `json:"diskUUID"`
}

func (r SnapshotRecord) check() error {
	if err := errors.Join(checkEntry(r.ID), checkEntry(r.Key), checkEntry(r.Disk)); err != nil {
		return err
	}
	if r.Name == "" || len(r.Name) > maxName {
		return fmt.Errorf("a name of %d bytes", len(r.Name))
	}
	return checkUUID(r.DiskUUID)
}

func checkUUID(u string) error {
	if len(u) != 32 || strings.Trim(u, "0123456789abcdef") != "" {
		return fmt.Errorf("uuid %q is not 32 hex digits", u)
	}
	return nil
}

const maxName = 1024 // bytes, the port's limit

// checkEntry says whether s can be a key or an id: a file name that is neither hidden nor one of this package's own.
func checkEntry(s string) error {
	if err := fsx.CheckName(s); err != nil {
		return err
	}
	if strings.HasPrefix(s, ".") || len(s) > 128 {
		return fault.New(fault.Invalid, "", "%q is not the id of a disk or snapshot", s)
	}
	return nil
}

// Reserve makes r the record of r.Key, or returns the record that owns the key already.
func (s *Datastore) Reserve(r Record) (owner Record, made bool, err error) {
	r.Version = Version
	return reserve(s, r, r.Key, s.Reserved)
}

// ReserveSnapshot is Reserve for the name of a snapshot.
func (s *Datastore) ReserveSnapshot(r SnapshotRecord) (owner SnapshotRecord, made bool, err error) {
	r.Version = Version
	return reserve(s, r, r.Key, s.ReservedSnapshot)
}

// named is what may own a name.
type named interface{ check() error }

func reserve[R named](s *Datastore, r R, key string, reserved func(string) (R, error)) (owner R, made bool, err error) {
	if err := r.check(); err != nil {
		return owner, false, fault.New(fault.Invalid, "", "record of %q: %w", key, err)
	}
	text, err := encode(r, maxRecord)
	if err != nil {
		return owner, false, err
	}
	err = publish(s.names, key, text)
	if errors.Is(err, fs.ErrExist) {
		owner, err = reserved(key)
		return owner, false, err
	}
	return r, err == nil, err
}

// Reserved is the record that owns key. Kinds: NotFound, Damaged.
func (s *Datastore) Reserved(key string) (Record, error) {
	return reserved(s, key, func(r Record) string { return r.Key })
}

// ReservedSnapshot is the record that owns the key of a snapshot. Kinds: NotFound, Damaged.
func (s *Datastore) ReservedSnapshot(key string) (SnapshotRecord, error) {
	return reserved(s, key, func(r SnapshotRecord) string { return r.Key })
}

func reserved[R named](s *Datastore, key string, keyOf func(R) string) (R, error) {
	var none R
	if err := checkEntry(key); err != nil {
		return none, err
	}
	r, err := readRecord[R](s.names, key)
	if err == nil && keyOf(r) != key {
		err = damaged(key, fmt.Errorf("it is the record of %q", keyOf(r)))
	}
	if err == nil {
		err = s.names.Sync() // who made it may have died before its own sync, and the caller builds on it
	}
	return r, fault.Wrap(err, "name record")
}

// HasName says whether key has a record.
func (s *Datastore) HasName(key string) (bool, error) {
	if err := checkEntry(key); err != nil {
		return false, err
	}
	_, err := s.names.Stat(key)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Free removes the record of key; one that is not there is free already.
func (s *Datastore) Free(key string) error {
	if err := checkEntry(key); err != nil {
		return err
	}
	if err := removeFile(s.names, key); err != nil {
		return err
	}
	return s.names.Sync()
}

func readRecord[R named](d fsx.Dir, name string) (R, error) {
	var r, none R
	if err := readText(d, name, maxRecord, &r); err != nil {
		return none, err
	}
	if err := r.check(); err != nil {
		return none, damaged(name, err)
	}
	return r, nil
}
