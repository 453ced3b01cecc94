package remote

import (
	"context"
	"errors"
	"regexp"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// enter waits until requests may go on, and returns by which way.
func (d *Disk) enter() (*way, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for {
		if d.failed != nil {
			return nil, d.failed
		}
		if d.closed == nil {
			d.inside++
			return d.way, nil
		}
		wait := d.closed
		d.mu.Unlock()
		<-wait
		d.mu.Lock()
	}
}

func (d *Disk) leave() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.inside--; d.inside == 0 && d.drained != nil {
		close(d.drained)
		d.drained = nil
	}
}

// spoil ends the use of a way: new requests wait for the next one.
func (d *Disk) spoil(w *way, why error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.way != w {
		return
	}
	if d.closed == nil {
		d.closed = make(chan struct{})
	}
	w.once.Do(func() {
		w.why = why
		close(w.spoiled)
	})
}

// hold keeps new requests out and waits until there is none inside. Called by the keeper, and when it has ended.
func (d *Disk) hold() {
	d.mu.Lock()
	if d.closed == nil {
		d.closed = make(chan struct{})
	}
	drained := make(chan struct{})
	if d.inside == 0 {
		close(drained)
	} else {
		d.drained = drained
	}
	d.mu.Unlock()
	<-drained
}

// use lets requests go on by a way.
func (d *Disk) use(w *way) {
	d.mu.Lock()
	shrunk := w.Size() < d.state.Size
	d.way = w
	if !shrunk {
		d.state = d.stateOf(w)
		d.open()
	}
	before := d.state.Size
	d.mu.Unlock()
	if shrunk {
		d.fail(fault.New(fault.Damaged, "Look whether the server serves the right disk.", "disk %s has shrunk from %d bytes to %d", d.c.Volume, before, w.Size()))
		return
	}
	w.begin(d)
	d.c.Log.Info("remote: a disk is reached in another way", "disk", d.c.Volume, "transport", w.name)
	d.tell()
}

// open lets waiting requests go on. Called with mu held.
func (d *Disk) open() {
	if d.closed != nil {
		close(d.closed)
		d.closed = nil
	}
}

// fail makes every request fail from now on; the first reason stays.
func (d *Disk) fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.failed == nil {
		d.failed = err
	}
	d.open()
}

// ask is what the keeper is asked to do.
type ask struct {
	do   func()
	done chan struct{}
}

func (d *Disk) ask(ctx context.Context, do func()) error {
	a := &ask{do, make(chan struct{})}
	select {
	case d.asks <- a:
	case <-ctx.Done():
		return fault.New(fault.Timeout, "Try again.", "disk %s is waiting for its server: %w", d.c.Volume, ctx.Err())
	case <-d.life.Done():
		return fault.New(fault.Unavailable, "", "the disk was closed")
	}
	<-a.done
	return nil
}

// keep makes every change of the way.
func (d *Disk) keep() {
	defer close(d.done)
	again := time.NewTicker(d.c.Retry)
	defer again.Stop()
	var last *way
	for {
		d.mu.Lock()
		w := d.way
		d.mu.Unlock()
		if w != last {
			again.Reset(d.c.Retry)
			last = w
		}
		if w == nil { // it has failed
			<-d.life.Done()
			return
		}
		var retry <-chan time.Time
		if w.mapper == nil && d.wantsSAN() {
			retry = again.C
		}
		select {
		case <-d.life.Done():
			return
		case <-w.spoiled:
			d.leaveSAN(w)
		case <-retry:
			d.trySAN(w)
		case a := <-d.asks:
			a.do()
			close(a.done)
		}
	}
}

