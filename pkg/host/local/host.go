package local

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/kmutex"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/lease"
	"github.com/vmdk-csi/vmdk-csi/pkg/transport"
	"github.com/vmdk-csi/vmdk-csi/pkg/volume"
)

// Config of New.
type Config struct {
	Host lease.Identity
	// StateDir keeps claims and the datastores' identities across restarts of the machine.
	StateDir   string
	Datastores []DatastoreConfig
	Transports *transport.Picker
	Workers    Workers       // nil: nothing can be attached here
	Engine     volume.Engine // nil: volume.VMDK
	Log        *slog.Logger  // nil: silent
	// ConsolidateRate is how many bytes per second a merge of links copies at most; 0: 200 MiB. ConsolidateEvery is how often
	// the datastores are looked over for links that nobody needs; 0: every two minutes.
	ConsolidateRate  int64
	ConsolidateEvery time.Duration
	// OpenRoot opens the directory of a datastore; nil: fsx.OpenRoot.
	OpenRoot func(path string) (fsx.Dir, error)
	// DeviceGone waits up to the given time for the kernel to let go of a device that a worker serves; nil: that of FUSE.
	DeviceGone func(dev *os.File, wait time.Duration) (bool, error)
}

// DatastoreConfig is a datastore as the administrator gave it.
type DatastoreConfig struct {
	Name  string
	Path  string
	Scope host.Scope
	// NoLocks takes no byte locks on its files: for file systems without, or with locks that hang.
	NoLocks bool
	// Root opens the directory where no path leads to it: that of a store on a LUN. Path is not looked at then.
	Root func() (fsx.Dir, error)
}

// Host is a datastore host in this process.
type Host struct {
	c      Config
	log    *slog.Logger
	stores []*store // in order of name
	claims claims
	busy   kmutex.Set
	places places
	count  counters
	tasks  sync.WaitGroup // questions to datastores that nobody waits for any more

	mu       sync.Mutex
	attached map[string]*attached
	given    bool // handed over: no new work
}

var _ host.Host = (*Host)(nil)

// New makes a Host. A datastore that cannot be opened now is opened later. Kinds: Invalid (configuration).
func New(c Config) (*Host, error) {
	if err := c.Host.Check(); err != nil {
		return nil, err
	}
	if c.Engine == nil {
		c.Engine = volume.VMDK{}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.DeviceGone == nil {
		c.DeviceGone = FuseGone
	}
	h := &Host{c: c, log: c.Log, attached: map[string]*attached{}, claims: claims{path: filepath.Join(c.StateDir, "claims.json")}}
	if _, err := h.claims.all(); err != nil {
		return nil, err
	}
	ids := &identities{path: filepath.Join(c.StateDir, "datastores.json")}
	seen := map[string]bool{}
	for _, d := range c.Datastores {
		if err := d.check(); err != nil {
			return nil, err
		}
		if seen[d.Name] || d.Root == nil && seen[d.Path] {
			return nil, fault.New(fault.Invalid, "Give every datastore a name and a directory of its own.",
				"datastore %s or its directory %s is given twice", d.Name, d.Path)
		}
		seen[d.Name], seen[d.Path] = true, true
		h.stores = append(h.stores, &store{cfg: d, me: c.Host, engine: c.Engine, openRoot: c.OpenRoot, ids: ids, log: c.Log,
			background: newBackground(c.ConsolidateEvery)})
	}
	slices.SortFunc(h.stores, func(a, b *store) int { return compare(a.cfg.Name, b.cfg.Name) })
	return h, nil
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// Close closes the datastores and the descriptors of attached disks, whose workers belong to Workers. Nothing is
// detached.
func (h *Host) Close() {
	h.tasks.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, a := range h.attached {
		a.close()
		delete(h.attached, id)
	}
	for _, s := range h.stores {
		s.close()
	}
}

// store is the datastore of that name.
func (h *Host) store(name string) (*store, error) {
	for _, s := range h.stores {
		if s.cfg.Name == name {
			return s, nil
		}
	}
	return nil, fault.New(fault.NotFound, "Name one of the host's datastores.", "host %q has no datastore %q", h.c.Host.Host, name)
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

// begin takes the lock of operations on one disk. A merge of its links gives way.
func (h *Host) begin(ctx context.Context, id, op string) (func(), error) {
	end, err := h.busy.TryLock(id, op)
	for err != nil {
		gave, gerr := h.giveWay(ctx, id)
		if gerr != nil || !gave {
			return nil, errors.Join(gerr, err)
		}
		end, err = h.busy.TryLock(id, op)
	}
	// After the lock, so that a handover sees either the lock or no operation.
	if err := h.working(); err != nil {
		end()
		return nil, err
	}
	return end, nil
}

// get is the attached disk of that id, or nil.
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

// own are those of this node's attachments.
func (h *Host) own() []*attached {
	return slices.DeleteFunc(h.all(), func(a *attached) bool { return a.lent })
}

// Datastores implements host.Datastores.
func (h *Host) Datastores(ctx context.Context) ([]host.Datastore, error) {
	list := make([]host.Datastore, 0, len(h.stores))
	for _, s := range h.stores {
		if err := ctx.Err(); err != nil {
			return nil, fault.Wrap(err, "list datastores")
		}
		view := host.DatastoreHost{Host: h.c.Host.Host}
		r, err := s.space()
		if err != nil {
			view.Reason = err.Error()
		} else {
			view.Total, view.Free, view.Ready = r.total, r.free, true
		}
		view.Transports = h.transports(s.cfg.Path, err)
		list = append(list, host.Datastore{Name: s.cfg.Name, Kind: host.Directory, Scope: s.cfg.Scope, Hosts: []host.DatastoreHost{view}})
	}
	return list, nil
}

// transports is how the host reaches the disks in a directory; err says why it does not.
func (h *Host) transports(path string, err error) []host.TransportView {
	hotAdd := host.TransportView{Transport: transport.NameHotAdd, Usable: err == nil, Reason: fault.From(err)}
	switch {
	case h.c.Workers == nil || h.c.Transports == nil:
		hotAdd.Usable, hotAdd.Reason = false, fault.New(fault.Unsupported, "Use a host with workers.", "host %q attaches no disks", h.c.Host.Host)
	case err == nil:
		hotAdd.Detail = "the files in " + path
	}
	return []host.TransportView{
		{Transport: transport.NameSAN, Reason: transport.NoSANOfDirectory()}, hotAdd,
		{Transport: transport.NameNBD, Reason: transport.NoNBDOfDirectory()},
	}
}

// noted passes err on; a poisoned datastore is opened anew by the next request.
func noted(s *store, err error) error {
	if s != nil && errors.Is(err, fault.Poisoned) {
		s.retire()
	}
	return err
}
