package vmdkctl

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io/fs"
	"strings"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Partial is a hidden directory in which a disk is built beside its place. Its lock file says that somebody is at it.
type partial struct {
	parent fsx.Dir
	name   string // of the directory
	dir    fsx.Dir
	lock   fsx.File
}

const lockFile = ".lock"

func partialPrefix(name string) string { return "." + name + ".partial-" }

// NewPartial makes the directory, after removing those that killed runs left for the same name.
func newPartial(parent fsx.Dir, name string) (p *partial, err error) {
	if err := sweepPartials(parent, name); err != nil {
		return nil, err
	}
	random := make([]byte, 4)
	_, _ = rand.Read(random) // never fails (crypto/rand)
	p = &partial{parent: parent, name: partialPrefix(name) + hex.EncodeToString(random)}
	if err := parent.Mkdir(p.name); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			p.remove()
		}
	}()
	if p.dir, err = parent.Sub(p.name); err != nil {
		return p, err
	}
	if p.lock, err = p.dir.Open(lockFile, fsx.ReadWrite|fsx.Create|fsx.Exclusive); err != nil {
		return p, err
	}
	if err := p.lock.Lock(fsx.LockWrite); err != nil && !errors.Is(err, fault.Unsupported) {
		return p, err
	}
	return p, nil
}

// Remove removes what is left of it. What cannot be removed the next run for the same name removes.
func (p *partial) remove() {
	if p.dir != nil {
		emptyDir(p.dir)
		_ = p.dir.Close()
	}
	if p.lock != nil {
		_ = p.lock.Close() // held until the directory is empty, so that no other run takes it for garbage
	}
	_ = p.parent.Remove(p.name)
	_ = p.parent.Sync()
}

func emptyDir(d fsx.Dir) {
	names, err := d.List()
	if err != nil {
		return
	}
	for _, n := range names {
		_ = d.Remove(n)
	}
}

func sweepPartials(parent fsx.Dir, name string) error {
	names, err := parent.List()
	if err != nil {
		return err
	}
	for _, n := range names {
		if !strings.HasPrefix(n, partialPrefix(name)) {
			continue
		}
		d, err := parent.Sub(n)
		if err != nil {
			continue // a file of somebody else, or gone meanwhile
		}
		if abandoned(d) {
			emptyDir(d)
			_ = parent.Remove(n)
		}
		_ = d.Close()
	}
	return nil
}

// Abandoned says that nobody holds the lock. Without a lock file the run died at its begin, or is just there: then the
// directory is not touched unless it is empty, which Remove finds out.
func abandoned(d fsx.Dir) bool {
	f, err := d.Open(lockFile, fsx.ReadWrite)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	defer f.Close()
	return f.Lock(fsx.LockWrite) == nil
}

// Publish gives the files their places, head last, and returns what they use.
func (p *partial) publish(head string) (allocated int64, err error) {
	names, err := p.dir.List()
	if err != nil {
		return 0, err
	}
	var linked []string
	defer func() {
		if err != nil {
			for _, n := range linked {
				_ = p.parent.Remove(n)
			}
		}
	}()
	put := func(n string) error {
		info, err := p.dir.Stat(n)
		if err != nil {
			return err
		}
		allocated += info.Allocated
		err = p.parent.LinkFrom(p.dir, n, n)
		switch {
		case err == nil:
			linked = append(linked, n)
		case errors.Is(err, fs.ErrExist):
			err = fault.New(fault.Exists, "Choose another name, or remove the file.", "%s is there", n)
		case errors.Is(err, fault.Unsupported), errors.Is(err, fault.Denied):
			err = fault.New(fault.Unsupported, "Convert to a local file system and copy the files.",
				"this file system has no hard links: %w", err)
		}
		return err
	}
	for _, n := range names {
		if n == head || strings.HasPrefix(n, ".") {
			continue
		}
		if err := put(n); err != nil {
			return 0, err
		}
	}
	if err := p.parent.Sync(); err != nil {
		return 0, err
	}
	if err := put(head); err != nil {
		return 0, err
	}
	return allocated, p.parent.Sync()
}

// Absent refuses a name that is taken before any work is done.
func absent(d fsx.Dir, name, path string) error {
	_, err := d.Stat(name)
	switch {
	case err == nil:
		return fault.New(fault.Exists, "Choose another name, or remove the file.", "%s is there", path)
	case errors.Is(err, fs.ErrNotExist):
		return nil
	}
	return err
}
