package hosttest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// Slots is how many disks a node of Memory takes.
const Slots = 60

// Memory is the port in memory, as one node sees it. On gives other nodes' views of the same disks.
type Memory struct {
	*state
	node string
}

type state struct {
	mu         sync.Mutex
	nodes      []string
	datastores map[string]*host.Datastore
	disks      map[string]*host.Disk
	snapshots  map[string]*snapshot
	claims     map[string][]host.Claim
	held       map[string]map[string]host.Held // node, disk
	fail       func(method, id string) error
	handedOver map[string]bool
	made       uint32 // links, which gives each a CID of its own
}

var _ host.Host = (*Memory)(nil)

// NewMemory makes a port with these nodes; the first is the one it is seen from. Every node has a datastore "local"
// of its own (scope node), and all of them reach "shared"; both have 1 TiB.
func NewMemory(nodes ...string) *Memory {
	if len(nodes) == 0 {
		nodes = []string{"node-a"}
	}
	s := &state{
		nodes: nodes, datastores: map[string]*host.Datastore{}, disks: map[string]*host.Disk{}, snapshots: map[string]*snapshot{},
		claims: map[string][]host.Claim{}, held: map[string]map[string]host.Held{}, handedOver: map[string]bool{},
	}
	for name, scope := range map[string]host.Scope{"local": host.ScopeNode, "shared": host.ScopeShared} {
		d := &host.Datastore{Name: name, Scope: scope}
		for _, n := range nodes {
			d.Hosts = append(d.Hosts, host.DatastoreHost{Host: n, Ready: true, Total: 1 << 40, Free: 1 << 40})
		}
		s.datastores[name] = d
	}
	for _, n := range nodes {
		s.held[n] = map[string]host.Held{}
	}
	return &Memory{state: s, node: nodes[0]}
}

// On is the port as another of its nodes sees it.
func (m *Memory) On(node string) *Memory { return &Memory{state: m.state, node: node} }

// FailNext makes calls fail while f returns an error for the method's name and the disk's id (or name, for Create).
func (m *Memory) FailNext(f func(method, id string) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = f
}

// SetDatastore changes or adds a datastore.
func (m *Memory) SetDatastore(d host.Datastore) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.datastores[d.Name] = &d
}

// SetPhase puts a disk into a phase that Memory's own disks never rest in: being made, broken, being deleted.
func (m *Memory) SetPhase(id string, phase host.Phase, reason string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.disks[id].Phase, m.disks[id].Reason = phase, reason
}

// SetTrouble makes what the user of a disk, attached on this node, was told last.
func (m *Memory) SetTrouble(id string, f *fault.Fault) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.held[m.node][id]
	h.Attachment.Trouble = &host.Trouble{At: since, Fault: f}
	m.held[m.node][id] = h
}

// Close closes the descriptors that it holds.
func (m *Memory) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, held := range m.held {
		for id, h := range held {
			h.Close()
			delete(held, id)
		}
	}
}

// enter locks the state for a call; the failure, if any, is what the call answers.
func (m *Memory) enter(ctx context.Context, method, id string) (func(), error) {
	m.mu.Lock()
	err := ctx.Err()
	if err == nil && m.fail != nil {
		err = m.fail(method, id)
	}
	if err != nil {
		m.mu.Unlock()
		return nil, fault.Wrap(err, "%s %s", method, id)
	}
	return m.mu.Unlock, nil
}

