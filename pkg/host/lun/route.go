package lun

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// What a call is about is on a LUN or on the base. The base has the first word where nothing is known: it answers without a network.

// question asks something of what has an id; Base and every Client can answer.
type question func(ctx context.Context, on disks) error

// disks is what Base and Client have in common.
type disks interface {
	host.Disks
	host.Snapshots
}

// find finds the LUN that has what q asks for: the one that ctx tells, or where it was seen, else the first that says so. nil
// without an error: it is the base's, or nobody's, which the base will say. Kind: Unavailable (a LUN that does not answer may have it).
func (h *Host) find(ctx context.Context, id string, q question, stores func() []*datastore) (*datastore, error) {
	if name := host.DatastoreFrom(ctx); name != "" {
		if s := h.store(name); s != nil {
			return s, nil
		}
	}
	h.mu.Lock()
	seen := h.places[id]
	if a := h.attached[id]; a != nil {
		seen = a.store
	}
	h.mu.Unlock()
	if seen == nil {
		seen = h.directory(h.borrowed.get(id))
	}
	if seen != nil {
		return seen, nil
	}
	base := q(ctx, h.c.Base)
	if base == nil || !notFound(base) && !errors.Is(base, fault.Unavailable) {
		return nil, nil
	}
	return h.search(ctx, id, q, stores())
}

// search asks all stores at once.
func (h *Host) search(ctx context.Context, id string, q question, stores []*datastore) (*datastore, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	answers := make([]error, len(stores))
	var wg sync.WaitGroup
	for i, s := range stores {
		wg.Go(func() {
			if answers[i] = q(ctx, s.Client); answers[i] == nil {
				cancel() // nobody needs to hear the others
			}
		})
	}
	wg.Wait()
	var missing error
	for i, err := range answers {
		switch {
		case err == nil, !notFound(err) && !errors.Is(err, fault.Unavailable) && !errors.Is(err, fault.Timeout): // it has it, and it is damaged
			h.seen(id, stores[i])
			return stores[i], nil
		case !notFound(err):
			missing = err
		}
	}
	if missing != nil {
		return nil, fault.New(fault.Unavailable, "Try again.", "whether %s is on a LUN is unknown: %w", id, missing)
	}
	return nil, nil
}

func isDisk(id string) question {
	return func(ctx context.Context, on disks) error {
		_, err := on.Get(ctx, id)
		return err
	}
}

func isSnapshot(id string) question {
	return func(ctx context.Context, on disks) error {
		_, err := on.GetSnapshot(ctx, id)
		return err
	}
}

// diskOn is the LUN that has a disk, nil: the base is to be asked.
func (h *Host) diskOn(ctx context.Context, id string) (*datastore, error) {
	if !host.ValidDiskID(id) {
		return nil, nil
	}
	return h.find(ctx, id, isDisk(id), func() []*datastore { return h.stores }) // those in directories are known (borrowed)
}

// snapshotOn is diskOn of a snapshot.
func (h *Host) snapshotOn(ctx context.Context, id string) (*datastore, error) {
	if !host.ValidSnapshotID(id) {
		return nil, nil
	}
	return h.find(ctx, id, isSnapshot(id), func() []*datastore { return append(slices.Clone(h.stores), h.lenders()...) })
}

// forget passes the answer of a LUN on. What is not there may have gone elsewhere: it is looked for anew the next time.
func (h *Host) forget(id string, err error) error {
	if notFound(err) {
		h.seen(id, nil)
	}
	return err
}

// elsewhere finds something on a datastore other than one, nil: on one that is not the base, and tells its name. What cannot be asked
// within a moment has nothing: a LUN whose server is away must not stop work on the others.
func (h *Host) elsewhere(ctx context.Context, wait time.Duration, not *datastore, base func(ctx context.Context) (string, error), lun question) (string, bool) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	if not != nil {
		if name, err := base(ctx); err == nil {
			return name, true
		}
	}
	found := make([]bool, len(h.stores))
	var wg sync.WaitGroup
	for i, s := range h.stores {
		if s != not {
			wg.Go(func() { found[i] = lun(ctx, s.Client) == nil })
		}
	}
	wg.Wait()
	for i, f := range found {
		if f {
			return h.stores[i].Name, true
		}
	}
	return "", false
}
