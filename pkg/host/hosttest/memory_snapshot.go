package hosttest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// snapshot is a point in a disk's past: its chain ended with link then.
type snapshot struct {
	host.Snapshot
	link string
}

// CreateSnapshot implements host.Snapshots.
func (m *Memory) CreateSnapshot(ctx context.Context, spec host.SnapshotSpec) (host.Snapshot, error) {
	leave, err := m.enter(ctx, "createSnapshot", spec.Name)
	if err != nil {
		return host.Snapshot{}, err
	}
	defer leave()
	if spec, err = spec.Normalize(); err != nil {
		return host.Snapshot{}, err
	}
	id := host.SnapshotID(spec.Name)
	if s, ok := m.snapshots[id]; ok {
		return s.view(), (host.SnapshotSpec{Name: s.Name, Disk: s.Disk}).Matches(spec)
	}
	d, err := m.findMade(spec.Disk)
	if err != nil {
		return host.Snapshot{}, err
	}
	consistency := host.FilesystemConsistent // of a disk that nobody uses
	if m.attached(d.ID) && spec.Frozen == 0 {
		consistency = host.CrashConsistent
	}
	head, size := d.Links[len(d.Links)-1], d.Size
	if err := m.freeze(d); err != nil {
		return host.Snapshot{}, err
	}
	s := &snapshot{link: head.Name, Snapshot: host.Snapshot{
		ID: id, Name: spec.Name, Disk: d.ID, DiskUUID: d.UUID, Datastore: d.Spec.Datastore, Hosts: slices.Clone(d.Hosts), Size: size,
		CID: head.CID, Created: time.Now().UTC().Round(time.Second), Consistency: consistency, Ready: true,
	}}
	m.snapshots[id] = s
	return s.view(), nil
}

// view is the snapshot, sharing nothing.
func (s *snapshot) view() host.Snapshot {
	v := s.Snapshot
	v.Hosts = slices.Clone(s.Hosts)
	return v
}

// DeleteSnapshot implements host.Snapshots.
func (m *Memory) DeleteSnapshot(ctx context.Context, id string) error {
	leave, err := m.enter(ctx, "deleteSnapshot", id)
	if err != nil {
		return err
	}
	defer leave()
	s, ok := m.snapshots[id]
	if !ok {
		return nil
	}
	delete(m.snapshots, id)
	d := m.disks[s.Disk]
	if d.Phase == host.Retired && len(m.snapshotsOf(d.ID)) == 0 {
		delete(m.disks, d.ID)
		return nil
	}
	m.consolidate(d)
	return nil
}

// GetSnapshot implements host.Snapshots.
func (m *Memory) GetSnapshot(ctx context.Context, id string) (host.Snapshot, error) {
	leave, err := m.enter(ctx, "getSnapshot", id)
	if err != nil {
		return host.Snapshot{}, err
	}
	defer leave()
	s, err := m.findSnapshot(id)
	if err != nil {
		return host.Snapshot{}, err
	}
	return s.view(), nil
}

func (m *Memory) findSnapshot(id string) (*snapshot, error) {
	if s, ok := m.snapshots[id]; ok {
		return s, nil
	}
	return nil, fault.New(fault.NotFound, "", "snapshot %q does not exist", id)
}

// ListSnapshots implements host.Snapshots.
func (m *Memory) ListSnapshots(ctx context.Context, disk string, max int, token string) ([]host.Snapshot, string, error) {
	leave, err := m.enter(ctx, "listSnapshots", disk)
	if err != nil {
		return nil, "", err
	}
	defer leave()
	if err := host.CheckSnapshotList(max, token); err != nil {
		return nil, "", err
	}
	var list []host.Snapshot
	for _, id := range slices.Sorted(maps.Keys(m.snapshots)) {
		s := m.snapshots[id]
		if id <= token || disk != "" && s.Disk != disk {
			continue
		}
		if max > 0 && len(list) == max {
			return list, list[max-1].ID, nil
		}
		list = append(list, s.view())
	}
	return list, "", nil
}

// findMade finds a disk whose content can be taken.
func (m *Memory) findMade(id string) (*host.Disk, error) {
	d, err := m.find(id)
	if err != nil {
		return nil, err
	}
	switch d.Phase {
	case host.Pending:
		return nil, fault.New(fault.InProgress, "Try again.", "disk %s is not made yet", id)
	case host.Deleting:
		return nil, fault.New(fault.NotFound, "", "disk %s is being deleted", id)
	case host.Failed:
		return nil, fault.New(fault.Damaged, "", "disk %s cannot be used: %s", id, d.Reason)
	}
	return d, nil
}

func (m *Memory) attached(id string) bool {
	for _, held := range m.held {
		if _, ok := held[id]; ok {
			return true
		}
	}
	return false
}

