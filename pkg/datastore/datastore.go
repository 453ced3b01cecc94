package datastore

import (
	"errors"
	"io/fs"
	"slices"
	"strings"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

const (
	metaDir      = ".vmdk-csi"
	identityFile = "datastore.json"
	namesDir     = "names"
	volumesDir   = "volumes"
	deadPrefix   = ".deleted-"
)

// Datastore is an open datastore.
type Datastore struct {
	root, names, volumes fsx.Dir
	id                   identity
	noLocks              bool
}

type identity struct {
	Version int    `json:"version"`
	UUID    string `json:"uuid"`
}

// Options of Open.
type Options struct {
	// UUID is the identity that the datastore is known to have, "" if it was never seen. Another one, or none, is
	// fault.Precondition: most likely its file system is not mounted, and a datastore of the same name would be made
	// on the disk below the mount point.
	UUID string
	// NoLocks takes no byte locks at all, for file systems whose locks do not work or must not be relied on: the commits of
	// manifests alone decide between hosts. Whoever opens a volume's directory by its descriptor must take none either.
	NoLocks bool
}

// OpenPath opens the datastore in the directory at path, which must exist. Kinds: NotFound, and those of Open.
func OpenPath(path string, o Options) (*Datastore, error) {
	root, err := fsx.OpenRoot(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "Mount it, or make the directory: it is never made by itself, lest a missing mount become a directory on the root disk.",
			"the datastore's directory %s does not exist", path)
	}
	if err != nil {
		return nil, err
	}
	return Open(root, o)
}

// Open opens the datastore in root, and makes its layout where it is missing. The Datastore owns root, also when
// Open fails. Kinds: Precondition (another identity), Damaged, ReadOnly, NoSpace, Unsupported (version).
func Open(root fsx.Dir, o Options) (s *Datastore, err error) {
	if o.NoLocks {
		root = fsx.WithoutLocks(root)
	}
	s = &Datastore{root: root, noLocks: o.NoLocks}
	defer func() {
		if err != nil {
			s.Close()
			s = nil
		}
	}()
	meta, err := s.layout(o.UUID != "")
	if err != nil {
		return s, err
	}
	defer meta.Close()
	if err := s.identify(meta, o.UUID); err != nil {
		return s, err
	}
	// A read-only datastore still serves reads.
	if err := s.Sweep(); err != nil && fault.KindOf(err) != fault.ReadOnly {
		return s, err
	}
	return s, nil
}

// layout opens the directories, and makes missing ones unless the datastore is known to exist.
func (s *Datastore) layout(known bool) (meta fsx.Dir, err error) {
	if known {
		if _, err := s.root.Stat(metaDir); errors.Is(err, fs.ErrNotExist) {
			return nil, strange("the directory holds no datastore, but it did before")
		}
	}
	if meta, err = s.ensure(metaDir); err != nil {
		return nil, err
	}
	if s.names, err = s.ensure(namesDir); err == nil {
		s.volumes, err = s.ensure(volumesDir)
	}
	if err == nil {
		err = s.root.Sync() // also what a process that died made: everything else is built on it
	}
	if err != nil {
		_ = meta.Close()
		return nil, err
	}
	return meta, nil
}

func (s *Datastore) ensure(name string) (fsx.Dir, error) {
	d, err := s.root.Sub(name)
	if !errors.Is(err, fs.ErrNotExist) {
		return d, err
	}
	if err := s.root.Mkdir(name); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fault.Wrap(err, "the datastore's layout cannot be made")
	}
	return s.root.Sub(name)
}

// identify reads the identity, or gives the datastore one.
func (s *Datastore) identify(meta fsx.Dir, want string) error {
	err := readText(meta, identityFile, maxRecord, &s.id)
	if errors.Is(err, fs.ErrNotExist) {
		if want != "" {
			return strange("the directory holds no datastore, but it did before")
		}
		s.id = identity{Version: Version, UUID: randomHex(16)}
		text, eerr := encode(s.id, maxRecord)
		if eerr != nil {
			return eerr
		}
		if err = publish(meta, identityFile, text); errors.Is(err, fs.ErrExist) {
			err = readText(meta, identityFile, maxRecord, &s.id)
		}
	}
	if err == nil {
		err = meta.Sync() // it may be the work of a process that died before its own sync
	}
	if err != nil {
		return fault.Wrap(err, "the datastore's identity")
	}
	if want != "" && want != s.id.UUID {
		return strange("the directory holds datastore " + s.id.UUID + ", expected was " + want)
	}
	return nil
}

