package datastore

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/lease"
)

// Manifest is the truth about a volume from its commit to the next one's.
type Manifest struct {
	Version int    `json:"version"`
	Disk    string `json:"disk"` // id of the volume
	UUID    string `json:"uuid"`
	lease.State
	Size  int64  `json:"size"`  // capacity of the head, bytes
	Links []Link `json:"links"` // base first
	// Steps are the places where a link has another capacity than its parent; open accepts no others (rule 7).
	Steps []Step `json:"steps,omitempty"`
	// Growing is the capacity that the head is on its way to; whoever opens the disk next finishes it.
	Growing int64 `json:"growing,omitempty"`
	// Snapshots are the points of this disk's past that somebody wants to keep, oldest first.
	Snapshots []Snapshot `json:"snapshots,omitempty"`
	// Merge is a consolidation that was begun: the lower link may be unclean, and larger than recorded.
	Merge *Merge `json:"merge,omitempty"`
	// Behind names the descriptor of a link that a merge has made and whose descriptors (its own, and the hint of the one
	// above) may not say so yet: they are rebound before anything reads them.
	Behind string `json:"behind,omitempty"`
	// Retired says that the volume was deleted and its links stay for its snapshots: nobody attaches it any more.
	Retired bool `json:"retired,omitempty"`
	// Deleting says that the volume's files are being removed: nothing else may happen to it.
	Deleting bool `json:"deleting,omitempty"`
}

// Link is one link of the chain: a descriptor and its extents.
type Link struct {
	Descriptor string   `json:"descriptor"`
	Extents    []string `json:"extents"`
	Type       string   `json:"type"` // createType
	CID        string   `json:"cid"`
	LongID     string   `json:"longContentID,omitempty"`
	ParentCID  string   `json:"parentCID"`
	Size       int64    `json:"size"` // capacity, bytes
	// Frozen says of the head that it must not be written any more, because a snapshot ends there or other disks share its
	// extents: who attaches the disk puts a child on top first.
	Frozen bool `json:"frozen,omitempty"`
}

// Files are the names of the link's files, descriptor first. A descriptor that lies inside the only extent is one file with it.
func (l Link) Files() []string {
	if l.Type == "monolithicSparse" && len(l.Extents) == 1 && l.Extents[0] == l.Descriptor {
		return l.Extents
	}
	return append([]string{l.Descriptor}, l.Extents...)
}

// Snapshot is a point in the disk's past: the content of the chain up to a link.
type Snapshot struct {
	ID          string    `json:"id"`
	Name        string    `json:"name"` // the orchestrator's name
	Link        string    `json:"link"` // descriptor of the link where it ends
	Size        int64     `json:"size"` // capacity then, bytes
	CID         string    `json:"cid"`
	Created     time.Time `json:"created"`
	Consistency string    `json:"consistency"`
}

// Merge is the intent to make one link of two neighbours.
type Merge struct {
	Lower     string `json:"lower"`     // descriptor of the lower one
	Direction string `json:"direction"` // Down or Up
}

// Directions of a merge.
const (
	Down = "down" // the upper link goes into the lower one
	Up   = "up"   // the lower link goes into the upper one
)

// Step is a recorded difference of capacity between a link and its parent.
type Step struct {
	Link int   `json:"link"` // index in Links, from 1
	From int64 `json:"from"` // parent's capacity, bytes
	To   int64 `json:"to"`   // link's capacity, bytes
}

// MaxSnapshots is the most snapshots of a disk: many may end at one link.
const MaxSnapshots = 1000

const maxLinks = 255 // VMware's own limit is 32 for a VM's chain; longer ones occur in foreign trees

func manifestName(epoch, seq int64) string { return fmt.Sprintf("manifest-%d-%d.json", epoch, seq) }

// parseManifestName accepts exactly what manifestName makes of positive numbers.
func parseManifestName(name string) (epoch, seq int64, ok bool) {
	rest, ok := strings.CutPrefix(name, "manifest-")
	if !ok {
		return 0, 0, false
	}
	rest, ok = strings.CutSuffix(rest, ".json")
	e, q, ok2 := strings.Cut(rest, "-")
	if !ok || !ok2 {
		return 0, 0, false
	}
	epoch, err1 := strconv.ParseInt(e, 10, 64)
	seq, err2 := strconv.ParseInt(q, 10, 64)
	if err1 != nil || err2 != nil || epoch < 1 || seq < 1 || manifestName(epoch, seq) != name {
		return 0, 0, false
	}
	return epoch, seq, true
}