// freeze gives the disk a new head, so that its present one never changes again.
func (m *Memory) freeze(d *host.Disk) error {
	if len(d.Links) >= host.MaxLinks {
		return tooDeep("disk "+d.ID, len(d.Links))
	}
	d.Links = append(d.Links, m.child(d.Links[len(d.Links)-1], d.Size))
	return nil
}

// child is a new link on top of parent.
func (m *Memory) child(parent host.Link, size int64) host.Link {
	m.made++
	return host.Link{
		Name: fmt.Sprintf("disk-%06d.vmdk", m.made), Type: string(host.TwoGbMaxExtentSparse), CID: fmt.Sprintf("%08x", 0xfffffff0-m.made),
		ParentCID: parent.CID, Size: size,
	}
}

// consolidate drops the links that nobody needs, at once. What a snapshot ends at stays, and so does the head.
func (m *Memory) consolidate(d *host.Disk) {
	needed := map[string]bool{d.Links[len(d.Links)-1].Name: true}
	for _, s := range m.snapshots {
		if s.Disk == d.ID {
			needed[s.link] = true
		}
	}
	d.Links = slices.DeleteFunc(d.Links, func(l host.Link) bool { return !needed[l.Name] })
	parent := "ffffffff"
	for i := range d.Links {
		d.Links[i].ParentCID, parent = parent, d.Links[i].CID
	}
}

// retire keeps of a deleted disk what its snapshots need.
func (m *Memory) retire(d *host.Disk) {
	d.Phase = host.Retired
	ends := map[string]bool{}
	for _, s := range m.snapshots {
		ends[s.link] = ends[s.link] || s.Disk == d.ID
	}
	for !ends[d.Links[len(d.Links)-1].Name] {
		d.Links = d.Links[:len(d.Links)-1]
	}
}

func (m *Memory) snapshotsOf(disk string) []string {
	var ids []string
	for id, s := range m.snapshots {
		if s.Disk == disk {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

func (m *Memory) nameTaken(id string) error {
	return fault.New(fault.Exists, "Use another name, or delete its snapshots: "+strings.Join(m.snapshotsOf(id), ", ")+".",
		"disk %s was deleted and is kept for its snapshots", id)
}

// origin is what a new disk is made from.
type origin struct {
	links []host.Link
	hosts []string
	live  *host.Disk // whose head is the last of links, if it is not a snapshot
}

// reaches says whether a host can make a disk from the origin, which may be nil.
func (o *origin) reaches(where string) error {
	if o == nil || len(o.hosts) == 0 || slices.Contains(o.hosts, where) {
		return nil
	}
	return fault.New(fault.Exhausted, "Ask for host "+o.hosts[0]+".", "host %q does not reach the source, which is on host %q", where, o.hosts[0])
}

// source finds the origin that spec names, nil if it names none.
func (m *Memory) source(spec host.DiskSpec) (*origin, error) {
	switch {
	case spec.Source == nil:
		return nil, nil
	case spec.Source.Snapshot != "":
		s, err := m.findSnapshot(spec.Source.Snapshot)
		if err == nil {
			err = spec.CheckSource(s.Datastore, s.Size)
		}
		if err != nil {
			return nil, err
		}
		links := m.disks[s.Disk].Links
		i := slices.IndexFunc(links, func(l host.Link) bool { return l.Name == s.link })
		return &origin{links: links[:i+1], hosts: s.Hosts}, nil
	}
	d, err := m.findMade(spec.Source.Disk)
	if err == nil {
		err = spec.CheckSource(d.Spec.Datastore, d.Size)
	}
	if err != nil {
		return nil, err
	}
	return &origin{links: d.Links, hosts: d.Hosts, live: d}, nil
}

// firstLinks are the links of a disk that is made for spec. A disk that it is made from gets a new head: what its head was is
// shared from then on.
func (m *Memory) firstLinks(spec host.DiskSpec, from *origin) ([]host.Link, error) {
	if from == nil || spec.CloneMode == host.CloneFull {
		return []host.Link{{Name: "disk.vmdk", Type: string(spec.Type), CID: "fffffffe", ParentCID: "ffffffff", Size: spec.Size}}, nil
	}
	links := slices.Clone(from.links)
	if len(links) >= host.MaxLinks {
		return nil, tooDeep(spec.Source.String(), len(links))
	}
	if from.live != nil {
		if err := m.freeze(from.live); err != nil {
			return nil, err
		}
	}
	return append(links, m.child(links[len(links)-1], spec.Size)), nil
}

func tooDeep(what string, n int) error {
	return fault.New(fault.Exhausted, "Delete snapshots, or restore one into a new disk with cloneMode full.",
		"%s has %d links, the most that a chain may have", what, n)
}

// capacityStep is why VMware would refuse the chain.
func capacityStep(links []host.Link) string {
	for i, l := range links[1:] {
		if l.Size != links[i].Size {
			return fmt.Sprintf("link %s has %d bytes, its parent %s %d", l.Name, l.Size, links[i].Name, links[i].Size)
		}
	}
	return ""
}
