package local

import (
	"log/slog"
	"path/filepath"
	"sync"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/datastore"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/lease"
	"github.com/vmdk-csi/vmdk-csi/pkg/volume"
)

// store is one datastore of the host, open or not.
type store struct {
	cfg      DatastoreConfig
	me       lease.Identity
	engine   volume.Engine
	openRoot func(path string) (fsx.Dir, error)
	ids      *identities
	log      *slog.Logger

	mu      sync.Mutex
	ds      *datastore.Datastore
	vols    *volume.Volumes
	retired []*datastore.Datastore // replaced, perhaps in use by an operation that began before
	last    string                 // the last reason why it is not ready, to log it once

	box box

	background *background
}

func (d DatastoreConfig) check() error {
	if err := host.CheckDatastoreName(d.Name); err != nil {
		return err
	}
	switch {
	case d.Root == nil && (!filepath.IsAbs(d.Path) || filepath.Clean(d.Path) != d.Path):
		return fault.New(fault.Invalid, "Give an absolute path without '..', '.' or a trailing slash.",
			"datastore %s: %q is not the plain path of a directory", d.Name, d.Path)
	case d.Scope != host.ScopeNode && d.Scope != host.ScopeShared:
		return fault.New(fault.Invalid, "", "datastore %s: scope %q is none of node, shared", d.Name, d.Scope)
	}
	return nil
}

// open is the datastore's volumes; it opens a datastore that is not open, and one whose directory was replaced (mounted
// or unmounted meanwhile).
//
// A file system whose server is away lets nobody go who asks: Unavailable is the answer then, soon, and the other
// datastores of the host are served.
func (s *store) open() (*volume.Volumes, error) {
	return within(&s.box, s.cfg.Name, s.openNow)
}

func (s *store) openNow() (*volume.Volumes, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ds != nil && s.same() {
		return s.vols, nil
	}
	s.retireLocked()
	err := s.openLocked()
	if err != nil {
		err = fault.Wrap(err, "datastore %s", s.cfg.Name)
		if s.last != err.Error() {
			s.log.Warn("datastore is not ready", "datastore", s.cfg.Name, "path", s.cfg.Path, "error", err)
			s.last = err.Error()
		}
		return nil, err
	}
	s.last = ""
	s.log.Info("datastore is ready", "datastore", s.cfg.Name, "path", s.cfg.Path, "uuid", s.ds.UUID())
	return s.vols, nil
}

func (s *store) openLocked() error {
	want, err := s.ids.get(s.cfg.Name)
	if err != nil {
		return err
	}
	ds, err := s.openPath(datastore.Options{UUID: want, NoLocks: s.cfg.NoLocks})
	if err != nil {
		return err
	}
	if want == "" {
		if err := s.ids.set(s.cfg.Name, ds.UUID()); err != nil {
			ds.Close()
			return err
		}
	}
	s.ds = ds
	s.vols = volume.New(volume.Config{Store: ds, Name: s.cfg.Name, Host: s.me, Engine: s.engine, Log: s.log})
	return nil
}

func (s *store) openPath(o datastore.Options) (*datastore.Datastore, error) {
	open := s.cfg.Root
	switch {
	case open != nil:
	case s.openRoot != nil:
		open = func() (fsx.Dir, error) { return s.openRoot(s.cfg.Path) }
	default:
		return datastore.OpenPath(s.cfg.Path, o)
	}
	root, err := open()
	if err != nil {
		return nil, err
	}
	return datastore.Open(root, o)
}

// same says whether the path still leads to the open datastore.
func (s *store) same() bool {
	if s.cfg.Root != nil {
		return true // no path can lead elsewhere
	}
	now, err := datastore.Look(s.cfg.Path)
	if err != nil {
		return false
	}
	then, err := s.ds.Root()
	return err == nil && then.Inode == now.Inode && then.Device == now.Device
}

// retire makes the next open start anew.
func (s *store) retire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.retireLocked()
}

func (s *store) retireLocked() {
	if s.ds != nil {
		s.retired = append(s.retired, s.ds)
		s.ds, s.vols = nil, nil
	}
}

func (s *store) close() {
	if s.box.hangs() {
		return // the descriptors go with the process
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.retireLocked()
	for _, ds := range s.retired {
		ds.Close()
	}
	s.retired = nil
}

type room struct{ total, free int64 }

func (s *store) space() (room, error) {
	if _, err := s.open(); err != nil {
		return room{}, err
	}
	return within(&s.box, s.cfg.Name, func() (r room, err error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.ds == nil {
			return room{}, fault.New(fault.Unavailable, "Try again.", "datastore %s is being opened anew", s.cfg.Name)
		}
		r.total, r.free, err = s.ds.Space()
		return r, err
	})
}

// dress adds to a disk what the datastore alone does not know.
func (s *store) dress(d *host.Disk) {
	if s.cfg.Scope == host.ScopeNode {
		d.Hosts = []string{s.me.Host}
	}
}