// leaveSAN goes on by NBD. See the package's documentation for the order.
func (d *Disk) leaveSAN(w *way) {
	d.hold()
	d.note(w.why)
	err := w.giveBack(d.life)
	if err != nil {
		d.c.Log.Warn("remote: a block map was not returned in order", "disk", d.c.Volume, "why", w.why, "err", err)
		if err = d.insist(func(ctx context.Context) error { return d.abandon(ctx, w) }); err != nil && d.life.Err() != nil {
			return // Close tries once more
		}
	}
	if cerr := w.lun.Close(); cerr != nil {
		d.c.Log.Warn("remote: close the LUN", "disk", d.c.Volume, "err", cerr)
	}
	d.mu.Lock()
	d.way = nil
	d.mu.Unlock()
	d.owed = w.kept
	if err != nil {
		d.fail(err)
		return
	}
	d.connect()
}

// connect goes on by NBD, when there is a server. Nothing serves the disk now. What is owed is made again first.
func (d *Disk) connect() {
	err := d.insist(func(ctx context.Context) error {
		w, err := d.openNBD(ctx)
		if err != nil {
			return err
		}
		if err := d.owed.again(w); err != nil {
			return errors.Join(err, w.nbd.Close())
		}
		d.owed = nil
		d.use(w)
		return nil
	})
	if err != nil && d.life.Err() == nil { // else Close pays, and says if it cannot
		d.fail(err)
	}
}

// insist repeats what fails because of a server that is not there, or refuses for a moment, with patience.
func (d *Disk) insist(do func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(d.life, d.c.Patience)
	defer cancel()
	var last time.Duration
	for {
		err := do(ctx)
		switch fault.KindOf(err) {
		case "":
			return nil
		case fault.InUse, fault.Fenced, fault.NotFound, fault.Damaged, fault.Poisoned, fault.ReadOnly:
			return err
		}
		d.c.Log.Debug("remote: wait for the server", "disk", d.c.Volume, "err", err)
		if !pause(ctx, &last) {
			return err
		}
	}
}

// trySAN changes from NBD to SAN, if that is possible. See the package's documentation for the order.
func (d *Disk) trySAN(old *way) {
	ctx, cancel := context.WithTimeout(d.life, d.c.Patience)
	defer cancel()
	lun, err := d.sanPath(ctx)
	if err != nil {
		d.refused(err)
		return
	}
	d.hold()
	if err := old.Flush(); err != nil { // the device says so from now on
		_ = lun.Close()
		d.resume()
		return
	}
	d.mu.Lock()
	d.way = nil
	d.mu.Unlock()
	_ = old.nbd.Close() // it has flushed
	w, err := d.openSAN(ctx, lun)
	if err != nil {
		d.note(err)
		d.connect()
		return
	}
	d.use(w)
}

// renew makes the way anew, for what the server says now.
func (d *Disk) renew() {
	d.mu.Lock()
	w := d.way
	d.mu.Unlock()
	switch {
	case w == nil:
	case w.mapper != nil:
		d.spoil(w, fault.New(fault.InProgress, "Wait: it is tried again.", "the disk has grown"))
		d.leaveSAN(w)
	default:
		d.hold()
		if err := w.Flush(); err != nil {
			d.resume()
			return
		}
		d.mu.Lock()
		d.way = nil
		d.mu.Unlock()
		_ = w.nbd.Close() // it has flushed
		d.connect()
	}
}

// resume lets requests go on as before.
func (d *Disk) resume() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.open()
}

// note keeps why SAN does not serve.
func (d *Disk) note(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.why = fault.From(err)
}

var digits = regexp.MustCompile(`[0-9]+`)

// refused notes why SAN is refused while NBD serves, and tells it if it is another reason than before. How long a grace still lasts
// is none.
func (d *Disk) refused(err error) {
	if d.life.Err() != nil {
		return
	}
	d.mu.Lock()
	before := d.why
	d.why = fault.From(err)
	d.state = d.stateOf(d.way)
	same := before != nil && before.Kind == d.why.Kind && digits.ReplaceAllString(before.Message, "") == digits.ReplaceAllString(d.why.Message, "")
	d.mu.Unlock()
	if !same {
		d.tell()
	}
}
