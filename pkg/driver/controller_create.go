package driver

import (
	"context"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// createRequest is a csi.CreateVolumeRequest, checked.
type createRequest struct {
	name   string
	params parameters
	source *host.Source // nil: an empty volume
	space  *csi.CapacityRange
	least  int64 // bytes that its capabilities need
	wish   *csi.TopologyRequirement
}

func parseCreate(req *csi.CreateVolumeRequest) (createRequest, error) {
	r := createRequest{name: req.GetName(), space: req.GetCapacityRange(), wish: req.GetAccessibilityRequirements()}
	if err := checkName("volume", r.name); err != nil {
		return r, err
	}
	var err error
	if r.params, err = parseParameters(req.GetParameters()); err != nil {
		return r, err
	}
	if err := refuseMutable(req.GetMutableParameters()); err != nil {
		return r, err
	}
	caps, err := parseCapabilities(req.GetVolumeCapabilities(), r.params)
	if err != nil {
		return r, err
	}
	r.least = minSize(caps, r.params)
	if _, err := sizeOf(r.space, r.least, defaultSize); err != nil {
		return r, err
	}
	r.source, err = parseSource(req.GetVolumeContentSource())
	r.params.copy = r.source != nil
	return r, err
}

// parseSource checks a volume_content_source, which may be nil.
func parseSource(s *csi.VolumeContentSource) (*host.Source, error) {
	switch {
	case s == nil:
		return nil, nil
	case s.GetSnapshot() != nil:
		id := s.GetSnapshot().GetSnapshotId()
		return &host.Source{Snapshot: id}, checkSnapshotID(id)
	case s.GetVolume() != nil:
		id := s.GetVolume().GetVolumeId()
		return &host.Source{Disk: id}, checkID(id)
	}
	return nil, invalid("name a snapshot or a volume, or leave the source out", "volume_content_source names no source")
}

// contentSource is parseSource's opposite.
func contentSource(s *host.Source) *csi.VolumeContentSource {
	switch {
	case s == nil:
		return nil
	case s.Snapshot != "":
		return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
			Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: s.Snapshot}}}
	}
	return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{
		Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: s.Disk}}}
}

func (c *controller) CreateVolume(ctx context.Context, req *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	r, err := parseCreate(req)
	if err != nil {
		return nil, toStatus(err)
	}
	// Who it is for: known where the provisioner runs with --extra-create-metadata.
	ctx = host.WithOwner(ctx, host.Owner{Namespace: req.GetParameters()[kubePVCNamespace], Name: req.GetParameters()[kubePVCName]})
	spec, err := c.specOf(ctx, r)
	if err != nil {
		return nil, toStatus(err)
	}
	disk, err := c.disks.Create(ctx, spec)
	if err != nil {
		return nil, toStatus(err)
	}
	vol := volumeOf(disk)
	vol.VolumeContext = r.params.context()
	return &csi.CreateVolumeResponse{Volume: vol}, nil
}

// specOf is the disk to be made for r: a disk that is there already says what r leaves open (also when its source or its host
// could not be chosen again now), else the source does, else the defaults.
func (c *controller) specOf(ctx context.Context, r createRequest) (host.DiskSpec, error) {
	spec := host.DiskSpec{Name: r.name, Datastore: r.params.datastore, Format: r.params.format, Type: r.params.diskType, Source: r.source}
	if r.source != nil {
		spec.CloneMode = r.params.cloneMode
	}
	old, err := c.disks.Get(ctx, host.DiskID(r.name))
	switch fault.KindOf(err) {
	case "":
		return r.again(spec, old)
	case fault.NotFound:
		return c.place(ctx, r, spec)
	}
	return spec, err
}

// again fills in spec for a request whose disk exists.
func (r createRequest) again(spec host.DiskSpec, old host.Disk) (host.DiskSpec, error) {
	if spec.Datastore == "" {
		spec.Datastore = old.Spec.Datastore
	}
	if len(old.Hosts) > 0 {
		spec.Host = old.Hosts[0]
	}
	var err error
	spec.Size, err = sizeOf(r.space, r.least, defaultSize)
	if limit := r.space.GetLimitBytes(); r.source != nil && r.space.GetRequiredBytes() == 0 {
		if spec.Size = old.Spec.Size; limit > 0 && spec.Size > limit {
			return spec, fault.New(fault.Exists, "use another name, or delete the volume first",
				"volume %s exists with %s, more than limit_bytes %d", old.ID, sizeText(spec.Size), limit)
		}
	}
	return spec, err
}

