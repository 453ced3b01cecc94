package fsxtest

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

func checkLink(d fsx.Dir) error {
	if err := errors.Join(d.Mkdir("sub"), put(d, "a", "one"), put(d, "taken", "two")); err != nil {
		return err
	}
	sub, err := d.Sub("sub")
	if err != nil {
		return err
	}
	defer sub.Close()
	err = sub.LinkFrom(d, "a", "b")
	if errors.Is(err, fault.Unsupported) {
		return nil // a file system without hard links
	}
	if err != nil {
		return err
	}
	a, err1 := d.Stat("a")
	b, err2 := sub.Stat("b")
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	if a.Inode != b.Inode || a.Device != b.Device || a.Links != 2 {
		return fmt.Errorf("linked names differ: %+v, %+v", a, b)
	}
	return all(
		func() error { return wants("over a name", d.LinkFrom(d, "a", "taken"), fs.ErrExist) },
		func() error { return holds(d, "taken", "two") },
		func() error { return wants("of nothing", d.LinkFrom(d, "none", "x"), fs.ErrNotExist) },
		func() error { return oneFile(d, "a", sub, "b") },
		func() error { return d.Remove("a") },
		func() error { return holds(sub, "b", "ONE") },
		func() error { return linkCount(sub, "b", 1) },
	)
}

// oneFile checks that two names are one file: what is written by one is read by the other, and both tell the count of names.
func oneFile(d fsx.Dir, name string, e fsx.Dir, other string) error {
	f, err := d.Open(name, fsx.ReadWrite)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("ONE"), 0); err != nil {
		return err
	}
	return all(
		func() error { return holds(e, other, "ONE") },
		func() error { return linkCount(d, name, 2) },
		func() error { return linkCount(e, other, 2) },
	)
}

// linkCount checks how many names an open file has.
func linkCount(d fsx.Dir, name string, want uint64) error {
	f, err := d.Open(name, fsx.ReadOnly)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err == nil && info.Links != want {
		err = fmt.Errorf("%s has %d names, want %d", name, info.Links, want)
	}
	return err
}

func checkRename(d fsx.Dir) error {
	if err := errors.Join(put(d, "a", "one"), put(d, "b", "two"), d.Mkdir("dir")); err != nil {
		return err
	}
	old, err := d.Open("b", fsx.ReadOnly)
	if err != nil {
		return err
	}
	defer old.Close()
	return all(
		func() error { return d.Rename("a", "b") },
		func() error { return holds(d, "b", "one") },
		func() error { return contains(old, []byte("two")) }, // who has it open keeps it
		func() error { _, err := d.Stat("a"); return wants("old name", err, fs.ErrNotExist) },
		func() error { return wants("of nothing", d.Rename("a", "c"), fs.ErrNotExist) },
		func() error { return wants("file over directory", d.Rename("b", "dir"), fault.Invalid) },
		func() error { return d.Rename("dir", "dir2") },
		func() error { _, err := d.Stat("dir2"); return err },
		func() error {
			// rename(2): two names of one file, and nothing happens.
			if err := d.LinkFrom(d, "b", "c"); err != nil {
				return wants("link", err, fault.Unsupported)
			}
			return errors.Join(d.Rename("b", "c"), holds(d, "b", "one"), holds(d, "c", "one"))
		},
	)
}

func checkRemove(d fsx.Dir) error {
	if err := errors.Join(put(d, "f", "x"), d.Mkdir("dir")); err != nil {
		return err
	}
	sub, err := d.Sub("dir")
	if err != nil {
		return err
	}
	defer sub.Close()
	return all(
		func() error { return put(sub, "inside", "x") },
		func() error { return wants("full directory", d.Remove("dir"), fault.Precondition) },
		func() error { return sub.Remove("inside") },
		func() error { return d.Remove("dir") },
		func() error { return d.Remove("f") },
		func() error { return wants("again", d.Remove("f"), fs.ErrNotExist) },
		func() error {
			names, err := d.List()
			if len(names) > 0 {
				return fmt.Errorf("left over: %v", names)
			}
			return err
		},
		func() error {
			_, err := sub.Open("x", fsx.ReadWrite|fsx.Create)
			return wants("create in a removed directory", err, fs.ErrNotExist)
		},
	)
}

func checkUnlinked(d fsx.Dir) error {
	f, err := create(d, "f", []byte("content"))
	if err != nil {
		return err
	}
	defer f.Close()
	return all(
		func() error { return d.Remove("f") },
		func() error { return contains(f, []byte("content")) },
		func() error { _, err := f.WriteAt([]byte("C"), 0); return err },
		func() error { return contains(f, []byte("Content")) },
		func() error { return put(d, "f", "another") },
		func() error { return contains(f, []byte("Content")) },
		func() error {
			info, err := f.Stat()
			if err == nil && info.Links != 0 {
				err = fmt.Errorf("%d links after Remove", info.Links)
			}
			return err
		},
	)
}

func checkLocksExclude(d fsx.Dir) error {
	if err := put(d, "f", "x"); err != nil {
		return err
	}
	modes := []fsx.LockMode{fsx.Unlock, fsx.LockRead, fsx.LockWrite}
	for _, held := range modes {
		for _, asked := range modes {
			if err := lockPair(d, held, asked); err != nil {
				return fmt.Errorf("held %d, asked %d: %w", held, asked, err)
			}
		}
	}
	return nil
}

func lockPair(d fsx.Dir, held, asked fsx.LockMode) error {
	a, err := d.Open("f", fsx.ReadWrite)
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := d.Open("f", fsx.ReadWrite)
	if err != nil {
		return err
	}
	defer b.Close()
	if err := a.Lock(held); err != nil {
		return err
	}
	conflict := held != fsx.Unlock && asked != fsx.Unlock && (held == fsx.LockWrite || asked == fsx.LockWrite)
	if conflict {
		if err := wants("lock", b.Lock(asked), fault.InUse); err != nil {
			return err
		}
		if err := a.Close(); err != nil { // the lock ends with its file
			return err
		}
	}
	return b.Lock(asked)
}

func checkLocksChange(d fsx.Dir) error {
	if err := put(d, "f", "x"); err != nil {
		return err
	}
	var f [3]fsx.File
	for i := range f {
		var err error
		if f[i], err = d.Open("f", fsx.ReadWrite); err != nil {
			return err
		}
		defer f[i].Close()
	}
	readOnly, err := d.Open("f", fsx.ReadOnly)
	if err != nil {
		return err
	}
	defer readOnly.Close()
	lock := func(i int, m fsx.LockMode, want error) func() error {
		return func() error { return wants(fmt.Sprintf("file %d to %d", i, m), f[i].Lock(m), want) }
	}
	return all(
		lock(0, fsx.LockWrite, nil), lock(0, fsx.LockWrite, nil), lock(0, fsx.LockRead, nil), // down
		lock(1, fsx.LockRead, nil), lock(0, fsx.LockWrite, fault.InUse), // no way up beside a reader
		lock(1, fsx.Unlock, nil), lock(2, fsx.LockWrite, fault.InUse), // the failed step up kept the read lock
		lock(0, fsx.LockWrite, nil), lock(1, fsx.LockRead, fault.InUse),
		lock(0, fsx.Unlock, nil), lock(1, fsx.LockWrite, nil), lock(1, fsx.Unlock, nil),
		lock(0, 77, fault.Invalid),
		func() error { return wants("write lock, read-only", readOnly.Lock(fsx.LockWrite), fault.Invalid) },
		func() error { return readOnly.Lock(fsx.LockRead) },
		lock(0, fsx.LockWrite, fault.InUse),
	)
}
