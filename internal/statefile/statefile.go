package statefile

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Load reads a map from a JSON file; a missing file is an empty one.
func Load[M ~map[string]V, V any](path string) (M, error) {
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

// Save replaces the file in one step: temporary file, fsync, rename, fsync of the directory.
func Save(path string, v any) error {
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
