package local

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/volume"
)

// places remembers where disks and snapshots were seen: the first datastore to be asked.
type places struct {
	mu sync.Mutex
	at map[string]*store
}

func (p *places) get(id string) *store {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.at[id]
}

func (p *places) put(id string, s *store) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.at == nil {
		p.at = map[string]*store{}
	}
	p.at[id] = s
}

func (p *places) drop(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.at, id)
}

// answer is what one datastore says of a question.
type answer struct {
	s       *store
	v       *volume.Volumes
	has     bool
	missing error // it is not ready
	err     error // it is, and cannot say
}

// question is whether a datastore has something.
type question func(v *volume.Volumes) (bool, error)

// ask asks one datastore, with the patience of its box.
func (s *store) ask(q question) answer {
	a, err := within(&s.box, s.cfg.Name, func() (answer, error) {
		v, err := s.openNow()
		if err != nil {
			return answer{missing: err}, nil
		}
		a := answer{v: v}
		a.has, a.err = q(v)
		return a, nil
	})
	if err != nil {
		a = answer{missing: err}
	}
	a.s = s
	return a
}

// askAll asks datastores at once, and gives each answer to f as it comes, until f says that it has heard enough, or for at
// most d (0: as long as they take). One that is away keeps nobody who has heard enough.
func (h *Host) askAll(stores []*store, d time.Duration, q question, f func(answer) (enough bool)) {
	answers := make(chan answer, len(stores))
	for _, s := range stores {
		h.tasks.Go(func() { answers <- s.ask(q) })
	}
	var end <-chan time.Time
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		end = t.C
	}
	for range stores {
		select {
		case a := <-answers:
			if f(a) {
				return
			}
		case <-end:
			return
		}
	}
}

// told are the datastores that may have what a call is about: the one that ctx tells, if this host has it, else all.
func (h *Host) told(ctx context.Context) []*store {
	if s, err := h.store(host.DatastoreFrom(ctx)); err == nil {
		return []*store{s}
	}
	return h.stores
}

// search finds the datastore that has id: the one that ctx tells, else the one where it was seen, else any. q asks for it.
// A nil store: none of those that are ready has it; missing says why one is not.
func (h *Host) search(ctx context.Context, id string, q question) (found answer, missing, err error) {
	stores := h.told(ctx)
	if s := h.places.get(id); s != nil && slices.Contains(stores, s) {
		if a := s.ask(q); a.has || a.err != nil || a.missing != nil {
			return a, a.missing, a.err
		}
	}
	h.askAll(stores, 0, q, func(a answer) bool {
		switch {
		case a.missing != nil:
			missing = a.missing
		case a.err != nil:
			found, err = a, a.err
		case a.has:
			found, err = a, nil
			return true
		}
		return false
	})
	if found.has {
		h.places.put(id, found.s)
		missing = nil
	}
	return found, missing, err
}

// find finds the datastore that holds the disk. Kinds: NotFound, Unavailable (not found, but a datastore is not ready).
func (h *Host) find(ctx context.Context, id string) (*store, *volume.Volumes, error) {
	if !host.ValidDiskID(id) {
		return nil, nil, fault.New(fault.NotFound, "", "%q is not the id of a disk", id)
	}
	a, missing, err := h.search(ctx, id, func(v *volume.Volumes) (bool, error) { return v.Has(id) })
	switch {
	case err != nil:
		return nil, nil, err
	case a.has:
		return a.s, a.v, nil
	case missing != nil:
		return nil, nil, fault.New(fault.Unavailable, "", "disk %s is on no datastore that is ready: %w", id, missing)
	}
	return nil, nil, fault.New(fault.NotFound, "", "disk %s does not exist", id)
}

// others are the datastores but s.
func (h *Host) others(s *store) []*store {
	var list []*store
	for _, o := range h.stores {
		if o != s {
			list = append(list, o)
		}
	}
	return list
}

// othersTime is how long a request that makes something waits for the other datastores to say that they have nothing of that
// name: one that is away must not stop work on the others.
const othersTime = time.Second

// elsewhere refuses a disk that another datastore of this host has: one name, one volume (I4).
func (h *Host) elsewhere(id string, s *store) (err error) {
	h.askAll(h.others(s), othersTime, func(v *volume.Volumes) (bool, error) { return v.Has(id) }, func(a answer) bool {
		if a.has {
			err = fault.New(fault.Exists, "Use another name, or delete the disk first.",
				"disk %s exists with datastore %s, asked for is %s", id, a.s.cfg.Name, s.cfg.Name)
		}
		return a.has
	})
	return err
}

// snapshotDisk is the question for a snapshot; disk gets the id of the disk that it is of.
func snapshotDisk(id string) question {
	return func(v *volume.Volumes) (bool, error) {
		_, err := v.SnapshotDisk(id)
		if errors.Is(err, fault.NotFound) {
			return false, nil
		}
		return err == nil, err
	}
}

// findSnapshot finds the datastore that has a snapshot, or the name of one, and its disk. Kinds: NotFound, Unavailable.
func (h *Host) findSnapshot(ctx context.Context, id string) (s *store, v *volume.Volumes, disk string, err error) {
	if !host.ValidSnapshotID(id) {
		return nil, nil, "", fault.New(fault.NotFound, "", "%q is not the id of a snapshot", id)
	}
	a, missing, err := h.search(ctx, id, snapshotDisk(id))
	switch {
	case err != nil:
		return nil, nil, "", err
	case a.has:
		disk, err = a.v.SnapshotDisk(id)
		return a.s, a.v, disk, err
	case missing != nil:
		return nil, nil, "", fault.New(fault.Unavailable, "", "snapshot %s is on no datastore that is ready: %w", id, missing)
	}
	return nil, nil, "", fault.New(fault.NotFound, "", "snapshot %s does not exist", id)
}