// place fills in spec for a disk that is to be made: its datastore, size and host.
func (c *controller) place(ctx context.Context, r createRequest, spec host.DiskSpec) (host.DiskSpec, error) {
	from, err := c.origin(ctx, r.source)
	if err != nil {
		return spec, err
	}
	stores, err := c.datastores.Datastores(ctx)
	if err != nil {
		return spec, err
	}
	name := r.params.datastore
	switch {
	case from == nil, from.datastore == name:
	case name == "":
		name = from.datastore
	default:
		return spec, invalid("allowed with this source: "+from.datastore, "parameter %q: value %q: %s is in datastore %s", ParamDatastore,
			clip(name), from.what, from.datastore)
	}
	store, err := pickDatastore(stores, name)
	if err != nil {
		return spec, err
	}
	spec.Datastore = store.Name
	if spec.Size, err = from.sizeFor(r); err != nil {
		return spec, err
	}
	need := int64(0)
	if spec.Format != host.Thin && spec.CloneMode != host.CloneLinked {
		need = spec.Size
	}
	if from == nil {
		spec.Host, err = pickHost(store, r.wish, need)
	} else {
		spec.Host, err = from.pickHost(store, r.wish, need)
	}
	return spec, err
}

// origin is what a volume is made from.
type origin struct {
	what      string // for people
	datastore string
	size      int64    // bytes
	hosts     []string // that reach it; empty: every host
}

// origin finds a source, which may be nil. Kinds: NotFound (also one that is being deleted), InProgress (one that is being made).
func (c *controller) origin(ctx context.Context, s *host.Source) (*origin, error) {
	switch {
	case s == nil:
		return nil, nil
	case s.Snapshot != "":
		snap, err := c.snapshots.GetSnapshot(ctx, s.Snapshot)
		if err != nil {
			return nil, err
		}
		if !snap.Ready {
			return nil, fault.New(fault.InProgress, "the request is repeated", "snapshot %s is not ready to use", snap.ID)
		}
		return &origin{what: "snapshot " + snap.ID, datastore: snap.Datastore, size: snap.Size, hosts: snap.Hosts}, nil
	}
	disk, err := c.disks.Get(ctx, s.Disk)
	if err != nil {
		return nil, err
	}
	if err := usable(disk); err != nil {
		return nil, err
	}
	return &origin{what: "volume " + disk.ID, datastore: disk.Spec.Datastore, size: disk.Size, hosts: disk.Hosts}, nil
}

// usable says why the content of a disk cannot be taken: nothing of what is being deleted or made is anybody's source. What is
// damaged is found by whoever reads it.
func usable(d host.Disk) error {
	switch d.Phase {
	case host.Retired:
		return fault.New(fault.NotFound, "restore one of its snapshots", "volume %s was deleted; only its snapshots are left", d.ID)
	case host.Deleting:
		return fault.New(fault.NotFound, "", "volume %s is being deleted", d.ID)
	case host.Pending:
		return fault.New(fault.InProgress, "the request is repeated", "volume %s is still being made", d.ID)
	}
	return nil
}

// sizeFor is the size of a volume made for r: the origin's if r does not say, never less.
func (o *origin) sizeFor(r createRequest) (int64, error) {
	if o == nil {
		return sizeOf(r.space, r.least, defaultSize)
	}
	tooSmall := func(field string, bytes int64) error {
		return fault.New(fault.OutOfRange, "allowed: "+sizeText(o.size)+" and more", "%s %d is less than the size of the source, %s",
			field, bytes, o.what)
	}
	switch required, limit := r.space.GetRequiredBytes(), r.space.GetLimitBytes(); {
	case required > 0 && roundUp(required) < o.size:
		return 0, tooSmall("required_bytes", required)
	case limit > 0 && limit < o.size:
		return 0, tooSmall("limit_bytes", limit)
	}
	size := roundUp(o.size)
	return sizeOf(r.space, max(r.least, size), size)
}

// pickHost chooses among the hosts that reach both the origin and the datastore.
func (o *origin) pickHost(d host.Datastore, wish *csi.TopologyRequirement, need int64) (string, error) {
	if len(o.hosts) == 0 {
		return pickHost(d, wish, need)
	}
	d.Hosts = slices.DeleteFunc(slices.Clone(d.Hosts), func(h host.DatastoreHost) bool { return !slices.Contains(o.hosts, h.Host) })
	picked, err := pickHost(d, wish, need)
	if fault.KindOf(err) == fault.Exhausted {
		err = fault.New(fault.Exhausted, "let the claim's pod run on node "+o.hosts[0]+", or keep such volumes on a shared datastore",
			"%s is on node %s alone: %s", o.what, o.hosts[0], fault.From(err).Message)
	}
	return picked, err
}

func volumeOf(d host.Disk) *csi.Volume {
	return &csi.Volume{VolumeId: d.ID, CapacityBytes: d.Size, AccessibleTopology: topologyOf(d.Hosts), ContentSource: contentSource(d.Spec.Source)}
}
