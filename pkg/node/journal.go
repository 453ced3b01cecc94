package node

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/stage"
)

// Record is what the kernel cannot be asked about a volume.
type record struct {
	Version int          `json:"version"`
	Volume  stage.Volume `json:"volume"`
	// Staged: every step of Stage was done once. Without it the next Stage or Unstage may undo everything.
	Staged bool `json:"staged"`
	// Formatting: the disk was found empty and a file system is being made on it, so that what is on it is nobody's data.
	// That is believed only as long as no other host can have written it: Epoch is the owner epoch of the attachment,
	// which every attach raises by one, wherever.
	Formatting bool  `json:"formatting,omitempty"`
	Epoch      int64 `json:"epoch,omitempty"`
	// UUID of the disk, which names its links in the link directory.
	UUID    string        `json:"uuid,omitempty"`
	Targets []publication `json:"targets,omitempty"`
}

type publication struct {
	Target     string `json:"target"`
	ReadOnly   bool   `json:"readOnly,omitempty"`
	SinglePath bool   `json:"singlePath,omitempty"`
}

const recordVersion = 1

func (r *record) target(path string) (publication, bool) {
	i := slices.IndexFunc(r.Targets, func(p publication) bool { return p.Target == path })
	if i < 0 {
		return publication{}, false
	}
	return r.Targets[i], true
}

func (r *record) dropTarget(path string) {
	r.Targets = slices.DeleteFunc(r.Targets, func(p publication) bool { return p.Target == path })
}

// Journal is one file per volume in one directory, replaced as a whole: write a temporary file, fsync it, rename it
// over the old one, fsync the directory. A crash before the rename leaves the old record and a temporary file that the
// next write replaces; after it the new one.
type journal struct{ dir string }

const (
	recordSuffix = ".json"
	tempSuffix   = ".tmp"
)

func openJournal(dir string) (*journal, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fault.Wrap(err, "make the journal directory")
	}
	return &journal{dir: dir}, nil
}

func (j *journal) path(id string) string { return filepath.Join(j.dir, id+recordSuffix) }

// Load reads a volume's record; nil: there is none.
func (j *journal) load(id string) (*record, error) {
	b, err := os.ReadFile(j.path(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fault.Wrap(err, "read the journal of %s", id)
	}
	r := &record{}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fault.New(fault.Damaged, "compare it with /proc/mounts, then remove the file", "journal %s: %w", j.path(id), err)
	}
	if r.Version != recordVersion || r.Volume.ID != id {
		return nil, fault.New(fault.Damaged, "compare it with /proc/mounts, then remove the file",
			"journal %s: version %d of %q, want version %d of %q", j.path(id), r.Version, r.Volume.ID, recordVersion, id)
	}
	return r, nil
}

func (j *journal) save(r *record) error {
	r.Version = recordVersion
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return fault.Wrap(replaceSynced(j.path(r.Volume.ID), b), "write the journal of %s", r.Volume.ID)
}

// replaceSynced replaces a file as a whole, as journal tells.
func replaceSynced(path string, b []byte) error {
	temp := path + tempSuffix
	err := writeSynced(temp, b)
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		os.Remove(temp)
		return err
	}
	return syncDir(filepath.Dir(path))
}

func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (j *journal) remove(id string) error {
	err := os.Remove(j.path(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fault.Wrap(err, "remove the journal of %s", id)
	}
	return fault.Wrap(syncDir(j.dir), "sync the journal")
}

// IDs are the volumes that have a record.
func (j *journal) ids() ([]string, error) {
	entries, err := os.ReadDir(j.dir)
	if err != nil {
		return nil, fault.Wrap(err, "read the journal")
	}
	var ids []string
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), recordSuffix); ok {
			ids = append(ids, id)
		}
	}
	return ids, nil
}
