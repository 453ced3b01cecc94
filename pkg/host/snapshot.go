package host

import (
	"context"
	"strings"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Snapshots makes and unmakes points in a disk's past. Every method may be repeated.
type Snapshots interface {
	// CreateSnapshot makes the snapshot named spec.Name, or returns it when it exists of the same disk.
	// Kinds: Invalid, NotFound (the disk: missing, being deleted, retired), Exists (a snapshot of this name of another
	// disk), InProgress, Exhausted (the chain is at its depth limit), NoSpace, InUse (attached on another host).
	CreateSnapshot(ctx context.Context, spec SnapshotSpec) (Snapshot, error)
	// DeleteSnapshot removes it; one that is not there is deleted already. Disks restored from it stay whole.
	DeleteSnapshot(ctx context.Context, id string) error
	// GetSnapshot describes one. Kinds: NotFound, Damaged.
	GetSnapshot(ctx context.Context, id string) (Snapshot, error)
	// ListSnapshots returns up to max snapshots (0: all) in order of id, behind the token that an earlier call returned; of
	// one disk if disk is not "". Kinds: Invalid (token).
	ListSnapshots(ctx context.Context, disk string, max int, token string) (list []Snapshot, next string, err error)
}

// SnapshotSpec is what a snapshot is asked to be. Two requests with one Name must agree in Disk.
type SnapshotSpec struct {
	Name string `json:"name"` // the container orchestrator's name; any string of 1..1024 bytes
	Disk string `json:"disk"` // id of the disk
	// Freeze says what is to be stopped at the point in time; FreezeDeadline how long that may take and last.
	Freeze         Freeze        `json:"freeze,omitempty"`
	FreezeDeadline time.Duration `json:"freezeDeadline,omitempty"`
	// Frozen is for how long from now on the caller has stopped the file system of an attached disk. A host without the
	// right to mount records the snapshot as Filesystem if the point in time lies within.
	Frozen time.Duration `json:"frozen,omitempty"`
}

// Freeze is what stands still while a snapshot is taken.
type Freeze string

// The freezes. A detached disk needs none: it was closed cleanly.
const (
	FreezeNone       Freeze = "none"       // nothing: what a power cut would leave
	FreezeFilesystem Freeze = "filesystem" // the mounted file system (FIFREEZE)
)

// Consistency of a snapshot's content.
type Consistency string

// The consistencies.
const (
	CrashConsistent      Consistency = "crash"      // what a power cut at that moment would leave
	FilesystemConsistent Consistency = "filesystem" // of a frozen file system, or of a disk that was detached cleanly
)

// Snapshot is a point in a disk's past.
type Snapshot struct {
	ID          string      `json:"id"` // SnapshotID(Name)
	Name        string      `json:"name"`
	Disk        string      `json:"disk"`
	DiskUUID    string      `json:"diskUUID"`
	Datastore   string      `json:"datastore"`
	Hosts       []string    `json:"hosts,omitempty"` // that can restore it; empty: every host
	Size        int64       `json:"size"`            // capacity of the disk then, bytes: the least size of a restored disk
	CID         string      `json:"cid"`
	Created     time.Time   `json:"created"`
	Consistency Consistency `json:"consistency"`
	Ready       bool        `json:"ready"`
}

// CloneMode is how a disk gets the content of its source.
type CloneMode string

// The modes.
const (
	CloneLinked CloneMode = "linked" // shares the source's links; instant
	CloneFull   CloneMode = "full"   // copies everything into links of its own
)

// Source is where the first content of a disk comes from; exactly one field is set.
type Source struct {
	Snapshot string `json:"snapshot,omitempty"` // id of a snapshot
	Disk     string `json:"disk,omitempty"`     // id of a disk
}

// Consolidation is what merging of a disk's unneeded links is about.
type Consolidation struct {
	// Links that nobody needs and that are not merged yet.
	Links int `json:"links"`
	// Running says that a merge is under way; Done of Total bytes are copied.
	Running bool  `json:"running,omitempty"`
	Done    int64 `json:"done,omitempty"`
	Total   int64 `json:"total,omitempty"`
	// Freed is what the merges of this process have given back to the datastore, bytes.
	Freed int64 `json:"freed,omitempty"`
	// Reason why it waits, "" if it does not: other disks share the links, an error with its remedy.
	Reason string `json:"reason,omitempty"`
}

// MaxLinks is how many links a chain has at most (VMware supports 32).
const MaxLinks = 32

// Limits of how long a freeze may take and last: the default, and the longest.
const (
	DefaultFreezeDeadline = 10 * time.Second
	MaxFreezeDeadline     = time.Minute
)

const snapshotPrefix = "vs-"

// SnapshotID is the id of the snapshot that the orchestrator calls name.
func SnapshotID(name string) string { return snapshotPrefix + NameHash(KindSnapshot, name) }

// ValidSnapshotID says whether s can be the id of a snapshot.
func ValidSnapshotID(s string) bool {
	rest, ok := strings.CutPrefix(s, snapshotPrefix)
	return ok && validHash(rest)
}

// Matches says whether a snapshot made for s answers a request for ask: both are of one disk. Kind: Exists.
func (s SnapshotSpec) Matches(ask SnapshotSpec) error {
	if s.Disk == ask.Disk {
		return nil
	}
	return fault.New(fault.Exists, "Use another name, or delete the snapshot first.",
		"snapshot %s exists of disk %s, asked for is one of disk %s", SnapshotID(s.Name), s.Disk, ask.Disk)
}

// Normalize fills in defaults and refuses what can never be made. Kinds: Invalid.
func (s SnapshotSpec) Normalize() (SnapshotSpec, error) {
	if s.Name == "" || len(s.Name) > MaxNameLength {
		return s, fault.New(fault.Invalid, "Use a shorter name.", "a snapshot's name has 1 to %d bytes, this one has %d", MaxNameLength, len(s.Name))
	}
	if s.Freeze == "" {
		s.Freeze = FreezeNone
	}
	if s.Freeze != FreezeNone && s.Freeze != FreezeFilesystem {
		return s, fault.New(fault.Invalid, "", "freeze %q is none of none, filesystem", s.Freeze)
	}
	if s.FreezeDeadline < 0 || s.FreezeDeadline > MaxFreezeDeadline || s.Frozen < 0 || s.Frozen > MaxFreezeDeadline {
		return s, fault.New(fault.Invalid, "Ask for a shorter one.", "a freeze of %s, deadline %s: the range is 0 to %s",
			s.Frozen, s.FreezeDeadline, MaxFreezeDeadline)
	}
	return s, nil
}
