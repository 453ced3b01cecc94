package host

import (
	"context"
	"os"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Disks makes and unmakes disks. Every method may be repeated: a repeated request finds what the first one did.
type Disks interface {
	// Create makes the disk named spec.Name, or returns it when it exists with the same specification, whatever became of its
	// source since. Kinds: Invalid (also a source in another datastore), OutOfRange (also smaller than the source), NotFound
	// (datastore, source), Exists (other specification; the name of a retired disk), InProgress, NoSpace, ReadOnly, Exhausted
	// (the host asked for does not reach the source; the chain would be too deep), InUse (the source is attached on a host
	// that this one cannot ask).
	Create(ctx context.Context, spec DiskSpec) (Disk, error)
	// Delete removes the disk and its files; a disk that is not there is deleted already. One that has snapshots becomes Retired:
	// it goes with the last of them. Kinds: InUse, InProgress.
	Delete(ctx context.Context, id string) error
	// Get describes one disk, also a retired one. Kinds: NotFound, Damaged.
	Get(ctx context.Context, id string) (Disk, error)
	// List returns up to max disks (0: all) that are not retired in order of id, behind the token that an earlier call returned.
	// Kinds: Invalid (token).
	List(ctx context.Context, max int, token string) (disks []Disk, next string, err error)
	// Expand grows the disk to at least size bytes, attached or not, and returns it. Kinds: NotFound, OutOfRange, NoSpace,
	// InProgress, Precondition.
	Expand(ctx context.Context, id string, size int64) (Disk, error)
}

// Claims says which node may attach a disk. A claim is intent; the disk's manifest has the last word (rule 9).
type Claims interface {
	// Claim is idempotent for the same node and mode. Kinds: NotFound (disk or node), InUse (claimed by another node and
	// either claim writes), Exists (claimed by this node in the other mode), Precondition (node does not reach the
	// datastore, nor may it through another host: WithTransport), Exhausted (no slot left on the node).
	Claim(ctx context.Context, id string, c Claim) error
	// Unclaim takes the claim back once the node has let the disk go; node "" means all nodes. A claim that is not
	// there is taken back already. Kinds: InUse (the node still has it attached; try again).
	Unclaim(ctx context.Context, id, node string) error
}

// Evictor takes a disk from another node that is dead. A Host may be one.
type Evictor interface {
	// Evict makes sure that the node cannot write the disk any more, and releases it for others. Whoever asks knows that the node is
	// down. It is repeated until it succeeds; what the node does not have is taken already. Kinds: InProgress (requests or a lease of
	// the node have to end), Unsupported (what the disk is on cannot cut a node off), Precondition (the node is this one).
	Evict(ctx context.Context, id, node string) error
}

// Datastores tells where disks can live.
type Datastores interface {
	// Datastores lists them, in order of name, as seen from every host that reports.
	Datastores(ctx context.Context) ([]Datastore, error)
}

// Attacher opens disks on this node. It is always the node's own hostd.
type Attacher interface {
	// Attach opens the disk and serves it on dev.Fuse, whose ownership (a duplicate of it) it takes; when it returns nil
	// the device answers. Idempotent: a disk that is attached in the same mode returns its Attachment, and the
	// descriptors of that attachment are Keeper.Held's, not dev. Kinds: NotFound, InUse (another host owns it, or the
	// local locks are taken), Precondition (other mode), Exhausted (no slot), Damaged, NoSpace, ReadOnly, Unsupported.
	Attach(ctx context.Context, req AttachRequest, dev Device) (Attachment, error)
	// Detach closes the disk cleanly and commits its release. Not attached is detached already. Kinds: InUse (the kernel
	// still has the device open: unmount and clear it first), Poisoned (closed, but what was not flushed may be lost).
	Detach(ctx context.Context, id string) error
	// Attachments lists what is attached on this node, in order of id.
	Attachments(ctx context.Context) ([]Attachment, error)
	// Grown tells the kernel side that a disk's size changed: the device's size attribute is invalidated.
	Grown(ctx context.Context, id string) (Attachment, error)
}

// Keeper is what two processes use to hold attached disks for each other.
type Keeper interface {
	// Sync gives hostd what the caller holds and returns everything that hostd holds afterwards. Hostd adopts (takes
	// over, see pkg/worker) a held disk that it does not serve. The caller owns the returned descriptors.
	Sync(ctx context.Context, held []Held) ([]Held, error)
	// Handover kills every worker, one disk at a time, and returns their descriptors to a successor hostd, after which
	// this hostd refuses new work. Used by an upgrade.
	Handover(ctx context.Context, take func(Held) error) error
}

// Host is the whole port, as the adapters implement it; who uses the port takes the part that it needs.
type Host interface {
	Disks
	Snapshots
	Claims
	Datastores
	Attacher
	Keeper
}

// DiskFormat is how a flat disk's space is reserved (VMware's provisioning types).
type DiskFormat string

// The formats. Sparse disk types are always thin.
const (
	Thin             DiskFormat = "thin"             // space is taken when written
	ZeroedThick      DiskFormat = "zeroedthick"      // space is reserved, zeroed on first write by the file system
	EagerZeroedThick DiskFormat = "eagerzeroedthick" // space is reserved and written with zeros
)

// DiskType is the createType of a disk's descriptor.
type DiskType string

// The types a new disk can have: all that are written in place.
const (
	MonolithicFlat       DiskType = "monolithicFlat"       // one file of raw data
	TwoGbMaxExtentSparse DiskType = "twoGbMaxExtentSparse" // grows with what is written
	MonolithicSparse     DiskType = "monolithicSparse"     // the same in one file, with the descriptor inside
	TwoGbMaxExtentFlat   DiskType = "twoGbMaxExtentFlat"   // files of raw data
	VMFS                 DiskType = "vmfs"                 // ESXi's raw data
	VMFSSparse           DiskType = "vmfsSparse"           // ESXi's COWD
)

// DiskTypes are all of them, the default first.
func DiskTypes() []DiskType {
	return []DiskType{MonolithicFlat, TwoGbMaxExtentSparse, MonolithicSparse, TwoGbMaxExtentFlat, VMFS, VMFSSparse}
}

// Sparse tells that a disk of the type is always thin.
func (t DiskType) Sparse() bool {
	return t == TwoGbMaxExtentSparse || t == MonolithicSparse || t == VMFSSparse
}

// MaxSize is the most bytes of a disk of the type: sparse types of one file hold what 32-bit entries reach, and a descriptor
// names so many files.
func (t DiskType) MaxSize() int64 {
	switch t {
	case MonolithicSparse, VMFSSparse:
		return MaxSingleSparse
	case TwoGbMaxExtentFlat:
		return MaxSplitFlat
	}
	return MaxCapacity
}

// MaxNameLength is the longest name of a disk, in bytes.
const MaxNameLength = 1024

// Limits of a disk's capacity in bytes. Capacities are multiples of CapacityUnit (VMware makes whole MiB).
const (
	MinCapacity  int64 = 1 << 20
	MaxCapacity  int64 = 62 << 40 // VMFS flat limit (vSphere configuration maximums)
	CapacityUnit int64 = 1 << 20
	// MaxSingleSparse is the most that one sparse extent holds.
	MaxSingleSparse int64 = 2040 << 30
	// MaxSplitFlat is the most that 4095 files of 2047 MiB hold.
	MaxSplitFlat int64 = 4095 * 2047 << 20
)

// DiskSpec is what a disk is asked to be. Two requests with one Name must agree in everything.
type DiskSpec struct {
	Name      string     `json:"name"`      // the container orchestrator's name; any string of 1..1024 bytes
	Datastore string     `json:"datastore"` // name of the datastore
	Size      int64      `json:"size"`      // capacity in bytes, a multiple of CapacityUnit
	Format    DiskFormat `json:"format"`
	Type      DiskType   `json:"type"`
	// Source of the first content, nil for zeros; CloneMode says how it is taken over, default linked.
	Source    *Source   `json:"source,omitempty"`
	CloneMode CloneMode `json:"cloneMode,omitempty"`
	// Host asks for a host, "" for any that reaches the datastore. It is a placement wish, not part of the identity.
	Host string `json:"host,omitempty"`
}

// Phase is where a disk is in its life.
type Phase string

// The phases.
const (
	Pending  Phase = "Pending"  // asked for; no host has answered
	Ready    Phase = "Ready"    // can be attached
	Failed   Phase = "Failed"   // cannot be made; the condition says why
	Deleting Phase = "Deleting" // being deleted
	Retired  Phase = "Retired"  // deleted as a volume, kept because snapshots need its links
)

// Disk is a disk as it is.
type Disk struct {
	ID   string `json:"id"` // DiskID(spec.Name)
	Spec DiskSpec
	Size int64  `json:"size"` // capacity now, bytes
	UUID string `json:"uuid"` // ddb.uuid: 32 hex digits without blanks
	// Hosts that can attach it; empty: every host.
	Hosts     []string `json:"hosts,omitempty"`
	Phase     Phase    `json:"phase"`
	Reason    string   `json:"reason,omitempty"` // why it is Failed, with the remedy
	Links     []Link   `json:"links"`            // base first
	Snapshots []string `json:"snapshots,omitempty"`
	// VMwareProblem is why VMware would refuse the chain, "" if it would not.
	VMwareProblem string `json:"vmwareProblem,omitempty"`
	// Consolidation of links that nobody needs; nil if there are none and nothing runs.
	Consolidation *Consolidation `json:"consolidation,omitempty"`
	Claims        []Claim        `json:"claims,omitempty"`
	Attachments   []Attachment   `json:"attachments,omitempty"`
}

// Link is one link of a disk's chain.
type Link struct {
	Name      string `json:"name"` // descriptor's file name
	Type      string `json:"type"` // createType
	CID       string `json:"cid"`
	ParentCID string `json:"parentCID"`
	Size      int64  `json:"size"`      // capacity in bytes
	Allocated int64  `json:"allocated"` // bytes its files use on the datastore
}

// Claim is a node's right to attach.
type Claim struct {
	Node     string `json:"node"`
	ReadOnly bool   `json:"readOnly,omitempty"`
}

// Datastore is a place for disks.
type Datastore struct {
	Name  string          `json:"name"`
	Kind  DatastoreKind   `json:"kind,omitempty"` // "" is Directory
	Scope Scope           `json:"scope"`
	Hosts []DatastoreHost `json:"hosts"` // who reaches it
}

// DatastoreKind is what holds the files.
type DatastoreKind string

// The kinds.
const (
	Directory DatastoreKind = "directory" // of a file system
	LUN       DatastoreKind = "lun"       // a store on a LUN (pkg/san/store)
)

// Scope says who sees the same files.
type Scope string

// The scopes.
const (
	ScopeNode   Scope = "node"   // every host has a directory of its own
	ScopeShared Scope = "shared" // all hosts see one directory
)

// DatastoreHost is one host's view of a datastore.
type DatastoreHost struct {
	Host  string `json:"host"`
	Ready bool   `json:"ready"`
	// Reason why it is not ready, with the remedy.
	Reason string `json:"reason,omitempty"`
	Total  int64  `json:"total"` // bytes
	Free   int64  `json:"free"`  // bytes
	// Transports are all of them, the fastest first, and whether this host can reach the disks there by each.
	Transports []TransportView `json:"transports,omitempty"`
}

// TransportView is what a host can do with a datastore by one transport.
type TransportView struct {
	Transport string `json:"transport"`
	Usable    bool   `json:"usable"`
	// Reason why it is not usable, with the remedy.
	Reason *fault.Fault `json:"reason,omitempty"`
	// Detail of one that is: by what it is reached.
	Detail string `json:"detail,omitempty"`
}

// AttachRequest asks for one disk on this node.
type AttachRequest struct {
	ID       string `json:"id"`
	ReadOnly bool   `json:"readOnly,omitempty"`
	// Transport is an order of transports (pkg/transport.ParseOrder); "": the datastore's own, hotadd of a directory and
	// san:nbd of a LUN.
	Transport string `json:"transport,omitempty"`
}

// Device is what a worker serves: the descriptors are held by hostd and by the node service.
type Device struct {
	Fuse  *os.File // an opened /dev/fuse whose file system was created and not yet served
	Table *os.File // the memfd of pkg/worker/table
	// Scratch is the throw-away redo log of a read-only attachment. hostd makes it; whoever attaches gives none.
	Scratch *os.File
}

// Attachment is a disk that is open on a host.
type Attachment struct {
	ID        string `json:"id"`
	Host      string `json:"host"`
	Slot      Slot   `json:"slot"`
	UUID      string `json:"uuid"`
	Size      int64  `json:"size"` // bytes
	ReadOnly  bool   `json:"readOnly,omitempty"`
	Transport string `json:"transport"`
	// Datastore is told of a disk on a LUN: who brings it back after a restart need not be asked where it is.
	Datastore string `json:"datastore,omitempty"`
	// Skipped are the transports that were asked for before Transport and do not serve now.
	Skipped []Skipped `json:"skipped,omitempty"`
	Epoch   int64     `json:"epoch"` // owner epoch in the manifest (0 for read-only)
	Since   time.Time `json:"since"`
	// Worker is the process that serves it and how often it was restarted since the attach.
	WorkerPID int `json:"workerPID"`
	Restarts  int `json:"restarts"`
	// Trouble is the last failure of a request that the disk's user made, nil if there was none.
	Trouble *Trouble `json:"trouble,omitempty"`
}

// Skipped is a transport that was asked for and does not serve.
type Skipped struct {
	Transport string `json:"transport"`
	Reason    string `json:"reason"` // with the remedy
	// Kind of the reason.
	Kind fault.Kind `json:"kind,omitempty"`
}

// ByDesign says that nothing is wrong: the kind of the datastore or the state of the disk rules the transport out (it has
// snapshots, its map was recalled for a change, another node has it).
func (s Skipped) ByDesign() bool {
	switch s.Kind {
	case fault.Unsupported, fault.Precondition, fault.InProgress, fault.InUse:
		return true
	}
	return false
}

// NotUsed is a transport that was skipped for a reason.
func NotUsed(transport string, why error) Skipped {
	return Skipped{Transport: transport, Reason: why.Error(), Kind: fault.KindOf(why)}
}

// Trouble is a failure that only the disk's user has seen so far: a full datastore, a failed read or sync.
type Trouble struct {
	At    time.Time    `json:"at"`
	Fault *fault.Fault `json:"fault"`
}

// Slot is a place on a host's (emulated) SCSI bus.
type Slot struct {
	Controller int `json:"controller"` // 0..3
	Unit       int `json:"unit"`       // 0..15 without 7
}

// Held is an attached disk in the hands of a process that may outlive the one that serves it.
type Held struct {
	Attachment Attachment
	Device     Device
	// Worker is a pidfd of the process that served the disk last: a successor serves only after it has died.
	Worker *os.File
}
