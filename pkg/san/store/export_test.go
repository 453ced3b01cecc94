package store

import "github.com/vmdk-csi/vmdk-csi/internal/fsx"

// Abandon is Close of a process that died.
func (s *Store) Abandon() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.readOnly = true
	return s.lun.Lock(fsx.Unlock)
}
