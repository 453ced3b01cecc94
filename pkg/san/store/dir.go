package store

import (
	"io/fs"
	"maps"
	"os"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// dir is an open directory.
type dir struct {
	s      *Store
	n      *inode
	path   string
	closed atomic.Bool
}

func (d *dir) join(name string) string { return d.path + "/" + name }

func checkNames(names ...string) error {
	for _, n := range names {
		if err := fsx.CheckName(n); err != nil {
			return err
		}
		if len(n) > maxName {
			return fsx.Failure("use", n[:16]+"...", unix.ENAMETOOLONG)
		}
	}
	return nil
}

// alive tells whether the directory is open and has not been removed. Called with mu held.
func (d *dir) alive() error {
	if d.closed.Load() {
		return fs.ErrClosed
	}
	if d.n.links == 0 {
		return unix.ENOENT
	}
	return nil
}

// find is the inode of an entry. Called with mu held.
func (d *dir) find(name string) (*inode, error) {
	if err := d.alive(); err != nil {
		return nil, err
	}
	i, ok := d.n.entries[name]
	if !ok {
		return nil, unix.ENOENT
	}
	return d.s.inodes[i], nil
}

// change runs a change of entries.
func (d *dir) change(what, name string, grows int64, do func() error) error {
	return fsx.Failure(what, d.join(name), d.s.change(grows, func() error {
		if err := d.alive(); err != nil {
			return err
		}
		return do()
	}))
}

// enter gives n a name. Called with mu held.
func (d *dir) enter(name string, n *inode) {
	d.n.entries[name] = n.number
	n.links++
	d.s.touch(d.n, entryHeader+int64(len(name)))
}

// leave takes a name away, and the inode with the last. Called with mu held.
func (d *dir) leave(name string, n *inode) {
	delete(d.n.entries, name)
	n.links--
	d.s.touch(d.n, -entryHeader-int64(len(name)))
	if n.links == 0 {
		n.unlinked = d.s.next
		d.s.release(n)
	}
}

// release frees what has neither a name nor an opener. Called with mu held.
func (s *Store) release(n *inode) {
	if n.links > 0 || n.opens > 0 {
		return
	}
	delete(s.inodes, n.number)
	s.free(n.unlinked, n.runs)
	s.releaseHeld()
}

// create makes an inode. Called with mu held.
func (s *Store) create(isDir bool) *inode {
	n := &inode{number: s.nextInode, isDir: isDir}
	if isDir {
		n.entries = map[string]uint64{}
	}
	s.nextInode++
	s.inodes[n.number] = n
	s.order = append(s.order, n)
	s.touch(n, inodeHeader)
	return n
}

func (d *dir) Open(name string, flag fsx.Flag) (fsx.File, error) {
	if err := checkNames(name); err != nil {
		return nil, err
	}
	if err := fsx.CheckFlag(flag); err != nil {
		return nil, fault.Wrap(err, "open %s", d.join(name))
	}
	d.s.mu.Lock()
	n, err := d.find(name)
	if err == nil && flag&fsx.Exclusive == 0 {
		defer d.s.mu.Unlock()
		return d.opened(n, name, flag)
	}
	d.s.mu.Unlock()
	if err == nil {
		return nil, fsx.Failure("open", d.join(name), unix.EEXIST)
	}
	if err != unix.ENOENT || flag&fsx.Create == 0 {
		return nil, fsx.Failure("open", d.join(name), err)
	}
	var f fsx.File
	err = d.change("create", name, inodeHeader+entryHeader+int64(len(name)), func() (err error) {
		n, found := d.s.inodes[d.n.entries[name]]
		switch {
		case found && flag&fsx.Exclusive != 0:
			return unix.EEXIST
		case !found && len(d.s.inodes) >= maxInodes:
			return unix.EMLINK
		case !found:
			n = d.s.create(false)
			d.enter(name, n)
		}
		f, err = d.opened(n, name, flag)
		return err
	})
	if err != nil {
		return nil, err
	}
	return f, nil
}

// opened makes a File. Called with mu held.
func (d *dir) opened(n *inode, name string, flag fsx.Flag) (fsx.File, error) {
	if n.isDir {
		return nil, fault.New(fault.Invalid, "", "%s is not a regular file", d.join(name))
	}
	if flag&fsx.ReadWrite != 0 && d.s.readOnly {
		return nil, fsx.Failure("open", d.join(name), unix.EROFS)
	}
	n.opens++
	return &file{s: d.s, n: n, path: d.join(name), writable: flag&fsx.ReadWrite != 0}, nil
}

func (d *dir) Sub(name string) (fsx.Dir, error) {
	if err := checkNames(name); err != nil {
		return nil, err
	}
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	n, err := d.find(name)
	if err == nil && !n.isDir {
		err = unix.ENOTDIR
	}
	if err != nil {
		return nil, fsx.Failure("open directory", d.join(name), err)
	}
	return &dir{s: d.s, n: n, path: d.join(name)}, nil
}

func (d *dir) Mkdir(name string) error {
	if err := checkNames(name); err != nil {
		return err
	}
	return d.change("make directory", name, inodeHeader+entryHeader+int64(len(name)), func() error {
		if _, taken := d.n.entries[name]; taken {
			return unix.EEXIST
		}
		if len(d.s.inodes) >= maxInodes {
			return unix.EMLINK
		}
		d.enter(name, d.s.create(true))
		return nil
	})
}

func (d *dir) LinkFrom(src fsx.Dir, srcName, name string) error {
	if err := checkNames(srcName, name); err != nil {
		return err
	}
	from, ok := fsx.Unwrap(src).(*dir)
	if !ok || from.s != d.s {
		return fault.New(fault.Unsupported, "", "cannot link from a %T into %s: not the same store", src, d.path)
	}
	return d.change("link", name, entryHeader+int64(len(name)), func() error {
		n, err := from.find(srcName)
		if err != nil {
			return err
		}
		if n.isDir {
			return fault.New(fault.Unsupported, "", "no hard link to %s: %w", from.join(srcName), unix.EPERM)
		}
		if _, taken := d.n.entries[name]; taken {
			return unix.EEXIST
		}
		d.enter(name, n)
		return nil
	})
}

func (d *dir) Rename(oldName, newName string) error {
	if err := checkNames(oldName, newName); err != nil {
		return err
	}
	return d.change("rename "+d.join(oldName)+" to", newName, 0, func() error {
		n, err := d.find(oldName)
		if err != nil {
			return err
		}
		if old, taken := d.n.entries[newName]; taken {
			victim := d.s.inodes[old]
			switch {
			case victim == n:
				return nil // rename(2): two names of one file, nothing happens
			case victim.isDir && !n.isDir:
				return unix.EISDIR
			case !victim.isDir && n.isDir:
				return unix.ENOTDIR
			case len(victim.entries) > 0:
				return unix.ENOTEMPTY
			}
			d.leave(newName, victim)
		}
		d.enter(newName, n)
		d.leave(oldName, n)
		return nil
	})
}

func (d *dir) Remove(name string) error {
	if err := checkNames(name); err != nil {
		return err
	}
	return d.change("remove", name, 0, func() error {
		n, err := d.find(name)
		if err != nil {
			return err
		}
		if len(n.entries) > 0 {
			return unix.ENOTEMPTY
		}
		d.leave(name, n)
		return nil
	})
}

func (d *dir) List() ([]string, error) {
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	if err := d.alive(); err != nil {
		return nil, fsx.Failure("list", d.path, err)
	}
	return slices.Sorted(maps.Keys(d.n.entries)), nil
}

func (d *dir) Stat(name string) (fsx.Info, error) {
	if err := checkNames(name); err != nil {
		return fsx.Info{}, err
	}
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	n, err := d.find(name)
	if err != nil {
		return fsx.Info{}, fsx.Failure("inspect", d.join(name), err)
	}
	return d.s.info(n), nil
}

// info describes an inode. Called with mu held.
func (s *Store) info(n *inode) fsx.Info {
	i := fsx.Info{Inode: n.number, Device: le.Uint64(s.layout.uuid[:]), Links: n.links, Size: n.size, Mode: 0o640}
	for _, r := range n.runs {
		i.Allocated += int64(r.n) * s.layout.extentSize
	}
	if n.isDir {
		i.Mode = fs.ModeDir | 0o750
	}
	return i
}

func (d *dir) Sync() error {
	d.s.mu.Lock()
	err := d.alive()
	d.s.mu.Unlock()
	if err != nil {
		return fsx.Failure("sync", d.path, err)
	}
	return fsx.Failure("sync", d.path, d.s.sync(d.n))
}

// sync makes what the catalogue says of n durable, and all data.
func (s *Store) sync(n *inode) error {
	if s.readOnly {
		return nil
	}
	if !s.durable(n) {
		return s.commit()
	}
	s.mu.Lock()
	err := s.poisoned
	s.mu.Unlock()
	if err != nil || n.isDir {
		return err
	}
	if err := s.lun.Datasync(); err != nil {
		return s.poison(err)
	}
	return nil
}

// Space counts what the next commit frees as free, and what block maps hold as used.
func (d *dir) Space() (total, free int64, err error) {
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	n := d.s.used.free
	for _, h := range d.s.held {
		if !d.s.grantOlderThan(h.generation) {
			n += int64(h.n)
		}
	}
	return d.s.layout.extents * d.s.layout.extentSize, n * d.s.layout.extentSize, nil
}

// Descriptor is a descriptor that stands for nothing: a directory of a store cannot be handed to another process. Callers
// that only pass it on work.
func (d *dir) Descriptor() (*os.File, error) { return os.Open(os.DevNull) }

func (d *dir) Close() error {
	d.closed.Store(true)
	return nil
}
