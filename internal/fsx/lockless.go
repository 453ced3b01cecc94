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
	return d.Dir.LinkFrom(Unwrap(src), srcName, name)
}

func (f locklessFile) Lock(LockMode) error { return nil }

func (f locklessFile) Clone(src File, srcOff, dstOff, n int64) error {
	return f.File.Clone(UnwrapFile(src), srcOff, dstOff, n)
}

// Unwrap is the Dir below WithoutLocks and Watch, for implementations that need one of their own.
func Unwrap(d Dir) Dir {
	for {
		switch w := d.(type) {
		case lockless:
			d = w.Dir
		case watched:
			d = w.Dir
		default:
			return d
		}
	}
}

// UnwrapFile is the File below WithoutLocks and Watch.
func UnwrapFile(f File) File {
	for {
		switch w := f.(type) {
		case locklessFile:
			f = w.File
		case watchedFile:
			f = w.File
		default:
			return f
		}
	}
}
