package datastore

import "fmt"

// checkChanges checks what snapshots, merges and retirement add to a manifest.
func (m Manifest) checkChanges() error {
	for i, l := range m.Links[:len(m.Links)-1] {
		if l.Frozen {
			return fmt.Errorf("link %d is frozen, and is not the head", i)
		}
	}
	if m.Head().Frozen && m.Growing != 0 {
		return fmt.Errorf("a frozen head grows to %d bytes", m.Growing)
	}
	if err := m.checkSnapshots(); err != nil {
		return err
	}
	if m.Behind != "" && m.Index(m.Behind) < 0 {
		return fmt.Errorf("the descriptor %q, which may be behind, is none of its links", m.Behind)
	}
	if m.Retired && (len(m.Snapshots) == 0 || !m.Head().Frozen || m.Growing != 0 || !m.SnapshotAt(m.Head().Descriptor)) {
		return fmt.Errorf("it is retired with %d snapshots, of which one must end at its frozen head", len(m.Snapshots))
	}
	return m.checkMerge()
}

func (m Manifest) checkSnapshots() error {
	if len(m.Snapshots) > MaxSnapshots {
		return fmt.Errorf("%d snapshots", len(m.Snapshots))
	}
	seen := map[string]bool{}
	for _, s := range m.Snapshots {
		if err := checkEntry(s.ID); err != nil {
			return err
		}
		if s.Name == "" || len(s.Name) > maxName || seen[s.ID] {
			return fmt.Errorf("snapshot %s has a name of %d bytes, or is there twice", s.ID, len(s.Name))
		}
		seen[s.ID] = true
		i := m.Index(s.Link)
		if i < 0 {
			return fmt.Errorf("snapshot %s ends at %q, which is none of its links", s.ID, s.Link)
		}
		if l := m.Links[i]; l.Size != s.Size || l.CID != s.CID {
			return fmt.Errorf("snapshot %s has %d bytes of content %s, its link %d bytes of %s", s.ID, s.Size, s.CID, l.Size, l.CID)
		}
		if i == len(m.Links)-1 && !m.Links[i].Frozen {
			return fmt.Errorf("snapshot %s ends at the head, which is not frozen", s.ID)
		}
	}
	return nil
}

func (m Manifest) checkMerge() error {
	if m.Merge == nil {
		return nil
	}
	i := m.Index(m.Merge.Lower)
	switch {
	case m.Merge.Direction != Down && m.Merge.Direction != Up:
		return fmt.Errorf("a merge %q", m.Merge.Direction)
	case i < 0 || i == len(m.Links)-1:
		return fmt.Errorf("a merge of %q, above which there is no link", m.Merge.Lower)
	case m.SnapshotAt(m.Merge.Lower):
		return fmt.Errorf("a merge of %q, where a snapshot ends", m.Merge.Lower)
	}
	return nil
}