func strange(what string) error {
	return fault.New(fault.Precondition, "Check that the datastore's file system is mounted. If the datastore was replaced on purpose, remove its line from the host's state directory.",
		"%s", what)
}

// Close closes the directories.
func (s *Datastore) Close() {
	for _, d := range []fsx.Dir{s.names, s.volumes, s.root} {
		if d != nil {
			_ = d.Close() // a directory descriptor holds nothing that could be lost
		}
	}
}

// NoLocks says that no byte locks are taken.
func (s *Datastore) NoLocks() bool { return s.noLocks }

// UUID is the datastore's identity.
func (s *Datastore) UUID() string { return s.id.UUID }

// Space is the capacity and what is free, in bytes.
func (s *Datastore) Space() (total, free int64, err error) { return s.root.Space() }

// Look describes the metadata directory that is at path now, to be compared with Root.
func Look(path string) (fsx.Info, error) {
	d, err := fsx.OpenRoot(path)
	if err != nil {
		return fsx.Info{}, err
	}
	defer d.Close()
	return d.Stat(metaDir)
}

// Root describes the datastore's metadata directory; another inode at the same path means another mount.
func (s *Datastore) Root() (fsx.Info, error) { return s.root.Stat(metaDir) }

// IDs lists the volumes in order of id, as the directory has them, complete or not.
func (s *Datastore) IDs() ([]string, error) {
	names, err := s.volumes.List()
	if err != nil {
		return nil, err
	}
	ids := names[:0]
	for _, n := range names {
		if checkEntry(n) == nil {
			ids = append(ids, n)
		}
	}
	return ids, nil
}

// Discard removes the volume with all its files. The caller holds v's Lock and has committed that the volume is being
// deleted, or knows that it has no manifest. Steps:
//
//  1. rename the directory away                      a crash leaves the volume as it was
//  2. make that durable, remove the files, then the directory: SweepDeleted   a crash leaves a remainder that Sweep removes
//
// The rename is one step, so that no retry and no new volume of the same id ever meets half of this one.
func (s *Datastore) Discard(v *Volume) error {
	dead := deadPrefix + v.id + "-" + randomHex(4)
	if err := s.volumes.Rename(v.id, dead); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return s.SweepDeleted(v.id)
}

// SweepDeleted removes what is left of deleted volumes of this id.
func (s *Datastore) SweepDeleted(id string) error { return s.sweep(deadPrefix + id + "-") }

// Sweep removes what is left of any deleted volume, and temporary files that nobody writes any more.
func (s *Datastore) Sweep() error {
	if err := sweepTemps(s.names); err != nil {
		return err
	}
	return s.sweep(deadPrefix)
}

func (s *Datastore) sweep(prefix string) error {
	names, err := s.volumes.List()
	if err != nil {
		return err
	}
	names = slices.DeleteFunc(names, func(n string) bool { return !strings.HasPrefix(n, prefix) })
	if len(names) == 0 {
		return nil
	}
	// Who renamed the directory away may have died before making that durable. A crash must not bring it back under its
	// old name when the first of its files are gone.
	if err := s.volumes.Sync(); err != nil {
		return err
	}
	var first error
	for _, n := range names {
		if err := s.purge(n); err != nil && first == nil {
			first = fault.Wrap(err, "remove a deleted disk's files")
		}
	}
	return first // no sync afterwards: what comes back after a crash is still a remainder, and swept again
}

func (s *Datastore) purge(name string) error {
	d, err := s.volumes.Sub(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // another host was faster
	}
	if err != nil {
		return err
	}
	defer d.Close()
	files, err := d.List()
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := removeFile(d, f); err != nil {
			return err
		}
	}
	return removeFile(s.volumes, name)
}
