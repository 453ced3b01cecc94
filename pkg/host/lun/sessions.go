package lun

import (
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// sessionDir is the directory beside those of the datastore that says which node has which disk.
const sessionDir = "sessions"

// session is that nodes have a disk: one that writes, or any number that read.
type session struct {
	ReadOnly bool     `json:"readOnly,omitempty"`
	Nodes    []string `json:"nodes"`
	// Evicted are nodes from which the disk is taken, or was taken and which did not attach it anew since: their processes may not use it.
	Evicted []string `json:"evicted,omitempty"`
}

func (s session) has(node string) bool { return slices.Contains(s.Nodes, node) }

func (s session) evicted(node string) bool { return slices.Contains(s.Evicted, node) }

// empty says that there is nothing to remember.
func (s session) empty() bool { return len(s.Nodes) == 0 && len(s.Evicted) == 0 }

// less is list without node, sharing nothing.
func less(list []string, node string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(n string) bool { return n == node })
}

// sessions are those of a store, in files: a new metadata server gives no disk to a second node because it does not know of the
// first one, and opens it before anybody changes it.
type sessions struct {
	dir fsx.Dir

	mu  sync.Mutex
	all map[string]session
}

// loadSessions reads them. What a crash left of a file that was being written is removed.
func loadSessions(root fsx.Dir) (*sessions, error) {
	s := &sessions{all: map[string]session{}}
	err := root.Mkdir(sessionDir)
	if err == nil {
		err = root.Sync()
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if s.dir, err = root.Sub(sessionDir); err != nil {
		return nil, err
	}
	names, err := s.dir.List()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if strings.HasSuffix(name, tempSuffix) {
			if err := s.dir.Remove(name); err != nil {
				return nil, err
			}
			continue
		}
		if s.all[name], err = s.read(name); err != nil {
			return nil, err
		}
	}
	return s, nil
}

const (
	tempSuffix = ".new"
	maxSession = 1 << 20
)

func (s *sessions) read(name string) (one session, err error) {
	f, err := s.dir.Open(name, fsx.ReadOnly)
	if err != nil {
		return one, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return one, err
	}
	text := make([]byte, min(info.Size, maxSession))
	if _, err := f.ReadAt(text, 0); err != nil {
		return one, err
	}
	if err := json.Unmarshal(text, &one); err != nil || !host.ValidDiskID(name) {
		return one, fault.New(fault.Damaged, "Remove the file if no node has the disk.", "%s/%s does not say which node has a disk: %v",
			sessionDir, name, err)
	}
	return one, nil
}

func (s *sessions) get(id string) session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all[id]
}

// ids are the disks that nodes have.
func (s *sessions) ids() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := slices.Sorted(maps.Keys(s.all))
	return slices.DeleteFunc(ids, func(id string) bool { return len(s.all[id].Nodes) == 0 })
}

// put makes a session durable, or that there is none. Who holds the disk's lock calls it. Steps: a file beside, synced; renamed;
// the directory synced. A crash leaves the old one or the new one.
func (s *sessions) put(id string, one session) error {
	if err := s.write(id, one); err != nil {
		return fault.Wrap(err, "record who has disk %s", id)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all[id] = one; one.empty() {
		delete(s.all, id)
	}
	return nil
}

func (s *sessions) write(id string, one session) error {
	if one.empty() {
		if err := s.dir.Remove(id); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return s.dir.Sync()
	}
	text, err := json.Marshal(one)
	if err != nil {
		return err
	}
	f, err := s.dir.Open(id+tempSuffix, fsx.ReadWrite|fsx.Create)
	if err != nil {
		return err
	}
	if err = f.Truncate(0); err == nil {
		_, err = f.WriteAt(text, 0)
	}
	if err == nil {
		err = f.Datasync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := s.dir.Rename(id+tempSuffix, id); err != nil {
		return err
	}
	return s.dir.Sync()
}
