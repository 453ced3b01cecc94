package fsx

// watched is a Dir whose changes are told before they happen.
type watched struct {
	Dir
	before func(op string)
}

type watchedFile struct {
	File
	before func(op string)
}

// Watch is d with before called ahead of every operation that changes something or makes it durable, of d, of what is below
// it, and of its files. What ends the process there has it end between two steps of whatever protocol is at work.
func Watch(d Dir, before func(op string)) Dir { return watched{d, before} }

func (d watched) Open(name string, flag Flag) (File, error) {
	if flag&Create != 0 {
		d.before("create " + name)
	}
	f, err := d.Dir.Open(name, flag)
	if err != nil {
		return nil, err
	}
	return watchedFile{f, func(op string) { d.before(op + " " + name) }}, nil
}

func (d watched) Sub(name string) (Dir, error) {
	s, err := d.Dir.Sub(name)
	if err != nil {
		return nil, err
	}
	return watched{s, d.before}, nil
}

func (d watched) Mkdir(name string) error {
	d.before("mkdir " + name)
	return d.Dir.Mkdir(name)
}

func (d watched) LinkFrom(src Dir, srcName, name string) error {
	d.before("link " + name)
	return d.Dir.LinkFrom(Unwrap(src), srcName, name)
}

func (d watched) Rename(oldName, newName string) error {
	d.before("rename " + newName)
	return d.Dir.Rename(oldName, newName)
}

func (d watched) Remove(name string) error {
	d.before("remove " + name)
	return d.Dir.Remove(name)
}

func (d watched) Sync() error {
	d.before("sync directory")
	return d.Dir.Sync()
}

func (f watchedFile) WriteAt(p []byte, off int64) (int, error) {
	f.before("write")
	return f.File.WriteAt(p, off)
}

func (f watchedFile) Datasync() error {
	f.before("sync")
	return f.File.Datasync()
}

func (f watchedFile) Truncate(size int64) error {
	f.before("truncate")
	return f.File.Truncate(size)
}

func (f watchedFile) Allocate(off, n int64) error {
	f.before("allocate")
	return f.File.Allocate(off, n)
}

func (f watchedFile) Punch(off, n int64) error {
	f.before("punch")
	return f.File.Punch(off, n)
}

func (f watchedFile) Zero(off, n int64) error {
	f.before("zero")
	return f.File.Zero(off, n)
}

func (f watchedFile) Clone(src File, srcOff, dstOff, n int64) error {
	f.before("clone")
	return f.File.Clone(UnwrapFile(src), srcOff, dstOff, n)
}
