package vmdkctl

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// Call and answer are the keeper's protocol: one call on a connection, then answers, of which the last one has Progress nil.
// Who closes the connection earlier takes a call back that can be cancelled.
type keepCall struct {
	Op       keepOp             `json:"op"`
	Snapshot *host.SnapshotSpec `json:"snapshot,omitempty"` // opSnapshot
	Disk     *host.DiskSpec     `json:"disk,omitempty"`     // opCreate
	Rate     int64              `json:"rate,omitempty"`     // opConsolidate: bytes per second, 0: no limit
}

type keepOp string

const (
	opStatus      keepOp = "status"
	opDetach      keepOp = "detach"
	opSnapshot    keepOp = "snapshot"    // of the attached disk; the answer's Result is a host.Snapshot
	opCreate      keepOp = "create"      // a disk whose source is the attached one; a host.Disk
	opConsolidate keepOp = "consolidate" // one merge; a mergeResult
)

type keepAnswer struct {
	Attachment attachment      `json:"attachment"`
	Progress   *keepProgress   `json:"progress,omitempty"`
	Result     json.RawMessage `json:"result,omitempty"`
	Error      *fault.Fault    `json:"error,omitempty"`
}

type keepProgress struct {
	Done  int64 `json:"done"`  // bytes
	Total int64 `json:"total"` // bytes
}

// Ask sends a call without arguments to the keeper of id.
func (d runDir) ask(ctx context.Context, id string, op keepOp) (attachment, error) {
	a, err := d.send(ctx, id, keepCall{Op: op}, nil)
	return a.Attachment, err
}

// Call sends a call and puts its result into into.
func (d runDir) call(ctx context.Context, id string, c keepCall, into any, progress func(done, total int64)) error {
	a, err := d.send(ctx, id, c, progress)
	if err != nil {
		return err
	}
	return json.Unmarshal(a.Result, into)
}

func (d runDir) send(ctx context.Context, id string, call keepCall, progress func(done, total int64)) (keepAnswer, error) {
	var dialer net.Dialer
	c, err := dialer.DialContext(ctx, "unix", d.file(id, ".sock"))
	if err != nil {
		return keepAnswer{}, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	if err := json.NewEncoder(c).Encode(call); err != nil {
		return keepAnswer{}, err
	}
	for dec := json.NewDecoder(c); ; {
		a, err := nextAnswer(dec)
		switch {
		case err != nil && ctx.Err() != nil:
			return keepAnswer{}, context.Cause(ctx)
		case err != nil:
			return keepAnswer{}, err
		case a.Progress == nil:
			return a, nil
		case progress != nil:
			progress(a.Progress.Done, a.Progress.Total)
		}
	}
}

func nextAnswer(dec *json.Decoder) (keepAnswer, error) {
	var a keepAnswer
	if err := dec.Decode(&a); err != nil {
		return a, fault.New(fault.Unavailable, "Its log is beside its state in "+string(theRunDir())+".", "the keeper ended without an answer")
	}
	if a.Error != nil {
		return a, a.Error
	}
	return a, nil
}

// ParseAnswer reads what a keeper that was just started answers.
func parseAnswer(text []byte) (attachment, error) {
	a, err := nextAnswer(json.NewDecoder(bytes.NewReader(text)))
	return a.Attachment, err
}
