package remote

import (
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/san"
)

// Paths of the control protocol. Each takes one JSON object by POST and answers with one.
const (
	pathServes         = "/v1/serves"
	pathCreate         = "/v1/create"
	pathDelete         = "/v1/delete"
	pathGet            = "/v1/get"
	pathList           = "/v1/list"
	pathExpand         = "/v1/expand"
	pathCreateSnapshot = "/v1/snapshot/create"
	pathDeleteSnapshot = "/v1/snapshot/delete"
	pathGetSnapshot    = "/v1/snapshot/get"
	pathListSnapshots  = "/v1/snapshot/list"
	pathSpace          = "/v1/space"
	pathOpen           = "/v1/open"
	pathClose          = "/v1/close"
	pathEvict          = "/v1/evict"
	pathMap            = "/v1/map"
	pathRenew          = "/v1/renew"
	pathReturn         = "/v1/return"
	pathRecall         = "/v1/recall"
)

// pollTime is how long a question for a recall stays open.
const pollTime = 30 * time.Second

// Bounds of what is read of a message.
const (
	maxRequest = 1 << 20
	maxAnswer  = 256 << 20 // the longest block map has a million extents
)

// head begins every request.
type head struct {
	Datastore string `json:"datastore"`
	Node      string `json:"node"`
}

func (h *head) common() *head { return h }

// failure is the answer of what failed. Its status is statusElsewhere if the datastore is not served here.
type failure struct {
	Fault *fault.Fault `json:"fault"`
}

const (
	statusFault     = 409
	statusElsewhere = 421
)

type (
	none      struct{}
	emptyBody struct{ head }
	// servesBody asks whether this host serves the datastore, and of one that is Spread about a disk or snapshot.
	servesBody struct {
		head
		ID string `json:"id,omitempty"`
	}
	servesAnswer struct {
		Spread bool `json:"spread,omitempty"`
		Holds  bool `json:"holds,omitempty"` // the disk is open for the node
		// Missing is why the disk is not here at all, as far as this host knows.
		Missing *fault.Fault `json:"missing,omitempty"`
	}
	idBody struct {
		head
		ID string `json:"id"`
	}
	evictBody struct {
		head
		ID   string `json:"id"`
		From string `json:"from"` // the node that loses it
	}
	createBody struct {
		head
		Spec host.DiskSpec `json:"spec"`
	}
	listBody struct {
		head
		Disk  string `json:"disk,omitempty"`
		Max   int    `json:"max,omitempty"`
		Token string `json:"token,omitempty"`
	}
	disksBody struct {
		Disks []host.Disk `json:"disks"`
		Next  string      `json:"next,omitempty"`
	}
	expandBody struct {
		head
		ID   string `json:"id"`
		Size int64  `json:"size"`
	}
	snapshotBody struct {
		head
		Spec host.SnapshotSpec `json:"spec"`
	}
	snapshotsBody struct {
		Snapshots []host.Snapshot `json:"snapshots"`
		Next      string          `json:"next,omitempty"`
	}
	spaceBody struct {
		Total int64 `json:"total"`
		Free  int64 `json:"free"`
	}
	// diskBody names a disk as a node uses it. Session grows with every OpenDisk of a node; 0 is who only looks. Fresh begins the
	// session: what an earlier one had is over. Mapless says that the session has no block map: one that is out was lost on its way to
	// it. Seq grows with every request that says so, or asks for a map: what is late must not end the map of a later one.
	diskBody struct {
		head
		ID       string `json:"id"`
		ReadOnly bool   `json:"readOnly,omitempty"`
		Session  int64  `json:"session,omitempty"`
		Fresh    bool   `json:"fresh,omitempty"`
		Mapless  bool   `json:"mapless,omitempty"`
		Seq      int64  `json:"seq,omitempty"`
	}
	openedBody struct {
		Opened
		Size    int64  `json:"size"`              // of what is served now, bytes
		Ticket  string `json:"ticket,omitempty"`  // for one session of NBD
		Address string `json:"address,omitempty"` // of NBD
	}
	mapBody struct {
		diskBody
		Check bool `json:"check,omitempty"` // only say why not
	}
	mappedBody struct {
		Map *san.Map `json:"map,omitempty"`
	}
	grantBody struct {
		head
		ID         string `json:"id"`
		Grant      uint64 `json:"grant"`
		Generation uint64 `json:"generation"`
		Digest     string `json:"digest,omitempty"`
		// Unflushed says of a return that the node could not flush the LUN.
		Unflushed bool `json:"unflushed,omitempty"`
	}
	recallBody struct {
		Recalled bool `json:"recalled,omitempty"`
	}
)
