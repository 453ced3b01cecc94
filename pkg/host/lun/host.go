package lun

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/kmutex"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/hotadd"
	"github.com/vmdk-csi/vmdk-csi/pkg/remote"
)

// Client asks whoever serves a datastore (remote.Client). It has more than five methods because it is what a controller asks of a
// host and what a node asks.
type Client interface {
	host.Disks
	host.Snapshots
	OpenVolume(ctx context.Context, id string, readOnly bool) (remote.Opened, error)
	CloseVolume(ctx context.Context, id string) error
	EvictVolume(ctx context.Context, id, node string) error
	Space(ctx context.Context) (total, free int64, err error)
}

// Datastore is a LUN as this host uses it.
type Datastore struct {
	Name   string
	Client Client
	// SAN tells by what this host reaches the LUN itself, or why it does not. nil: it does not.
	SAN func(ctx context.Context) (detail string, err error)
}

// Config of New.
type Config struct {
	Node string
	// StateDir keeps the claims of disks on LUNs.
	StateDir   string
	Base       host.Host // every other datastore
	Datastores []Datastore
	// Shares serve Base's directories to other hosts; Elsewhere asks the others about a directory of that name, which Base may not have
	// (nil: no others are known).
	Shares    []*Share
	Elsewhere func(datastore string) Client
	Workers   Workers    // nil: nothing can be attached here
	Bus       hotadd.Bus // of Base too
	// DeviceGone waits up to the given time for the kernel to let go of a device that a worker serves.
	DeviceGone func(dev *os.File, wait time.Duration) (bool, error)
	Log        *slog.Logger // nil: silent
}

// Host is a host with datastores on LUNs beside those of its base.
type Host struct {
	c      Config
	log    *slog.Logger
	stores []*datastore // in order of name
	claims claims
	// borrowed are the disks in directories that other hosts lend to this node.
	borrowed borrowed
	busy     kmutex.Set

	mu       sync.Mutex
	attached map[string]*attached
	places   map[string]*datastore // where disks and snapshots were seen
	others   map[string]*datastore // directories that other hosts were asked about
	given    bool                  // handed over: no new work
}

// datastore is one of its LUNs, or a directory as other hosts have it.
type datastore struct {
	Datastore
	directory bool
}

var _ host.Host = (*Host)(nil)

// New makes a Host.
func New(c Config) (*Host, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	h := &Host{c: c, log: c.Log, attached: map[string]*attached{}, places: map[string]*datastore{},
		others: map[string]*datastore{}, claims: claims{path: filepath.Join(c.StateDir, "lun-claims.json")},
		borrowed: borrowed{path: filepath.Join(c.StateDir, "borrowed.json")}}
	for _, d := range c.Datastores {
		h.stores = append(h.stores, &datastore{Datastore: d})
	}
	slices.SortFunc(h.stores, func(a, b *datastore) int { return strings.Compare(a.Name, b.Name) })
	_, err := h.claims.all()
	return h, errors.Join(err, h.borrowed.check())
}

// Close closes the descriptors of attached disks, whose workers belong to Workers. Nothing is detached; Base is the caller's.
func (h *Host) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, a := range h.attached {
		a.close()
		delete(h.attached, id)
	}
}

// store is the LUN of that name, nil if there is none.
func (h *Host) store(name string) *datastore {
	for _, s := range h.stores {
		if s.Name == name {
			return s
		}
	}
	return nil
}

// working refuses work after a handover.
func (h *Host) working() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.given {
		return fault.New(fault.Unavailable, "Try again: its successor answers.", "this hostd has handed over to its successor")
	}
	return nil
}

// begin takes the lock of operations on one disk.
func (h *Host) begin(id, op string) (func(), error) {
	end, err := h.busy.TryLock(id, op)
	if err != nil {
		return nil, err
	}
	// After the lock, so that a handover sees either the lock or no operation.
	if err := h.working(); err != nil {
		end()
		return nil, err
	}
	return end, nil
}

func (h *Host) get(id string) *attached {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.attached[id]
}

func (h *Host) put(a *attached) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.attached[a.att.ID] = a
}

func (h *Host) drop(a *attached) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.attached, a.att.ID)
	a.close()
}

func (h *Host) all() []*attached {
	h.mu.Lock()
	defer h.mu.Unlock()
	var list []*attached
	for _, id := range slices.Sorted(maps.Keys(h.attached)) {
		list = append(list, h.attached[id])
	}
	return list
}

// seen remembers where something is, s nil: nowhere. What is in a directory is another host's as long as it lends it.
func (h *Host) seen(id string, s *datastore) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.places[id] = s; s == nil || s.directory {
		delete(h.places, id)
	}
}

// askTime is how long a LUN whose server is away may keep who only looks: a server that is moved takes longer.
const askTime = 5 * time.Second

// Datastores implements host.Datastores.
func (h *Host) Datastores(ctx context.Context) ([]host.Datastore, error) {
	list, err := h.c.Base.Datastores(ctx)
	if err != nil {
		return nil, err
	}
	more := make([]host.Datastore, len(h.stores))
	var wg sync.WaitGroup
	for i := range list {
		wg.Go(func() { h.overNetwork(ctx, &list[i]) })
	}
	for i, s := range h.stores {
		wg.Go(func() { more[i] = h.view(ctx, s) })
	}
	wg.Wait()
	list = append(list, more...)
	slices.SortFunc(list, func(a, b host.Datastore) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

func (h *Host) view(ctx context.Context, s *datastore) host.Datastore {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	on := host.DatastoreHost{Host: h.c.Node}
	var err error
	if on.Total, on.Free, err = s.Client.Space(ctx); err != nil {
		on.Reason = err.Error()
	} else {
		on.Ready = true
	}
	on.Transports = h.transports(ctx, s, err)
	return host.Datastore{Name: s.Name, Kind: host.LUN, Scope: host.ScopeShared, Hosts: []host.DatastoreHost{on}}
}

// claimable is what is left to say of a disk after a call: a retired one is no volume any more.
func claimable(d host.Disk) error {
	if d.Phase != host.Retired {
		return nil
	}
	return fault.New(fault.NotFound, "", "disk %s does not exist: it was deleted, and its links stay for its snapshots", d.ID)
}

// notFound says that nothing is wrong but that something is not there.
func notFound(err error) bool { return errors.Is(err, fault.NotFound) }
