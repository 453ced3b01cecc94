package lun

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/vmdk-csi/vmdk-csi/internal/statefile"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/remote"
	"github.com/vmdk-csi/vmdk-csi/pkg/transport"
)

// A disk in a directory that this host does not reach is attached by NBD, through a host that does and that lends it (Share).

// borrowed is the file of the disks in directories that other hosts may have open for this node: disk id to datastore. A line is
// written before the disk is opened there and removed after it was closed, so that a detach finds it whoever died meanwhile.
type borrowed struct {
	path string

	mu  sync.Mutex
	all map[string]string // nil: not read yet
}

func (b *borrowed) check() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.load()
}

func (b *borrowed) load() (err error) {
	if b.all == nil {
		b.all, err = statefile.Load[map[string]string](b.path)
	}
	return err
}

func (b *borrowed) get(id string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all[id]
}

func (b *borrowed) datastores() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Compact(slices.Sorted(maps.Values(b.all)))
}

// put notes that a disk is borrowed, datastore "": not any more.
func (b *borrowed) put(id, datastore string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	// A predecessor that hands over may have changed the file since it was read.
	next, err := statefile.Load[map[string]string](b.path)
	if err != nil {
		return err
	}
	if next[id] != datastore {
		if next[id] = datastore; datastore == "" {
			delete(next, id)
		}
		if err := statefile.Save(b.path, next); err != nil {
			return err
		}
	}
	b.all = next
	return nil
}

// borrow notes that a disk is borrowed if it is in a directory, s nil: not any more.
func (h *Host) borrow(id string, s *datastore) error {
	switch {
	case s == nil && h.borrowed.get(id) != "":
		return h.borrowed.put(id, "")
	case s != nil && s.directory:
		return h.borrowed.put(id, s.Name)
	}
	return nil
}

// refused says that a server has answered, so that it has not opened the disk.
func refused(err error) bool {
	return !errors.Is(err, fault.Unavailable) && !errors.Is(err, fault.Timeout) && !errors.Is(err, fault.InProgress)
}

// directory is a datastore as other hosts have it, nil if none are known.
func (h *Host) directory(name string) *datastore {
	if h.c.Elsewhere == nil || host.CheckDatastoreName(name) != nil || h.store(name) != nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.others[name]
	if s == nil {
		s = &datastore{Datastore: Datastore{Name: name, Client: h.c.Elsewhere(name)}, directory: true}
		h.others[name] = s
	}
	return s
}

// lenders are the directories of which this node has a disk through another host.
func (h *Host) lenders() (list []*datastore) {
	for _, name := range h.borrowed.datastores() {
		if s := h.directory(name); s != nil {
			list = append(list, s)
		}
	}
	return list
}

// sourceLender is the directory, as other hosts have it, whose disk here is the source of a new one: who lends it has it open, and
// makes the copy. nil: it is none.
func (h *Host) sourceLender(ctx context.Context, spec host.DiskSpec) *datastore {
	if spec.Source == nil || len(h.borrowed.datastores()) == 0 {
		return nil
	}
	disk := spec.Source.Disk
	if disk == "" {
		p, err := h.GetSnapshot(ctx, spec.Source.Snapshot)
		if err != nil {
			return nil // the base says so
		}
		disk = p.Disk
	}
	if name := h.borrowed.get(disk); name == spec.Datastore {
		return h.directory(name)
	}
	return nil
}

// storeOf is where an attached disk is, nil: on the base.
func (h *Host) storeOf(a host.Attachment) *datastore {
	if s := h.store(a.Datastore); s != nil || a.Transport != transport.NameNBD {
		return s
	}
	return h.directory(a.Datastore)
}

