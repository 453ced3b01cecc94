package host

import (
	"fmt"
	"slices"
	"strings"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// The rules that every adapter applies alike.

// CheckDatastoreName says whether a datastore can have the name. Kind: Invalid.
func CheckDatastoreName(name string) error {
	if name == "" || len(name) > 63 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-.") != "" {
		return fault.New(fault.Invalid, "Use 1 to 63 of a-z, 0-9, - and .", "%q cannot be the name of a datastore", name)
	}
	return nil
}

// Normalize fills in defaults (thin, monolithicFlat) and refuses what can never be made. Kinds: Invalid, OutOfRange.
func (s DiskSpec) Normalize() (DiskSpec, error) {
	if s.Name == "" || len(s.Name) > MaxNameLength {
		return s, fault.New(fault.Invalid, "Use a shorter name.", "a disk's name has 1 to %d bytes, this one has %d", MaxNameLength, len(s.Name))
	}
	if s.Format == "" {
		s.Format = Thin
	}
	if s.Type == "" {
		s.Type = MonolithicFlat
	}
	switch s.Format {
	case Thin, ZeroedThick, EagerZeroedThick:
	default:
		return s, fault.New(fault.Invalid, "", "diskFormat %q is none of thin, zeroedthick, eagerzeroedthick", s.Format)
	}
	switch {
	case !slices.Contains(DiskTypes(), s.Type):
		return s, fault.New(fault.Invalid, "", "diskType %q is none of %s", s.Type, DiskTypes())
	case s.Type.Sparse() && s.Format != Thin:
		return s, fault.New(fault.Invalid, "Use diskFormat thin, or diskType monolithicFlat.",
			"diskType %s is always thin, diskFormat %s contradicts it", s.Type, s.Format)
	case s.Size > s.Type.MaxSize() && s.Size <= MaxCapacity:
		return s, fault.New(fault.OutOfRange, "Use diskType twoGbMaxExtentSparse or monolithicFlat.", "a disk of %d bytes: diskType %s holds at most %d",
			s.Size, s.Type, s.Type.MaxSize())
	}
	if err := s.normalizeSource(); err != nil {
		return s, err
	}
	return s, CheckSize(s.Size)
}

func (s *DiskSpec) normalizeSource() error {
	switch s.CloneMode {
	case "", CloneLinked, CloneFull:
	default:
		return fault.New(fault.Invalid, "", "cloneMode %q is none of linked, full", s.CloneMode)
	}
	if s.Source == nil {
		s.CloneMode = "" // there is nothing to clone
		return nil
	}
	if s.CloneMode == "" {
		s.CloneMode = CloneLinked
	}
	return s.Source.check()
}

// check: exactly one source, and one that can exist. Kinds: Invalid, NotFound.
func (s Source) check() error {
	switch {
	case (s.Snapshot == "") == (s.Disk == ""):
		return fault.New(fault.Invalid, "Name a snapshot or a disk.", "a source is one snapshot or one disk, this one has the snapshot %q and the disk %q",
			s.Snapshot, s.Disk)
	case s.Snapshot != "" && !ValidSnapshotID(s.Snapshot):
		return fault.New(fault.NotFound, "", "snapshot %q does not exist", s.Snapshot)
	case s.Disk != "" && !ValidDiskID(s.Disk):
		return fault.New(fault.NotFound, "", "disk %q does not exist", s.Disk)
	}
	return nil
}

// String names the source for people.
func (s *Source) String() string {
	switch {
	case s == nil:
		return "no source"
	case s.Snapshot != "":
		return "snapshot " + s.Snapshot
	}
	return "disk " + s.Disk
}

// CheckSource says whether a disk of spec can be made from a source of size bytes that lies in datastore. Kinds: Invalid (another
// datastore), OutOfRange (smaller than the source).
func (s DiskSpec) CheckSource(datastore string, size int64) error {
	switch {
	case s.Datastore != datastore:
		return fault.New(fault.Invalid, "Use datastore "+datastore+", where the source is.",
			"a disk in datastore %s cannot be made from %s in datastore %s", s.Datastore, s.Source, datastore)
	case s.Size < size:
		return fault.New(fault.OutOfRange, fmt.Sprintf("Ask for %d bytes or more.", size),
			"a disk of %d bytes is smaller than its source, %s, which has %d", s.Size, s.Source, size)
	}
	return nil
}

// CheckSize says whether size can be a disk's capacity. Kinds: OutOfRange, Invalid.
func CheckSize(size int64) error {
	if size < MinCapacity || size > MaxCapacity {
		return fault.New(fault.OutOfRange, "Ask for a size in this range.",
			"a disk of %d bytes: the range is %d (1 MiB) to %d (62 TiB)", size, MinCapacity, MaxCapacity)
	}
	if size%CapacityUnit != 0 {
		return fault.New(fault.Invalid, "Round it up.", "a disk of %d bytes: sizes are multiples of %d (1 MiB)", size, CapacityUnit)
	}
	return nil
}

// Matches says whether a disk made for s answers a request for ask. Both are normalized; Host is no part of the
// identity. Kind: Exists, naming the first field that differs.
func (s DiskSpec) Matches(ask DiskSpec) error {
	for _, f := range []struct {
		name      string
		have, ask any
	}{
		{"name", s.Name, ask.Name},
		{"datastore", s.Datastore, ask.Datastore},
		{"size", s.Size, ask.Size},
		{"diskFormat", s.Format, ask.Format},
		{"diskType", s.Type, ask.Type},
		{"source", s.Source.String(), ask.Source.String()},
		{"cloneMode", s.CloneMode, ask.CloneMode},
	} {
		if f.have != f.ask {
			return fault.New(fault.Exists, "Use another name, or delete the disk first.",
				"disk %s exists with %s %v, asked for is %v", DiskID(s.Name), f.name, f.have, f.ask)
		}
	}
	return nil
}

// CheckList checks the arguments of Disks.List; a token is the id of the last disk that was returned. Kind: Invalid.
func CheckList(max int, token string) error {
	return checkList(max, token, ValidDiskID)
}

// CheckSnapshotList is CheckList of Snapshots.ListSnapshots.
func CheckSnapshotList(max int, token string) error {
	return checkList(max, token, ValidSnapshotID)
}

func checkList(max int, token string, valid func(string) bool) error {
	if max < 0 {
		return fault.New(fault.Invalid, "", "a list of %d entries", max)
	}
	if token != "" && !valid(token) {
		return fault.New(fault.Invalid, "List again from the start.", "token %q does not come from an earlier list", token)
	}
	return nil
}

// AddClaim is claims with c, unless they exclude it. Kinds: InUse (another node, and either claim writes), Exists (the
// same node in the other mode).
func AddClaim(id string, claims []Claim, c Claim) ([]Claim, error) {
	for _, o := range claims {
		switch {
		case o == c:
			return claims, nil
		case o.Node == c.Node:
			return nil, fault.New(fault.Exists, "Detach it first.",
				"disk %s is claimed by node %q with readOnly=%v, asked for is readOnly=%v", id, o.Node, o.ReadOnly, c.ReadOnly)
		case !o.ReadOnly || !c.ReadOnly:
			return nil, fault.New(fault.InUse, "Detach it there first.", "disk %s is claimed by node %q", id, o.Node)
		}
	}
	return append(slices.Clone(claims), c), nil
}
