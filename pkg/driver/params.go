package driver

import (
	"maps"
	"slices"
	"strings"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/stage"
	"github.com/vmdk-csi/vmdk-csi/pkg/transport"
)

// The parameters of a StorageClass.
const (
	ParamDatastore  = "datastore"
	ParamDiskFormat = "diskFormat"
	ParamDiskType   = "diskType"
	ParamTransport  = "transport"
	ParamPartition  = "partition"
	ParamCloneMode  = "cloneMode"
)

// The parameters of a VolumeSnapshotClass.
const (
	ParamFreeze         = "freeze"
	ParamFreezeDeadline = "freezeDeadline"
)

// What the external-provisioner adds or leaves in (external-provisioner, pkg/controller: prefixedFsTypeKey and the
// metadata of --extra-create-metadata). The fsType it consumes itself; other orchestrators pass it on.
const (
	prefixKube  = "csi.storage.k8s.io/"
	paramFSType = prefixKube + "fstype"

	kubePVCName      = prefixKube + "pvc/name"
	kubePVCNamespace = prefixKube + "pvc/namespace"
	kubePVName       = prefixKube + "pv/name"
)

// Keys of the volume context and the publish context.
const (
	contextPartition = ParamPartition
	contextTransport = ParamTransport
	contextFSType    = "fsType"
	contextCopy      = "copy" // of another volume's content: "true"
	contextReadOnly  = "readOnly"
	contextUUID      = "uuid"
)

var kubeMetadata = []string{kubePVCName, kubePVCNamespace, kubePVName}

// Allowed values, the default first; nil: any.
var allowed = map[string][]string{
	ParamDatastore:  nil,
	ParamDiskFormat: {string(host.Thin), string(host.ZeroedThick), string(host.EagerZeroedThick)},
	ParamDiskType:   diskTypes(),
	ParamTransport:  nil, // an order; see checkValue
	ParamPartition:  {string(stage.PartitionNone), string(stage.PartitionGPT)},
	ParamCloneMode:  {string(host.CloneLinked), string(host.CloneFull)},
	paramFSType:     {"ext4", "xfs", "btrfs"},
}

func diskTypes() []string {
	var out []string
	for _, t := range host.DiskTypes() {
		out = append(out, string(t))
	}
	return out
}

// parameters are a StorageClass's, checked, with the defaults filled in.
type parameters struct {
	datastore string // "": the only one
	format    host.DiskFormat
	diskType  host.DiskType
	transport string // order of transports; "" is the datastore's own
	partition stage.Partition
	cloneMode host.CloneMode // of volumes that have a source
	fsType    string         // "" when not named
	copy      bool           // of a volume: it was made from a source
}

func parseParameters(in map[string]string) (parameters, error) {
	get := func(key string) string {
		if v, ok := in[key]; ok {
			return v
		}
		return allowed[key][0]
	}
	for _, key := range slices.Sorted(maps.Keys(in)) {
		if slices.Contains(kubeMetadata, key) {
			continue
		}
		values, known := allowed[key]
		if !known {
			return parameters{}, invalid("allowed parameters: "+strings.Join(slices.Sorted(maps.Keys(allowed)), ", "),
				"parameter %q (value %q) is unknown", key, in[key])
		}
		if err := checkValue("parameter", key, in[key], values); err != nil {
			return parameters{}, err
		}
	}
	p := parameters{
		datastore: in[ParamDatastore],
		format:    host.DiskFormat(get(ParamDiskFormat)),
		diskType:  host.DiskType(get(ParamDiskType)),
		transport: in[ParamTransport],
		partition: stage.Partition(get(ParamPartition)),
		cloneMode: host.CloneMode(get(ParamCloneMode)),
		fsType:    in[paramFSType],
	}
	if _, named := in[ParamDatastore]; named && p.datastore == "" {
		return parameters{}, invalid("name a datastore, or leave the parameter out where there is only one",
			"parameter %q is empty", ParamDatastore)
	}
	if p.diskType.Sparse() && p.format != host.Thin {
		return parameters{}, invalid("allowed with "+string(p.diskType)+": thin; a sparse disk takes space when it is written",
			"parameter %q: value %q contradicts parameter %q: value %q", ParamDiskFormat, p.format, ParamDiskType, p.diskType)
	}
	return p, nil
}

