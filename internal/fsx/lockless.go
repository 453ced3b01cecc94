package fsx

// lockless is a Dir whose files do not lock.
type lockless struct{ Dir }

type locklessFile struct{ File }

// WithoutLocks is d with File.Lock doing nothing, for file systems without byte-range locks.
func WithoutLocks(d Dir) Dir {
	if w, ok := d.(lockless); ok {
		return w
	}
	return lockless{d}
}

func (d lockless) Open(name string, flag Flag) (File, error) {
	f, err := d.Dir.Open(name, flag)
	if err != nil {
		return nil, err
	}
	return locklessFile{f}, nil
}

func (d lockless) Sub(name string) (Dir, error) {
	s, err := d.Dir.Sub(name)
	if err != nil {
		return nil, err
	}
	return lockless{s}, nil
}

func (d lockless) LinkFrom(src Dir, srcName, name string) error {
	if w, ok := src.(lockless); ok {
		src = w.Dir
	}
	return d.Dir.LinkFrom(src, srcName, name)
}

func (f locklessFile) Lock(LockMode) error { return nil }

func (f locklessFile) Clone(src File, srcOff, dstOff, n int64) error {
	if w, ok := src.(locklessFile); ok {
		src = w.File
	}
	return f.File.Clone(src, srcOff, dstOff, n)
}
