package sim

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

type dir struct {
	fs      *FS
	inode   uint64
	path    string
	closed  bool
	syncErr error
}

func (d *dir) join(name string) string { return d.path + "/" + name }

// node is the directory itself. Called with mu held.
func (d *dir) node() (*inode, error) {
	if d.closed {
		return nil, fs.ErrClosed
	}
	n := d.fs.tree.inodes[d.inode]
	if n == nil || n.links == 0 {
		return nil, unix.ENOENT
	}
	return n, nil
}

// find is the inode of an entry. Called with mu held.
func (d *dir) find(name string) (*inode, error) {
	n, err := d.node()
	if err != nil {
		return nil, err
	}
	i, ok := n.entries[name]
	if !ok {
		return nil, unix.ENOENT
	}
	return d.fs.tree.inodes[i], nil
}

func checkNames(names ...string) error {
	for _, n := range names {
		if err := fsx.CheckName(n); err != nil {
			return err
		}
		if len(n) > unix.NAME_MAX {
			return fsx.Failure("use", n[:16]+"...", unix.ENAMETOOLONG)
		}
	}
	return nil
}

// change runs an entry operation: op is recorded if do succeeds.
func (d *dir) change(what string, op *Op, do func(self *inode) error) error {
	if err := checkNames(op.name); err != nil {
		return err
	}
	s := d.fs
	s.mu.Lock()
	defer s.mu.Unlock()
	op.inode, op.Path = d.inode, d.join(op.name)
	self, err := d.node()
	if err != nil {
		return fsx.Failure(what, op.Path, err)
	}
	fail, late := s.step()
	if fail != nil && !late {
		return fsx.Failure(what, op.Path, fail)
	}
	if err := do(self); err != nil {
		return fsx.Failure(what, op.Path, err)
	}
	if op.target != 0 || op.Kind == OpRemove {
		s.record(op)
	}
	return fsx.Failure(what, op.Path, fail)
}

func (d *dir) Open(name string, flag fsx.Flag) (fsx.File, error) {
	if err := checkNames(name); err != nil {
		return nil, err
	}
	if err := fsx.CheckFlag(flag); err != nil {
		return nil, fault.Wrap(err, "open %s", d.join(name))
	}
	d.fs.mu.Lock()
	n, err := d.find(name)
	if err == nil && flag&fsx.Exclusive == 0 {
		defer d.fs.mu.Unlock()
		return d.opened(n, name, flag)
	}
	d.fs.mu.Unlock()
	if err == nil {
		return nil, fsx.Failure("open", d.join(name), unix.EEXIST)
	}
	if !errors.Is(err, unix.ENOENT) || flag&fsx.Create == 0 {
		return nil, fsx.Failure("open", d.join(name), err)
	}
	var f fsx.File
	op := &Op{Kind: OpCreate, name: name}
	err = d.change("create", op, func(self *inode) error {
		if _, taken := self.entries[name]; taken {
			return unix.EEXIST // another opener was faster
		}
		n := d.fs.tree.add(false)
		n.links = 1
		self.own()
		self.entries[name] = n.number
		op.target = n.number
		f, err = d.opened(n, name, flag)
		return err
	})
	if err != nil && f != nil { // the answer was lost: nobody closes it
		f.Close()
	}
	if errors.Is(err, fs.ErrExist) && flag&fsx.Exclusive == 0 {
		return d.Open(name, flag)
	}
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
	n.opens++
	return &file{fs: d.fs, inode: n, path: d.join(name), writable: flag&fsx.ReadWrite != 0}, nil
}

func (d *dir) Sub(name string) (fsx.Dir, error) {
	if err := checkNames(name); err != nil {
		return nil, err
	}
	d.fs.mu.Lock()
	defer d.fs.mu.Unlock()
	n, err := d.find(name)
	if err == nil && !n.isDir {
		err = unix.ENOTDIR
	}
	if err != nil {
		return nil, fsx.Failure("open directory", d.join(name), err)
	}
	return &dir{fs: d.fs, inode: n.number, path: d.join(name)}, nil
}

func (d *dir) Mkdir(name string) error {
	op := &Op{Kind: OpMkdir, name: name}
	return d.change("make directory", op, func(self *inode) error {
		if _, taken := self.entries[name]; taken {
			return unix.EEXIST
		}
		n := d.fs.tree.add(true)
		n.links = 1
		self.own()
		self.entries[name] = n.number
		op.target = n.number
		return nil
	})
}