// Create implements host.Disks.
func (m *Memory) Create(ctx context.Context, spec host.DiskSpec) (host.Disk, error) {
	leave, err := m.enter(ctx, "create", spec.Name)
	if err != nil {
		return host.Disk{}, err
	}
	defer leave()
	spec, err = spec.Normalize()
	if err != nil {
		return host.Disk{}, err
	}
	ds, ok := m.datastores[spec.Datastore]
	if !ok {
		return host.Disk{}, fault.New(fault.NotFound, "", "datastore %q does not exist", spec.Datastore)
	}
	id := host.DiskID(spec.Name)
	if d, ok := m.disks[id]; ok {
		if d.Phase == host.Retired {
			return host.Disk{}, m.nameTaken(id)
		}
		return m.view(d), d.Spec.Matches(spec)
	}
	from, err := m.source(spec)
	if err != nil {
		return host.Disk{}, err
	}
	where := spec.Host
	if where == "" && ds.Scope == host.ScopeNode && from != nil {
		where = from.hosts[0]
	}
	if where == "" {
		where = m.node
	}
	if !slices.Contains(m.nodes, where) {
		return host.Disk{}, fault.New(fault.NotFound, "", "host %q does not exist", where)
	}
	if err := from.reaches(where); err != nil {
		return host.Disk{}, err
	}
	if err := hasRoom(ds, where, spec); err != nil {
		return host.Disk{}, err
	}
	links, err := m.firstLinks(spec, from)
	if err != nil {
		return host.Disk{}, err
	}
	d := &host.Disk{ID: id, Spec: spec, Size: spec.Size, UUID: uuidOf(id), Phase: host.Ready, Links: links}
	d.Spec.Host = ""
	if ds.Scope == host.ScopeNode {
		d.Hosts = []string{where}
	}
	m.disks[id] = d
	return m.view(d), nil
}

func uuidOf(id string) string {
	sum := sha256.Sum256([]byte(id))
	return "6000c29" + hex.EncodeToString(sum[:])[:25]
}

// hasRoom: a thick disk needs its size on every host that is to have it.
func hasRoom(ds *host.Datastore, where string, spec host.DiskSpec) error {
	for _, h := range ds.Hosts {
		if ds.Scope == host.ScopeNode && h.Host != where {
			continue
		}
		if h.Free < spec.Size && spec.Format != host.Thin {
			return fault.New(fault.NoSpace, "Free space on the datastore.", "datastore %s has %d bytes free", ds.Name, h.Free)
		}
	}
	return nil
}

// view is the disk with its claims and attachments, sharing nothing.
func (m *Memory) view(d *host.Disk) host.Disk {
	v := *d
	v.Links, v.Hosts = slices.Clone(d.Links), slices.Clone(d.Hosts)
	v.Claims = slices.Clone(m.claims[d.ID])
	v.Snapshots = m.snapshotsOf(d.ID)
	v.VMwareProblem = capacityStep(d.Links)
	for _, n := range m.nodes {
		if h, ok := m.held[n][d.ID]; ok {
			v.Attachments = append(v.Attachments, h.Attachment)
		}
	}
	return v
}

// find finds a disk that is more than what its snapshots need.
func (m *Memory) find(id string) (*host.Disk, error) {
	d, ok := m.disks[id]
	switch {
	case !ok:
		return nil, fault.New(fault.NotFound, "", "disk %s does not exist", id)
	case d.Phase == host.Retired:
		return nil, fault.New(fault.NotFound, "Restore one of its snapshots.", "disk %s was deleted; only its snapshots are left", id)
	}
	return d, nil
}

// Delete implements host.Disks.
func (m *Memory) Delete(ctx context.Context, id string) error {
	leave, err := m.enter(ctx, "delete", id)
	if err != nil {
		return err
	}
	defer leave()
	if len(m.claims[id]) > 0 {
		return fault.New(fault.InUse, "Detach it first.", "disk %s is claimed by node %q", id, m.claims[id][0].Node)
	}
	for n, held := range m.held {
		if _, ok := held[id]; ok {
			return fault.New(fault.InUse, "Detach it first.", "disk %s is attached on host %q", id, n)
		}
	}
	if d := m.disks[id]; d != nil && len(m.snapshotsOf(id)) > 0 {
		m.retire(d)
		return nil
	}
	delete(m.disks, id)
	return nil
}

// Get implements host.Disks.
func (m *Memory) Get(ctx context.Context, id string) (host.Disk, error) {
	leave, err := m.enter(ctx, "get", id)
	if err != nil {
		return host.Disk{}, err
	}
	defer leave()
	d, ok := m.disks[id]
	if !ok {
		return host.Disk{}, fault.New(fault.NotFound, "", "disk %s does not exist", id)
	}
	return m.view(d), nil
}

