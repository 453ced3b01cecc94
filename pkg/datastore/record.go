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
}

func (r Record) check() error {
	if err := errors.Join(checkEntry(r.ID), checkEntry(r.Key)); err != nil {
		return err
	}
	if len(r.UUID) != 32 || strings.Trim(r.UUID, "0123456789abcdef") != "" {
		return fmt.Errorf("uuid %q is not 32 hex digits", r.UUID)
	}
	if r.Name == "" || len(r.Name) > maxName {
		return fmt.Errorf("a name of %d bytes", len(r.Name))
	}
	if r.Size <= 0 {
		return fmt.Errorf("a size of %d bytes", r.Size)
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
		return fault.New(fault.Invalid, "", "%q is not the id of a disk", s)
	}
	return nil
}

// Reserve makes r the record of r.Key, or returns the record that owns the key already.
func (s *Datastore) Reserve(r Record) (owner Record, made bool, err error) {
	r.Version = Version
	if err := r.check(); err != nil {
		return Record{}, false, fault.New(fault.Invalid, "", "record of %q: %w", r.ID, err)
	}
	text, err := encode(r, maxRecord)
	if err != nil {
		return Record{}, false, err
	}
	err = publish(s.names, r.Key, text)
	if errors.Is(err, fs.ErrExist) {
		owner, err = s.Reserved(r.Key)
		return owner, false, err
	}
	return r, err == nil, err
}

// Reserved is the record that owns key. Kinds: NotFound, Damaged.
func (s *Datastore) Reserved(key string) (Record, error) {
	if err := checkEntry(key); err != nil {
		return Record{}, err
	}
	r, err := readRecord(s.names, key)
	if err == nil && r.Key != key {
		err = damaged(key, fmt.Errorf("it is the record of %q", r.Key))
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

func readRecord(d fsx.Dir, name string) (Record, error) {
	var r Record
	if err := readText(d, name, maxRecord, &r); err != nil {
		return Record{}, err
	}
	if err := r.check(); err != nil {
		return Record{}, damaged(name, err)
	}
	return r, nil
}
