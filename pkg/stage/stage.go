package stage

import "context"

// Mode is what a staged volume is to its workloads.
type Mode string

// The modes.
const (
	Block Mode = "block" // a raw block device
	Mount Mode = "mount" // a file system
)

// Partition is how a disk is divided when it is staged with a file system.
type Partition string

// The partitions.
const (
	PartitionNone Partition = "none" // the file system is on the whole disk
	PartitionGPT  Partition = "gpt"  // the file system is in the one partition of a GUID partition table
)

// Volume is how a volume is asked to be on this node. Two requests for one id must agree in everything.
type Volume struct {
	ID          string
	StagingPath string // absolute, clean
	Mode        Mode
	// FSType is ext4, xfs or btrfs; Options are mount(8) options. Both are for Mode Mount only.
	FSType    string
	Options   []string
	Partition Partition
	ReadOnly  bool   // the disk is attached read-only
	Transport string // order of transports, "" is the default
	// Copy: the disk was made from a snapshot or another disk, whose file system may be mounted on the same node.
	Copy bool
}

// Publication is a volume at one workload's path.
type Publication struct {
	ID          string
	StagingPath string // where it is staged; absolute, clean
	Target      string // absolute, clean
	Mode        Mode
	ReadOnly    bool
	Options     []string // mount(8) options, for Mode Mount only
	SinglePath  bool     // Target is to be the only one on this node (the CSI access modes that are for one path)
}

// Usage is how much of a volume is used.
type Usage struct {
	Mode                           Mode
	Total, Used, Free              int64 // bytes; Used and Free are 0 for Mode Block
	Inodes, InodesUsed, InodesFree int64 // 0 for Mode Block
}

// Volumes stages and publishes the volumes of this node. Every method may be repeated, and finds what the first one did;
// an operation on a volume that has another one under way is InProgress.
//
// Six methods: they are one life cycle, in its order, and every user needs all of them.
type Volumes interface {
	// Stage attaches the disk and mounts it at v.StagingPath. Kinds: NotFound, InUse, Exists (staged otherwise),
	// Precondition (another file system on the disk), and those of host.Attacher.Attach.
	Stage(ctx context.Context, v Volume) error
	// Unstage undoes Stage; what is not staged is unstaged already. Kinds: InUse (still published or still open).
	Unstage(ctx context.Context, id, stagingPath string) error
	// Publish makes a staged volume appear at p.Target. Kinds: Precondition (not staged; published elsewhere and
	// SinglePath), Exists (published there otherwise).
	Publish(ctx context.Context, p Publication) error
	// Unpublish undoes Publish and removes the target; what is not published is unpublished already.
	Unpublish(ctx context.Context, id, target string) error
	// Expand makes the volume as large on this node as its disk is, at least size bytes, and returns its size in bytes.
	// path is where it is staged or published. Kinds: NotFound, OutOfRange (the disk is smaller), Precondition.
	Expand(ctx context.Context, id, path string, size int64) (int64, error)
	// Usage of the volume at path, where it is staged or published. Kinds: NotFound.
	Usage(ctx context.Context, id, path string) (Usage, error)
}
