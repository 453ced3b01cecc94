package sim

import "io"

// failRule makes operations fail; n counts mutating operations from 0 since New or Record.
type failRule struct {
	n      int
	err    error
	always bool // every operation from n on
	after  bool // the effect takes place, the caller gets the error all the same
}

// FailAt makes the n-th mutating operation fail without effect, except that a write that fails with anything but
// ENOSPC stores its first half. io.ErrShortWrite reports that half to the caller.
func (s *FS) FailAt(n int, err error) { s.addFail(failRule{n: n, err: err}) }

// FailAfter makes the n-th mutating operation happen and report err: an answer that was lost on the way.
func (s *FS) FailAfter(n int, err error) { s.addFail(failRule{n: n, err: err, after: true}) }

// FailFrom makes the n-th and every later mutating operation fail without effect: for the file system the process is
// dead from there on, while the machine lives.
func (s *FS) FailFrom(n int, err error) { s.addFail(failRule{n: n, err: err, always: true}) }

// Failed is the position in the log at which the first operation was made to fail, 0 if none was.
func (s *FS) Failed() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// Heal forgets all failure rules.
func (s *FS) Heal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fails, s.dead = nil, false
}

func (s *FS) addFail(r failRule) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fails = append(s.fails, r)
}

// step counts one mutating operation and tells how it ends: err for a failure, late if it has its effect first.
// Called with mu held.
func (s *FS) step() (err error, late bool) {
	n := s.ops
	s.ops++
	for _, r := range s.fails {
		if n == r.n || r.always && n >= r.n {
			if s.failed == 0 {
				s.failed = len(s.log)
			}
			s.dead = r.always
			return r.err, r.after
		}
	}
	return nil, false
}

// short is how much of a failed write is stored.
func short(err error, n int, full bool) int {
	if full {
		return 0
	}
	half := n / 2 / sectorSize * sectorSize
	if err == io.ErrShortWrite && half == 0 {
		return n / 2
	}
	return half
}