// List implements host.Disks.
func (m *Memory) List(ctx context.Context, max int, token string) ([]host.Disk, string, error) {
	leave, err := m.enter(ctx, "list", token)
	if err != nil {
		return nil, "", err
	}
	defer leave()
	if err := host.CheckList(max, token); err != nil {
		return nil, "", err
	}
	var disks []host.Disk
	for _, id := range slices.Sorted(maps.Keys(m.disks)) {
		if id <= token || m.disks[id].Phase == host.Retired {
			continue
		}
		if max > 0 && len(disks) == max {
			return disks, disks[max-1].ID, nil
		}
		disks = append(disks, m.view(m.disks[id]))
	}
	return disks, "", nil
}

// Expand implements host.Disks.
func (m *Memory) Expand(ctx context.Context, id string, size int64) (host.Disk, error) {
	leave, err := m.enter(ctx, "expand", id)
	if err != nil {
		return host.Disk{}, err
	}
	defer leave()
	if err := host.CheckSize(size); err != nil {
		return host.Disk{}, err
	}
	d, err := m.find(id)
	if err != nil {
		return host.Disk{}, err
	}
	if size > d.Size {
		d.Size = size
		d.Links[len(d.Links)-1].Size = size
		for _, held := range m.held {
			if h, ok := held[id]; ok {
				h.Attachment.Size = size
				held[id] = h
			}
		}
	}
	return m.view(d), nil
}

// Claim implements host.Claims.
func (m *Memory) Claim(ctx context.Context, id string, c host.Claim) error {
	leave, err := m.enter(ctx, "claim", id)
	if err != nil {
		return err
	}
	defer leave()
	d, err := m.find(id)
	if err != nil {
		return err
	}
	if !slices.Contains(m.nodes, c.Node) {
		return fault.New(fault.NotFound, "", "node %q does not exist", c.Node)
	}
	if len(d.Hosts) > 0 && !slices.Contains(d.Hosts, c.Node) {
		return fault.New(fault.Precondition, "", "node %q does not reach disk %s, which is on node %q", c.Node, id, d.Hosts[0])
	}
	next, err := host.AddClaim(id, m.claims[id], c)
	if err != nil {
		return err
	}
	n := 0
	for other, claims := range m.claims {
		if other != id && slices.ContainsFunc(claims, func(o host.Claim) bool { return o.Node == c.Node }) {
			n++
		}
	}
	if n >= Slots {
		return fault.New(fault.Exhausted, "Detach a disk from it.", "node %q has no slot left", c.Node)
	}
	m.claims[id] = next
	return nil
}

// Unclaim implements host.Claims.
func (m *Memory) Unclaim(ctx context.Context, id, node string) error {
	leave, err := m.enter(ctx, "unclaim", id)
	if err != nil {
		return err
	}
	defer leave()
	for n, held := range m.held {
		if _, ok := held[id]; ok && (node == "" || node == n) {
			return fault.New(fault.InUse, "Try again when the node has let it go.", "disk %s is attached on node %q", id, n)
		}
	}
	m.claims[id] = slices.DeleteFunc(m.claims[id], func(c host.Claim) bool { return node == "" || c.Node == node })
	if len(m.claims[id]) == 0 {
		delete(m.claims, id)
	}
	return nil
}

// Datastores implements host.Datastores.
func (m *Memory) Datastores(ctx context.Context) ([]host.Datastore, error) {
	leave, err := m.enter(ctx, "datastores", "")
	if err != nil {
		return nil, err
	}
	defer leave()
	var list []host.Datastore
	for _, name := range slices.Sorted(maps.Keys(m.datastores)) {
		d := *m.datastores[name]
		d.Hosts = slices.Clone(d.Hosts)
		list = append(list, d)
	}
	return list, nil
}

var since = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