// attachDirectory attaches a disk that is in a directory, or nowhere. The base tries what the order has before NBD; then the hosts that
// have the disk are asked; then the base tries the rest.
func (h *Host) attachDirectory(ctx context.Context, req host.AttachRequest, dev host.Device) (host.Attachment, error) {
	if err := h.notLent(req.ID); err != nil {
		return host.Attachment{}, err
	}
	order, err := transport.ParseOrder(req.Transport)
	at := slices.Index(order, transport.NameNBD)
	if err != nil || at < 0 || h.c.Elsewhere == nil || h.c.Workers == nil || !host.ValidDiskID(req.ID) {
		return h.c.Base.Attach(ctx, req, dev) // which says what is wrong
	}
	here := fault.New(fault.Unsupported, "", "it was not asked for")
	if at > 0 {
		first := req
		first.Transport = strings.Join(order[:at], ":")
		att, err := h.c.Base.Attach(ctx, first, dev)
		if err == nil || !mayBeElsewhere(err) {
			return att, err
		}
		here = fault.From(err)
	}
	att, there := h.attachElsewhere(ctx, req, dev, before(order[:at], here))
	switch {
	case there == nil || at > 0 && at == len(order)-1:
		return att, joined(order[:at], here, there)
	case at == 0 && len(order) == 1:
		return att, there
	}
	// The base records that NBD is no way of its own.
	att, err = h.c.Base.Attach(ctx, req, dev)
	if err != nil {
		return att, joined(order[at+1:], fault.From(err), there)
	}
	h.log.Info("transport not used", "disk", req.ID, "transport", transport.NameNBD, "reason", there)
	return att, nil
}

// mayBeElsewhere says that this host does not reach the disk: another one may.
func mayBeElsewhere(err error) bool {
	switch fault.KindOf(err) {
	case fault.NotFound, fault.Unavailable, fault.Timeout, fault.Unsupported:
		return true
	}
	return false
}

// before is why what was asked for before NBD does not serve.
func before(order []string, here error) (list []host.Skipped) {
	for _, n := range order {
		why := here
		if n == transport.NameSAN {
			why = transport.NoSANOfDirectory()
		}
		list = append(list, host.NotUsed(n, why))
	}
	return list
}

// joined is why neither this host nor another one has attached a disk. What the other hosts say of the disk counts, unless they do not
// have it.
func joined(order []string, here *fault.Fault, there error) error {
	if there == nil {
		return nil
	}
	kind, remedy := fault.KindOf(there), fault.From(there).Remedy
	if kind == fault.NotFound {
		kind, remedy = here.Kind, here.Remedy
	}
	return fault.New(kind, remedy, "transport %s: %w; transport %s: %w", strings.Join(order, ":"), here, transport.NameNBD, there)
}

// attachElsewhere attaches a disk through a host that has it: in the datastore that ctx tells, else in one of the base's.
func (h *Host) attachElsewhere(ctx context.Context, req host.AttachRequest, dev host.Device, skipped []host.Skipped) (host.Attachment, error) {
	names := []string{host.DatastoreFrom(ctx)}
	if names[0] == "" {
		list, err := h.c.Base.Datastores(ctx)
		if err != nil {
			return host.Attachment{}, err
		}
		names = nil
		for _, d := range list {
			names = append(names, d.Name)
		}
	}
	var failed error = fault.New(fault.NotFound, "", "disk %s is in no datastore that is known here", req.ID)
	for _, name := range names {
		s := h.directory(name)
		if s == nil {
			continue
		}
		att, err := h.attachTo(ctx, &attached{store: s, before: skipped}, req, dev)
		if err == nil {
			return att, nil
		}
		if !notFound(err) {
			failed = err
		}
	}
	return host.Attachment{}, failed
}

// notLent refuses what a node must not lose that has a disk through this host.
func (h *Host) notLent(id string) error {
	for _, s := range h.c.Shares {
		if nodes := s.holders(id); len(nodes) > 0 {
			return fault.New(fault.InUse, "Detach it there first.", "disk %s is attached on node %q, through this host", id, nodes[0])
		}
	}
	return nil
}

// dress shows the nodes that have a disk of the base through this host.
func (h *Host) dress(d *host.Disk) {
	for _, s := range h.c.Shares {
		if len(s.holders(d.ID)) > 0 {
			s.attachments(d)
		}
	}
}

func (h *Host) dressed(d host.Disk, err error) (host.Disk, error) {
	h.dress(&d)
	return d, err
}

// overNetwork adds to a datastore of the base whether other hosts serve its disks.
func (h *Host) overNetwork(ctx context.Context, d *host.Datastore) {
	s := h.directory(d.Name)
	if s == nil || h.c.Workers == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	_, _, err := s.Client.Space(ctx)
	v := host.TransportView{Transport: remote.NBD, Usable: err == nil, Reason: fault.From(err)}
	if err == nil {
		v.Detail = "any host that has the disk"
	}
	for i := range d.Hosts {
		for j := range d.Hosts[i].Transports {
			if d.Hosts[i].Transports[j].Transport == remote.NBD {
				d.Hosts[i].Transports[j] = v
			}
		}
	}
}
