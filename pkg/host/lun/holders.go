package lun

import "github.com/vmdk-csi/vmdk-csi/internal/fsx"

// Holders are the nodes that have a disk of the store with that root. Whoever owns a LUN without serving it asks before it opens
// a disk for itself.
func Holders(root fsx.Dir, id string) ([]string, error) {
	s, err := loadSessions(root)
	if err != nil {
		return nil, err
	}
	defer s.dir.Close()
	return s.get(id).Nodes, nil
}
