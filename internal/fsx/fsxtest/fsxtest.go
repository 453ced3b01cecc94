package fsxtest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Check is one property.
type Check struct {
	Name string
	Run  func(d fsx.Dir) error
}

// Checks are all of them, in the order of Run.
func Checks() []Check {
	return []Check{
		{"names", checkNames}, {"flags", checkFlags}, {"kinds", checkKinds}, {"list", checkList},
		{"read and write", checkReadWrite}, {"read-only", checkReadOnly}, {"truncate", checkTruncate},
		{"allocate", checkAllocate}, {"punch", checkPunch}, {"zero", checkZero}, {"seek", checkSeek},
		{"clone", checkClone}, {"link", checkLink}, {"rename", checkRename}, {"remove", checkRemove},
		{"unlinked", checkUnlinked}, {"sync", checkSync}, {"space", checkSpace}, {"closed", checkClosed},
		{"locks exclude", checkLocksExclude}, {"locks change", checkLocksChange},
		{"mixed alignment", checkMixed}, {"concurrent sectors", checkConcurrent},
	}
}

// Run runs every check on a directory of its own.
func Run(t *testing.T, make func(t *testing.T) fsx.Dir) {
	for _, c := range Checks() {
		t.Run(c.Name, func(t *testing.T) {
			if err := c.Run(make(t)); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// all runs steps until one fails.
func all(steps ...func() error) error {
	for i, s := range steps {
		if err := s(); err != nil {
			return fmt.Errorf("step %d: %w", i+1, err)
		}
	}
	return nil
}

// wants is an error unless err Is want; want nil: unless err is nil.
func wants(what string, err, want error) error {
	if want == nil && err != nil || want != nil && !errors.Is(err, want) {
		return fmt.Errorf("%s: got %v, want %v", what, err, want)
	}
	return nil
}

// create makes a file with content.
func create(d fsx.Dir, name string, content []byte) (fsx.File, error) {
	f, err := d.Open(name, fsx.ReadWrite|fsx.Create|fsx.Exclusive)
	if err != nil {
		return nil, err
	}
	if _, err := f.WriteAt(content, 0); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// put makes a closed file with content.
func put(d fsx.Dir, name, content string) error {
	f, err := create(d, name, []byte(content))
	if err != nil {
		return err
	}
	return f.Close()
}

func holds(d fsx.Dir, name, content string) error {
	f, err := d.Open(name, fsx.ReadOnly)
	if err != nil {
		return err
	}
	defer f.Close()
	return contains(f, []byte(content))
}

// contains compares size and content.
func contains(f fsx.File, want []byte) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size != int64(len(want)) {
		return fmt.Errorf("size %d, want %d", info.Size, len(want))
	}
	got := make([]byte, len(want)+100)
	n, err := f.ReadAt(got, 0)
	if n != len(want) || err != io.EOF {
		return fmt.Errorf("read past the end: %d bytes and %v, want %d and EOF", n, err, len(want))
	}
	if i := differ(got[:n], want); i >= 0 {
		return fmt.Errorf("byte %d is %#x, want %#x", i, got[i], want[i])
	}
	return nil
}

func differ(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return len(a)
}

func pattern(n int, from byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = from + byte(i%251) | 1
	}
	return p
}

func checkNames(d fsx.Dir) error {
	for _, name := range []string{"", ".", "..", "a/b", "/a", "a\x00b", "../x"} {
		_, open := d.Open(name, fsx.ReadWrite|fsx.Create)
		_, sub := d.Sub(name)
		_, stat := d.Stat(name)
		for what, err := range map[string]error{
			"open": open, "sub": sub, "stat": stat, "mkdir": d.Mkdir(name), "remove": d.Remove(name),
			"rename from": d.Rename(name, "x"), "rename to": d.Rename("x", name),
			"link from": d.LinkFrom(d, name, "x"), "link to": d.LinkFrom(d, "x", name),
		} {
			if err := wants(fmt.Sprintf("%s %q", what, name), err, fault.Invalid); err != nil {
				return err
			}
		}
	}
	long := string(bytes.Repeat([]byte("n"), 1000))
	_, err := d.Open(long, fsx.ReadWrite|fsx.Create)
	return wants("open a name of 1000 bytes", err, fault.Invalid)
}

func checkFlags(d fsx.Dir) error {
	open := func(name string, flag fsx.Flag, want error) func() error {
		return func() error {
			f, err := d.Open(name, flag)
			if err == nil {
				defer f.Close()
			}
			return wants(fmt.Sprintf("open %s with %d", name, flag), err, want)
		}
	}
	return all(
		open("f", fsx.ReadOnly, fs.ErrNotExist),
		open("f", fsx.ReadWrite, fault.NotFound),
		open("f", fsx.Create, fault.Invalid),
		open("f", fsx.ReadWrite|fsx.Exclusive, fault.Invalid),
		open("f", fsx.ReadWrite|1<<20, fault.Invalid),
		open("f", fsx.ReadWrite|fsx.Create|fsx.Exclusive, nil),
		open("f", fsx.ReadWrite|fsx.Create|fsx.Exclusive, fs.ErrExist),
		open("f", fsx.ReadWrite|fsx.Create|fsx.Exclusive, fault.Exists),
		open("f", fsx.ReadWrite|fsx.Create, nil),
		open("f", fsx.ReadOnly|fsx.Direct, nil),
		open("g", fsx.ReadWrite|fsx.Create|fsx.Direct, nil),
	)
}

func checkKinds(d fsx.Dir) error {
	if err := errors.Join(d.Mkdir("dir"), put(d, "file", "x")); err != nil {
		return err
	}
	_, asFile := d.Open("dir", fsx.ReadOnly)
	_, asDir := d.Sub("file")
	_, missing := d.Sub("none")
	_, gone := d.Stat("none")
	dir, err1 := d.Stat("dir")
	file, err2 := d.Stat("file")
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	if !dir.Mode.IsDir() || !file.Mode.IsRegular() || file.Size != 1 || file.Links != 1 || file.Inode == dir.Inode {
		return fmt.Errorf("Stat: directory %+v, file %+v", dir, file)
	}
	return all(
		func() error { return wants("open a directory", asFile, fault.Invalid) },
		func() error { return wants("Sub of a file", asDir, fault.Invalid) },
		func() error { return wants("Sub of nothing", missing, fs.ErrNotExist) },
		func() error { return wants("Stat of nothing", gone, fault.NotFound) },
		func() error { return wants("Mkdir again", d.Mkdir("dir"), fs.ErrExist) },
		func() error { return wants("Mkdir over a file", d.Mkdir("file"), fs.ErrExist) },
	)
}

func checkList(d fsx.Dir) error {
	for _, name := range []string{"b", "a", "c", ".hidden"} {
		if err := put(d, name, ""); err != nil {
			return err
		}
	}
	if err := d.Mkdir("aa"); err != nil {
		return err
	}
	for range 2 { // a second listing starts at the beginning
		names, err := d.List()
		if err != nil {
			return err
		}
		if got := fmt.Sprint(names); got != "[.hidden a aa b c]" {
			return fmt.Errorf("List gives %s", got)
		}
	}
	return nil
}

func checkReadWrite(d fsx.Dir) error {
	f, err := d.Open("f", fsx.ReadWrite|fsx.Create)
	if err != nil {
		return err
	}
	defer f.Close()
	want := make([]byte, 10_000)
	for _, w := range []struct{ off, n int }{{5000, 5000}, {0, 1}, {4095, 2}, {512, 512}, {9999, 1}} {
		p := pattern(w.n, byte(w.off))
		copy(want[w.off:], p)
		if n, err := f.WriteAt(p, int64(w.off)); n != w.n || err != nil {
			return fmt.Errorf("WriteAt(%d bytes, %d): %d, %v", w.n, w.off, n, err)
		}
	}
	if err := contains(f, want); err != nil {
		return err
	}
	p := make([]byte, 10)
	_, atEnd := f.ReadAt(p, 10_000)
	_, negative := f.ReadAt(p, -1)
	_, negativeWrite := f.WriteAt(p, -1)
	n, inside := f.ReadAt(p, 10)
	if n != 10 || inside != nil {
		return fmt.Errorf("read inside: %d, %v", n, inside)
	}
	return all(
		func() error { return wants("read at the end", atEnd, io.EOF) },
		func() error { return wants("read at -1", negative, fault.Invalid) },
		func() error { return wants("write at -1", negativeWrite, fault.Invalid) },
	)
}

func checkReadOnly(d fsx.Dir) error {
	if err := put(d, "f", "content"); err != nil {
		return err
	}
	f, err := d.Open("f", fsx.ReadOnly)
	if err != nil {
		return err
	}
	defer f.Close()
	_, write := f.WriteAt([]byte("x"), 0)
	for what, err := range map[string]error{
		"write": write, "truncate": f.Truncate(1), "allocate": f.Allocate(0, 100), "punch": f.Punch(0, 1),
		"zero": f.Zero(0, 1), "clone": f.Clone(f, 0, 3, 1),
	} {
		if err := wants(what, err, fault.ReadOnly); err != nil {
			return err
		}
	}
	return holds(d, "f", "content")
}

func checkTruncate(d fsx.Dir) error {
	content := pattern(9000, 3)
	f, err := create(d, "f", content)
	if err != nil {
		return err
	}
	defer f.Close()
	longer := append(bytes.Clone(content[:100]), make([]byte, 9900)...)
	return all(
		func() error { return f.Truncate(100) },
		func() error { return contains(f, content[:100]) },
		func() error { return f.Truncate(10_000) },
		func() error { return contains(f, longer) }, // what was cut off does not come back
		func() error { return f.Truncate(0) },
		func() error { return contains(f, nil) },
		func() error { return wants("truncate to -1", f.Truncate(-1), fault.Invalid) },
	)
}

func checkSpace(d fsx.Dir) error {
	total, free, err := d.Space()
	if err != nil {
		return err
	}
	if total <= 0 || free <= 0 || free > total {
		return fmt.Errorf("Space: total %d, free %d", total, free)
	}
	return nil
}

func checkSync(d fsx.Dir) error {
	f, err := create(d, "f", pattern(5000, 1))
	if err != nil {
		return err
	}
	defer f.Close()
	return all(f.Datasync, d.Sync, f.Datasync, d.Sync)
}

func checkClosed(d fsx.Dir) error {
	f, err := create(d, "f", pattern(100, 1))
	if err != nil {
		return err
	}
	if err := errors.Join(d.Mkdir("s"), f.Close()); err != nil {
		return err
	}
	sub, err := d.Sub("s")
	if err != nil {
		return err
	}
	if err := sub.Close(); err != nil {
		return err
	}
	_, read := f.ReadAt(make([]byte, 1), 0)
	_, write := f.WriteAt(make([]byte, 1), 0)
	_, stat := f.Stat()
	_, list := sub.List()
	_, open := sub.Open("x", fsx.ReadWrite|fsx.Create)
	for what, err := range map[string]error{
		"read": read, "write": write, "stat": stat, "datasync": f.Datasync(), "lock": f.Lock(fsx.LockRead),
		"list": list, "open in": open, "mkdir in": sub.Mkdir("x"), "sync": sub.Sync(),
	} {
		if err := wants(what+" after Close", err, fs.ErrClosed); err != nil {
			return err
		}
	}
	return wants("second Close", errors.Join(f.Close(), sub.Close()), nil)
}