func checkValue(what, key, value string, values []string) error {
	if key == ParamTransport {
		if _, err := transport.ParseOrder(value); err != nil {
			return invalid("allowed values: one or more of "+strings.Join(transport.Names(), ", ")+
				" in the order in which they are tried, with colons between, such as san:hotadd:nbd", "%s %q: value %q is not allowed", what, key, value)
		}
		return nil
	}
	if values == nil || slices.Contains(values, value) {
		return nil
	}
	return invalid("allowed values: "+strings.Join(values, ", "), "%s %q: value %q is not allowed", what, key, value)
}

// context is what the node service needs to know of a StorageClass.
func (p parameters) context() map[string]string {
	c := map[string]string{contextPartition: string(p.partition)}
	if p.transport != "" {
		c[contextTransport] = p.transport
	}
	if p.fsType != "" {
		c[contextFSType] = p.fsType
	}
	if p.copy {
		c[contextCopy] = "true"
	}
	return c
}

// fromContext reads a volume context that context wrote. Keys of others (the provisioner adds one) are theirs.
func fromContext(in map[string]string) (parameters, error) {
	p := parameters{partition: stage.PartitionNone, copy: in[contextCopy] == "true"}
	for key, param := range map[string]string{contextPartition: ParamPartition, contextTransport: ParamTransport,
		contextFSType: paramFSType} {
		value, ok := in[key]
		if !ok {
			continue
		}
		if err := checkValue("volume context", key, value, allowed[param]); err != nil {
			return p, err
		}
		switch key {
		case contextPartition:
			p.partition = stage.Partition(value)
		case contextTransport:
			p.transport = value
		case contextFSType:
			p.fsType = value
		}
	}
	return p, nil
}

// refuseMutable: nothing about a disk can be modified by a VolumeAttributesClass.
func refuseMutable(in map[string]string) error {
	for _, key := range slices.Sorted(maps.Keys(in)) {
		return invalid("take the VolumeAttributesClass off the claim: no parameter of a disk is mutable",
			"mutable parameter %q (value %q) is unknown", key, in[key])
	}
	return nil
}

// checkName: CSI limits a string to 128 bytes and bans control characters in names (CSI specification, "Size Limits",
// CreateVolumeRequest.name, CreateSnapshotRequest.name). what is to have the name.
func checkName(what, name string) error {
	const limit = 128
	switch {
	case name == "":
		return invalid("give the "+what+" a name", "name is missing")
	case len(name) > limit:
		return invalid("use a name of at most 128 bytes", "name %q... has %d bytes", name[:32], len(name))
	}
	for _, r := range name {
		if r < 0x20 && r != '\t' && r != '\n' && r != '\r' || r >= 0x7f && r <= 0x9f {
			return invalid("leave control characters out of the name", "name %q has the control character %U", name, r)
		}
	}
	return nil
}

// checkID: an id that cannot be ours names no volume; it is never used to build a path.
func checkID(id string) error {
	switch {
	case id == "":
		return invalid("name the volume", "volume_id is missing")
	case !host.ValidDiskID(id):
		return fault.New(fault.NotFound, "", "volume %q does not exist", clip(id))
	}
	return nil
}

// checkSnapshotID is checkID of snapshots.
func checkSnapshotID(id string) error {
	switch {
	case id == "":
		return invalid("name the snapshot", "snapshot_id is missing")
	case !host.ValidSnapshotID(id):
		return fault.New(fault.NotFound, "", "snapshot %q does not exist", clip(id))
	}
	return nil
}

func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "..."
	}
	return s
}
