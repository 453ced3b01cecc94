package fsxtest

import (
	"io"
	"io/fs"
	"path"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx/sim"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// mdir is a directory with one fault: a hook that is set replaces the method.
type mdir struct {
	fsx.Dir
	wrap   func(mfile) mfile // what Open returns
	open   func(d fsx.Dir, name string, flag fsx.Flag) (fsx.File, error)
	stat   func(i fsx.Info) fsx.Info
	list   func([]string) []string
	link   func(d fsx.Dir, src fsx.Dir, srcName, name string) error
	rename func(d fsx.Dir, from, to string) error
	remove func(d fsx.Dir, name string) error
	sync   func() error
	space  func() (int64, int64, error)
}

func (d mdir) Open(name string, flag fsx.Flag) (fsx.File, error) {
	if d.open != nil {
		return d.open(d.Dir, name, flag)
	}
	f, err := d.Dir.Open(name, flag)
	if err == nil && d.wrap != nil {
		return d.wrap(mfile{File: f}), nil
	}
	return f, err
}

func (d mdir) Stat(name string) (fsx.Info, error) {
	i, err := d.Dir.Stat(name)
	if err == nil && d.stat != nil {
		i = d.stat(i)
	}
	return i, err
}

func (d mdir) List() ([]string, error) {
	l, err := d.Dir.List()
	if err == nil && d.list != nil {
		l = d.list(l)
	}
	return l, err
}

func (d mdir) LinkFrom(src fsx.Dir, srcName, name string) error {
	if m, ok := src.(mdir); ok {
		src = m.Dir
	}
	if d.link != nil {
		return d.link(d.Dir, src, srcName, name)
	}
	return d.Dir.LinkFrom(src, srcName, name)
}

func (d mdir) Sub(name string) (fsx.Dir, error) {
	s, err := d.Dir.Sub(name)
	if err != nil {
		return nil, err
	}
	m := d
	m.Dir = s
	return m, nil
}

func (d mdir) Rename(from, to string) error {
	if d.rename != nil {
		return d.rename(d.Dir, from, to)
	}
	return d.Dir.Rename(from, to)
}

func (d mdir) Remove(name string) error {
	if d.remove != nil {
		return d.remove(d.Dir, name)
	}
	return d.Dir.Remove(name)
}

func (d mdir) Sync() error {
	if d.sync != nil {
		return d.sync()
	}
	return d.Dir.Sync()
}

func (d mdir) Space() (int64, int64, error) {
	if d.space != nil {
		return d.space()
	}
	return d.Dir.Space()
}

// mfile is a file with one fault.
type mfile struct {
	fsx.File
	read     func(f fsx.File, p []byte, off int64) (int, error)
	write    func(f fsx.File, p []byte, off int64) (int, error)
	truncate func(f fsx.File, size int64) error
	allocate func(f fsx.File, off, n int64) error
	punch    func(f fsx.File, off, n int64) error
	zero     func(f fsx.File, off, n int64) error
	clone    func(f, src fsx.File, srcOff, dstOff, n int64) error
	seek     func(f fsx.File, off int64) (int64, int64, error)
	lock     func(f fsx.File, m fsx.LockMode) error
	close    func(f fsx.File) error
}

func (f mfile) ReadAt(p []byte, off int64) (int, error) {
	if f.read != nil {
		return f.read(f.File, p, off)
	}
	return f.File.ReadAt(p, off)
}

func (f mfile) WriteAt(p []byte, off int64) (int, error) {
	if f.write != nil {
		return f.write(f.File, p, off)
	}
	return f.File.WriteAt(p, off)
}

func (f mfile) Truncate(size int64) error {
	if f.truncate != nil {
		return f.truncate(f.File, size)
	}
	return f.File.Truncate(size)
}

func (f mfile) Allocate(off, n int64) error {
	if f.allocate != nil {
		return f.allocate(f.File, off, n)
	}
	return f.File.Allocate(off, n)
}

func (f mfile) Punch(off, n int64) error {
	if f.punch != nil {
		return f.punch(f.File, off, n)
	}
	return f.File.Punch(off, n)
}

func (f mfile) Zero(off, n int64) error {
	if f.zero != nil {
		return f.zero(f.File, off, n)
	}
	return f.File.Zero(off, n)
}

func (f mfile) Clone(src fsx.File, srcOff, dstOff, n int64) error {
	if m, ok := src.(mfile); ok {
		src = m.File
	}
	if f.clone != nil {
		return f.clone(f.File, src, srcOff, dstOff, n)
	}
	return f.File.Clone(src, srcOff, dstOff, n)
}

func (f mfile) SeekData(off int64) (int64, int64, error) {
	if f.seek != nil {
		return f.seek(f.File, off)
	}
	return f.File.SeekData(off)
}

func (f mfile) Lock(m fsx.LockMode) error {
	if f.lock != nil {
		return f.lock(f.File, m)
	}
	return f.File.Lock(m)
}

func (f mfile) Close() error {
	if f.close != nil {
		return f.close(f.File)
	}
	return f.File.Close()
}

// files is a mutant whose files have the hooks of m.
func files(m mfile) mdir {
	return mdir{wrap: func(f mfile) mfile { m.File = f.File; return m }}
}

// mutants has one implementation for each check that the check must refuse.
var mutants = map[string]mdir{
	"names": {remove: func(d fsx.Dir, name string) error { return d.Remove(path.Base(name) + "x") }},
	"flags": {open: func(d fsx.Dir, name string, flag fsx.Flag) (fsx.File, error) {
		return d.Open(name, flag&^fsx.Exclusive)
	}},
	"kinds": {stat: func(i fsx.Info) fsx.Info { i.Mode &^= fs.ModeDir; return i }},
	"list":  {list: func(l []string) []string { l[0], l[1] = l[1], l[0]; return l }},
	"read and write": files(mfile{read: func(f fsx.File, p []byte, off int64) (int, error) {
		n, err := f.ReadAt(p, off)
		if err == io.EOF && n > 0 {
			err = nil
		}
		return n, err
	}}),
	"read-only": {open: func(d fsx.Dir, name string, _ fsx.Flag) (fsx.File, error) {
		return d.Open(name, fsx.ReadWrite|fsx.Create)
	}},
	"truncate": files(mfile{truncate: func(f fsx.File, size int64) error {
		p := make([]byte, 9000)
		n, _ := f.ReadAt(p, 0)
		if err := f.Truncate(size); err != nil || size < int64(n) || n == 0 {
			return err
		}
		_, err := f.WriteAt([]byte{9}, int64(n)) // something comes back
		return err
	}}),
	"allocate": files(mfile{allocate: func(f fsx.File, off, n int64) error { return f.Truncate(off + n) }}),
	"punch": files(mfile{punch: func(f fsx.File, off, n int64) error {
		return f.Punch(off&^4095, (n+4095)&^4095)
	}}),
	"zero": files(mfile{zero: func(f fsx.File, off, n int64) error {
		_, err := f.WriteAt(make([]byte, max(0, n)), off) // grows the file
		return err
	}}),
	"seek": files(mfile{seek: func(f fsx.File, off int64) (int64, int64, error) {
		start, end, err := f.SeekData(off)
		return start, end - 4096, err
	}}),
	"clone": files(mfile{clone: func(f, src fsx.File, srcOff, dstOff, n int64) error {
		for at := int64(0); at < n; { // data only: holes of the source keep what was there
			start, end, err := src.SeekData(srcOff + at)
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			start, end = min(start, srcOff+n), min(end, srcOff+n)
			p := make([]byte, end-start)
			if _, err := src.ReadAt(p, start); err != nil {
				return err
			}
			if _, err := f.WriteAt(p, dstOff+start-srcOff); err != nil {
				return err
			}
			at = end - srcOff
		}
		return nil
	}}),
	"link": {link: func(d, src fsx.Dir, srcName, name string) error {
		from, err := src.Open(srcName, fsx.ReadOnly)
		if err != nil {
			return err
		}
		to, err := d.Open(name, fsx.ReadWrite|fsx.Create|fsx.Exclusive)
		if err != nil {
			return err
		}
		info, err := from.Stat()
		if err != nil {
			return err
		}
		return to.Clone(from, 0, 0, info.Size) // a copy is no link
	}},
	"rename": {rename: func(d fsx.Dir, from, to string) error {
		d.Remove(to) // not atomic: two names of one file become none
		return d.Rename(from, to)
	}},
	"remove": {remove: func(d fsx.Dir, name string) error {
		d.Remove(name)
		return nil
	}},
	"unlinked": {remove: func(d fsx.Dir, name string) error {
		f, err := d.Open(name, fsx.ReadWrite)
		if err != nil {
			return err
		}
		f.Truncate(0)
		f.Close()
		return d.Remove(name)
	}},
	"sync":  {sync: func() error { return fault.New(fault.Poisoned, "", "no") }},
	"space": {space: func() (int64, int64, error) { return 1 << 20, 1 << 21, nil }},
	"closed": files(mfile{close: func(fsx.File) error {
		return nil
	}}),
	"locks exclude": files(mfile{lock: func(f fsx.File, m fsx.LockMode) error {
		if m == fsx.LockWrite {
			m = fsx.LockRead
		}
		return f.Lock(m)
	}}),
	"locks change": files(mfile{lock: func(f fsx.File, m fsx.LockMode) error {
		err := f.Lock(m)
		if err != nil {
			f.Lock(fsx.Unlock) // lets go of what it had
		}
		return err
	}}),
	"mixed alignment": files(mfile{write: func(f fsx.File, p []byte, off int64) (int, error) {
		return f.WriteAt(p, off&^511) // as if offsets were sectors
	}}),
	"concurrent sectors": files(mfile{write: func(f fsx.File, p []byte, off int64) (int, error) {
		lo := off &^ 4095
		buf := make([]byte, (off+int64(len(p))+4095)&^4095-lo)
		f.ReadAt(buf, lo)
		copy(buf[off-lo:], p)
		_, err := f.WriteAt(buf, lo) // read-modify-write without a lock
		return len(p), err
	}}),
}

func TestChecksFail(t *testing.T) {
	for _, c := range Checks() {
		m, ok := mutants[c.Name]
		if !ok {
			t.Errorf("no mutant for check %q", c.Name)
			continue
		}
		var err error
		for range 100 { // a race needs its moment
			m.Dir = sim.New(sim.Options{}).Root()
			if err = c.Run(m); err != nil {
				break
			}
		}
		if err == nil {
			t.Errorf("check %q passes for an implementation that breaks it", c.Name)
		} else {
			t.Logf("%s: %v", c.Name, err)
		}
	}
}
