package remote

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/block"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/nbd"
	"github.com/vmdk-csi/vmdk-csi/pkg/san"
)

// way is a transport that serves a disk.
type way struct {
	block.Device
	name string
	nbd  *nbd.Client // of NBD
	// Of SAN.
	mapper *san.Mapper
	kept   *kept
	lun    fsx.File
	stop   context.CancelFunc // of watch
	watch  sync.WaitGroup     // renews, and listens for a recall

	spoiled chan struct{} // closed when it serves no more
	once    sync.Once
	why     error // of spoiled
}

// openNBD connects to the server.
func (d *Disk) openNBD(ctx context.Context) (*way, error) {
	n, err := nbd.Connect(ctx, nbd.ClientOptions{Network: "tcp", TLS: d.c.TLS, Patience: d.c.Patience, Log: d.c.Log,
		Find: func(ctx context.Context) (string, string, error) {
			d.client.Close() // a ticket is bound to a certificate: both connections must have the one of now
			r, err := d.client.open(ctx, d.mapless())
			return r.Address, r.Ticket, err
		}})
	if err != nil {
		return nil, err
	}
	return &way{Device: n, name: NBD, nbd: n, spoiled: make(chan struct{})}, nil
}

// sanPath finds out whether SAN is possible, which stops nobody: the server is asked for a map without a grant, and the LUN that it
// names is looked at.
func (d *Disk) sanPath(ctx context.Context) (fsx.File, error) {
	if d.c.OpenLUN == nil {
		return nil, fault.New(fault.Unsupported, "Give this node a path to the LUN.", "this node has no path to a LUN")
	}
	m, err := d.client.getMap(ctx, d.mapless(), true)
	if err != nil {
		return nil, err
	}
	if err := m.Validate(); err != nil {
		return nil, err
	}
	if len(m.LUNs) != 1 {
		return nil, fault.New(fault.Unsupported, "", "disk %s is on %d LUNs", d.c.Volume, len(m.LUNs))
	}
	lun, err := d.c.OpenLUN(ctx, m.LUNs[0])
	if err != nil {
		return nil, err
	}
	if _, err := san.NewMapper(m, san.MapperConfig{LUNs: []fsx.File{lun}}); err != nil {
		return nil, errors.Join(err, lun.Close())
	}
	return lun, nil
}

// openSAN gets a map of the disk for a LUN, which is closed if that fails. Nothing else serves the disk meanwhile.
func (d *Disk) openSAN(ctx context.Context, lun fsx.File) (*way, error) {
	sent := san.BootTime{}.Now()
	m, err := d.client.getMap(ctx, d.mapless(), false)
	if err != nil {
		return nil, errors.Join(err, lun.Close())
	}
	maps := mapClient{d.client, d.c.Volume}
	p, err := san.NewMapper(m, san.MapperConfig{LUNs: []fsx.File{lun}, Sent: sent, Client: maps})
	if err != nil {
		return nil, errors.Join(err, maps.Return(ctx, m.Grant, m.Generation), lun.Close())
	}
	k := &kept{Device: p}
	return &way{Device: k, name: SAN, mapper: p, kept: k, lun: lun, spoiled: make(chan struct{})}, nil
}

// begin starts what a way needs besides requests.
func (w *way) begin(d *Disk) {
	if w.mapper == nil {
		return
	}
	var ctx context.Context
	ctx, w.stop = context.WithCancel(d.life)
	w.watch.Go(func() {
		err := w.mapper.Run(ctx)
		if ctx.Err() == nil {
			d.spoil(w, orRecalled(err))
		}
	})
	w.watch.Go(func() {
		if err, over := d.listen(ctx, w.mapper.Map()); over {
			d.spoil(w, err)
		}
	})
}

func orRecalled(err error) error {
	if err == nil {
		err = fault.New(fault.Precondition, "Wait: it is tried again.", "the server has taken the block map back, to change the disk")
	}
	return err
}

const (
	firstPause = 10 * time.Millisecond
	lastPause  = time.Second
)

// pause waits between attempts, longer each time; false if ctx ends.
func pause(ctx context.Context, last *time.Duration) bool {
	*last = min(max(2**last, firstPause), lastPause)
	t := time.NewTimer(*last)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// listen waits for a recall. A server that is gone has a successor, which must have the disk open: else another node could open it.
func (d *Disk) listen(ctx context.Context, m *san.Map) (why error, over bool) { //nolint:revive // the error is no failure of listen
	maps := mapClient{d.client, d.c.Volume}
	var last time.Duration
	for {
		recalled, err := maps.recalled(ctx, m.Grant, m.Generation)
		switch {
		case ctx.Err() != nil:
			return nil, false
		case recalled:
			return orRecalled(nil), true
		case errors.Is(err, fault.NotFound):
			return fault.New(fault.Unavailable, "Wait: it is tried again.", "the server knows the block map no more: %w", err), true
		case err == nil:
			last = 0
			continue
		}
		d.c.Log.Debug("remote: listen for a recall", "disk", d.c.Volume, "err", err)
		if !pause(ctx, &last) {
			return nil, false
		}
		if _, err := d.client.open(ctx, d.body(false)); errors.Is(err, fault.InUse) || errors.Is(err, fault.Fenced) {
			return err, true
		}
	}
}

// finish flushes and ends a way that nobody uses any more.
func (w *way) finish(ctx context.Context, d *Disk) error {
	if w.mapper == nil {
		return errors.Join(w.Flush(), w.nbd.Close())
	}
	flushed := w.Flush()
	err := w.giveBack(ctx)
	if err != nil {
		err = d.abandon(ctx, w)
	}
	switch {
	case err != nil && flushed == nil: // everything is there; the server ends the map when the node says that the disk is closed
		d.c.Log.Warn("remote: a block map was not returned", "disk", d.c.Volume, "err", err)
		err = nil
	case err == nil && w.kept.some():
		err = d.pay(ctx, w.kept)
	}
	return errors.Join(err, w.lun.Close())
}

// pay makes again, by NBD, what the LUN could not flush.
func (d *Disk) pay(ctx context.Context, k *kept) error {
	n, err := d.openNBD(ctx)
	if err != nil {
		return err
	}
	return errors.Join(k.again(n), n.nbd.Close())
}

// giveBack flushes the LUN and returns the map.
func (w *way) giveBack(ctx context.Context) error {
	w.stop()
	w.watch.Wait()
	err := w.mapper.Return(ctx)
	if err == nil {
		w.kept.flushed()
	}
	return err
}

// abandon returns a map whose LUN could not be flushed, or which could not be returned.
func (d *Disk) abandon(ctx context.Context, w *way) error {
	m := w.mapper.Map()
	return mapClient{d.client, d.c.Volume}.abandon(ctx, m.Grant, m.Generation)
}
