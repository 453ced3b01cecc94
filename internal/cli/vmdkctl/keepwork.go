package vmdkctl

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"sync"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Jobs are what a keeper does beside answering. The zero value is ready; start and stop belong to one goroutine.
type jobs struct {
	ctx     context.Context // of all of them
	cancel  context.CancelFunc
	running sync.WaitGroup
}

func (j *jobs) begin() {
	if j.ctx == nil {
		j.ctx, j.cancel = context.WithCancel(context.Background())
	}
}

// Start runs do beside others; after stop its context is over from the begin.
func (j *jobs) start(do func(context.Context)) {
	j.begin()
	j.running.Go(func() { do(j.ctx) })
}

// Stop ends them and waits.
func (j *jobs) stop() {
	j.begin()
	j.cancel()
	j.running.Wait()
}

// Work does what a call asks of the attached volume, and answers. The caller's end takes a consolidation back.
func (k *keeper) work(ctx context.Context, c net.Conn, call keepCall) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var watching sync.WaitGroup
	defer watching.Wait()
	defer c.Close()
	watching.Go(func() {
		_, _ = io.Copy(io.Discard, c) // nothing comes; it ends with the connection
		if call.Op == opConsolidate {
			cancel()
		}
	})
	enc := json.NewEncoder(c)
	result, err := k.do(ctx, call, func(done, total int64) {
		_ = enc.Encode(keepAnswer{Progress: &keepProgress{done, total}}) // who does not listen has gone: see above
	})
	answer := keepAnswer{Attachment: k.status(), Error: fault.From(err)}
	if err == nil {
		answer.Result, err = json.Marshal(result)
		answer.Error = fault.From(err)
	}
	_ = enc.Encode(answer)
}

func (k *keeper) do(ctx context.Context, call keepCall, progress func(done, total int64)) (any, error) {
	if k.disk.volumes == nil {
		return nil, fault.New(fault.Unsupported, "Make a volume of it.", "%s is plain files", k.disk.label)
	}
	if k.req.ReadOnly {
		return nil, fault.New(fault.InUse, "Detach it first.", "%s is attached read-only", k.disk.label)
	}
	server := servedDisk{k.handle}
	switch {
	case call.Op == opSnapshot && call.Snapshot != nil:
		return k.disk.volumes.Snapshot(ctx, *call.Snapshot, time.Time{}, server)
	case call.Op == opCreate && call.Disk != nil:
		return k.disk.volumes.CreateFrom(ctx, *call.Disk, server)
	case call.Op == opConsolidate:
		return k.disk.volumes.Consolidate(ctx, k.req.Volume, consolidateOptions(call.Rate, progress), server)
	}
	return nil, fault.New(fault.Invalid, "Use the vmdkctl that attached the disk.", "the call %q lacks something", call.Op)
}