func (d *dir) LinkFrom(src fsx.Dir, srcName, name string) error {
	if err := checkNames(srcName); err != nil {
		return err
	}
	from, ok := fsx.Unwrap(src).(*dir)
	if !ok || from.fs != d.fs {
		return fault.New(fault.Unsupported, "", "cannot link from a %T into %s: not the same file system", src, d.path)
	}
	op := &Op{Kind: OpLink, name: name}
	return d.change("link", op, func(self *inode) error {
		n, err := from.find(srcName)
		if err != nil {
			return err
		}
		if d.fs.opts.NoHardLinks || n.isDir {
			return fault.New(fault.Unsupported, "", "no hard link to %s: %w", from.join(srcName), unix.EPERM)
		}
		if _, taken := self.entries[name]; taken {
			return unix.EEXIST
		}
		if n.links >= d.fs.opts.MaxLinks {
			return unix.EMLINK
		}
		n.links++
		self.own()
		self.entries[name] = n.number
		op.target = n.number
		return nil
	})
}

func (d *dir) Rename(oldName, newName string) error {
	if err := checkNames(oldName); err != nil {
		return err
	}
	op := &Op{Kind: OpRename, name: newName, from: oldName}
	return d.change("rename "+d.join(oldName)+" to", op, func(self *inode) error {
		n, err := d.find(oldName)
		if err != nil {
			return err
		}
		if old, taken := self.entries[newName]; taken {
			victim := d.fs.tree.inodes[old]
			if victim == n {
				return nil // rename(2): two names of one file, nothing happens
			}
			if err := replaceable(n, victim); err != nil {
				return err
			}
			victim.links--
			d.fs.release(victim)
		}
		self.own()
		delete(self.entries, oldName)
		self.entries[newName] = n.number
		op.target = n.number
		return nil
	})
}

func replaceable(n, victim *inode) error {
	switch {
	case victim.isDir && !n.isDir:
		return unix.EISDIR
	case !victim.isDir && n.isDir:
		return unix.ENOTDIR
	case victim.isDir && len(victim.entries) > 0:
		return unix.ENOTEMPTY
	}
	return nil
}

func (d *dir) Remove(name string) error {
	op := &Op{Kind: OpRemove, name: name}
	return d.change("remove", op, func(self *inode) error {
		n, err := d.find(name)
		if err != nil {
			return err
		}
		if len(n.entries) > 0 {
			return unix.ENOTEMPTY
		}
		self.own()
		delete(self.entries, name)
		n.links--
		d.fs.release(n)
		return nil
	})
}

func (d *dir) List() ([]string, error) {
	d.fs.mu.Lock()
	defer d.fs.mu.Unlock()
	n, err := d.node()
	if err != nil {
		return nil, fsx.Failure("list", d.path, err)
	}
	return slices.Sorted(maps.Keys(n.entries)), nil
}

func (d *dir) Stat(name string) (fsx.Info, error) {
	if err := checkNames(name); err != nil {
		return fsx.Info{}, err
	}
	d.fs.mu.Lock()
	defer d.fs.mu.Unlock()
	n, err := d.find(name)
	if err != nil {
		return fsx.Info{}, fsx.Failure("inspect", d.join(name), err)
	}
	return n.info(), nil
}

func (n *inode) info() fsx.Info {
	i := fsx.Info{Inode: n.number, Device: 1, Links: n.links, Size: n.size, Allocated: int64(len(n.pages)) * pageSize, Mode: 0o640}
	if n.isDir {
		i.Mode = fs.ModeDir | 0o750
	}
	return i
}

func (d *dir) Sync() error {
	s := d.fs
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := d.node(); err != nil {
		return fsx.Failure("sync", d.path, err)
	}
	if d.syncErr != nil {
		return d.syncErr
	}
	d.syncErr = s.sync(&Op{Kind: OpSync, Path: d.path + "/", inode: d.inode})
	return d.syncErr
}

// sync counts, records or drops a sync of either kind. Called with mu held.
func (s *FS) sync(o *Op) error {
	fail, late := s.step()
	if s.recording {
		o.Site = callSite()
		s.sites[o.Site]++
		if s.dropped[o.Site] && fail == nil {
			return nil
		}
	}
	o.failed = fail != nil && !late
	if !s.dead { // a dead process syncs nothing, and spoils nothing
		s.record(o)
	}
	if fail != nil {
		return fsx.Poisoned(o.Path, fail)
	}
	return nil
}

func (d *dir) Space() (total, free int64, err error) {
	d.fs.mu.Lock()
	defer d.fs.mu.Unlock()
	return d.fs.opts.Capacity, d.fs.opts.Capacity - d.fs.used*pageSize, nil
}

// Descriptor is a descriptor that stands for nothing, because a directory in memory cannot be handed to another
// process: callers that only pass it on work, and whoever means to read through it opens the directory by name instead.
func (d *dir) Descriptor() (*os.File, error) { return os.Open(os.DevNull) }

func (d *dir) Close() error {
	d.fs.mu.Lock()
	defer d.fs.mu.Unlock()
	d.closed = true
	return nil
}