// sortManifests picks the manifests out of names, oldest first.
func sortManifests(names []string) []string {
	var found []string
	for _, n := range names {
		if _, _, ok := parseManifestName(n); ok {
			found = append(found, n)
		}
	}
	slices.SortFunc(found, func(a, b string) int {
		ae, as, _ := parseManifestName(a)
		be, bs, _ := parseManifestName(b)
		if ae != be {
			return sign(ae - be)
		}
		return sign(as - bs)
	})
	return found
}

func sign(n int64) int {
	switch {
	case n < 0:
		return -1
	case n > 0:
		return 1
	}
	return 0
}

// files are the names that the manifest refers to.
func (m Manifest) files() map[string]bool {
	refs := map[string]bool{}
	for _, l := range m.Links {
		for _, n := range l.Files() {
			refs[n] = true
		}
	}
	return refs
}

func (m Manifest) check() error {
	if m.Epoch < 1 || m.Seq < 1 || (m.Owner.Host == "" && !m.Released) {
		return fmt.Errorf("epoch %d, seq %d, owner %q", m.Epoch, m.Seq, m.Owner.Host)
	}
	if m.Deleting {
		return nil
	}
	if len(m.Links) == 0 || len(m.Links) > maxLinks {
		return fmt.Errorf("%d links", len(m.Links))
	}
	if err := m.checkNames(); err != nil {
		return err
	}
	if head := m.Links[len(m.Links)-1]; head.Size != m.Size {
		return fmt.Errorf("capacity %d, but the head has %d", m.Size, head.Size)
	}
	if m.Growing != 0 && m.Growing <= m.Size {
		return fmt.Errorf("growing from %d to %d", m.Size, m.Growing)
	}
	if err := m.checkSteps(); err != nil {
		return err
	}
	return m.checkChanges()
}

// Index is the place of the link with that descriptor, -1 if there is none.
func (m Manifest) Index(descriptor string) int {
	return slices.IndexFunc(m.Links, func(l Link) bool { return l.Descriptor == descriptor })
}

// Head is the link on top.
func (m Manifest) Head() Link { return m.Links[len(m.Links)-1] }

// SnapshotAt says whether a snapshot ends at the link.
func (m Manifest) SnapshotAt(descriptor string) bool {
	return slices.ContainsFunc(m.Snapshots, func(s Snapshot) bool { return s.Link == descriptor })
}

func (m Manifest) checkNames() error {
	seen := map[string]bool{}
	for i, l := range m.Links {
		if l.Size <= 0 || l.Size%512 != 0 {
			return fmt.Errorf("link %d has a capacity of %d bytes", i, l.Size)
		}
		if len(l.Extents) == 0 {
			return fmt.Errorf("link %d has no extents", i)
		}
		for _, n := range l.Files() {
			// Our own names all start so; a manifest can never make Collect spare or the engine open anything else.
			if fsx.CheckName(n) != nil || !strings.HasPrefix(n, "disk") || len(n) > 255 {
				return fmt.Errorf("link %d names the file %q", i, n)
			}
			if seen[n] {
				return fmt.Errorf("the file %q is named twice", n)
			}
			seen[n] = true
		}
	}
	return nil
}

func (m Manifest) checkSteps() error {
	var want []Step
	for i := 1; i < len(m.Links); i++ {
		if p, c := m.Links[i-1], m.Links[i]; p.Size != c.Size {
			want = append(want, Step{Link: i, From: p.Size, To: c.Size})
		}
	}
	for _, s := range want {
		if s.To < s.From {
			return fmt.Errorf("link %d is smaller than its parent (%d < %d)", s.Link, s.To, s.From)
		}
	}
	if !slices.Equal(want, m.Steps) {
		return fmt.Errorf("its capacity steps %v are not those of its links %v", m.Steps, want)
	}
	return nil
}
