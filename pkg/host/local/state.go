package local

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// claims is the file of claims: disk id to claims.
type claims struct {
	mu   sync.Mutex
	path string
}

func (c *claims) all() (map[string][]host.Claim, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return load[map[string][]host.Claim](c.path)
}

// of are the claims of one disk.
func (c *claims) of(id string) ([]host.Claim, error) {
	m, err := c.all()
	return m[id], err
}

// change makes f of all claims what the file holds, unless f fails or changes nothing.
func (c *claims) change(id string, f func(all map[string][]host.Claim) ([]host.Claim, error)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	m, err := load[map[string][]host.Claim](c.path)
	if err != nil {
		return err
	}
	next, err := f(m)
	if err != nil || slices.Equal(next, m[id]) {
		return err
	}
	if m[id] = next; len(next) == 0 {
		delete(m, id)
	}
	return save(c.path, m)
}

// identities is the file of the datastores that were seen: name to UUID.
type identities struct {
	mu   sync.Mutex
	path string
}

func (i *identities) get(name string) (string, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	m, err := load[map[string]string](i.path)
	return m[name], err
}

func (i *identities) set(name, uuid string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	m, err := load[map[string]string](i.path)
	if err != nil {
		return err
	}
	m[name] = uuid
	return save(i.path, m)
}

// load reads a map from a JSON file; a missing file is an empty one.
func load[M ~map[string]V, V any](path string) (M, error) {
	m := M{}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err != nil {
		return nil, fault.Wrap(err, "state of hostd")
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return nil, fault.New(fault.Damaged, "Restore the file, or remove it when nothing is attached on this node.",
			"state of hostd: %s: %w", path, err)
	}
	return m, nil
}

// save replaces the file in one step: temporary file, fsync, rename, fsync of the directory.
func save(path string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return fault.Wrap(err, "state of hostd")
	}
	_, err = f.Write(append(text, '\n'))
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fault.Wrap(errors.Join(err, os.Remove(f.Name())), "state of hostd")
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fault.Wrap(err, "state of hostd")
	}
	return fault.Wrap(errors.Join(d.Sync(), d.Close()), "state of hostd")
}
