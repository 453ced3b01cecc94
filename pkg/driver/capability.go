package driver

import (
	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/vmdk-csi/vmdk-csi/pkg/stage"
)

// writers says which access modes are served, and whether the holder writes.
var writers = map[csi.VolumeCapability_AccessMode_Mode]bool{
	csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER:        true,
	csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER: true,
	csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER:  true,
	csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY:   false,
	csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY:    false,
}

const defaultFSType = "ext4"

// many says which access modes allow several target paths on one node (CSI specification, NodePublishVolume, the second
// table: the one for plugins with SINGLE_NODE_MULTI_WRITER).
var many = map[csi.VolumeCapability_AccessMode_Mode]bool{
	csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER: true,
	csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY:   true,
}

// capability is a csi.VolumeCapability, checked.
type capability struct {
	mode       stage.Mode
	fsType     string // for Mount
	options    []string
	readOnly   bool
	singlePath bool
}

// parseCapability checks one capability against the StorageClass's parameters.
func parseCapability(c *csi.VolumeCapability, p parameters) (capability, error) {
	if c == nil {
		return capability{}, invalid("say how the volume is used", "volume_capability is missing")
	}
	mode := c.GetAccessMode().GetMode()
	writes, ok := writers[mode]
	if !ok {
		return capability{}, invalid("allowed access modes: ReadWriteOnce, ReadWriteOncePod, ReadOnlyMany (SINGLE_NODE_*, "+
			"MULTI_NODE_READER_ONLY); a VMDK has one writer", "access mode %s is not supported", mode)
	}
	out := capability{readOnly: !writes, singlePath: !many[mode]}
	switch {
	case c.GetBlock() != nil:
		out.mode = stage.Block
		if p.partition != stage.PartitionNone && p.partition != "" {
			return capability{}, invalid("allowed for block volumes: none; a raw block device is the whole disk",
				"parameter %q: value %q contradicts volumeMode Block", ParamPartition, p.partition)
		}
	case c.GetMount() != nil:
		out.mode = stage.Mount
		out.options = c.GetMount().GetMountFlags()
		out.fsType = c.GetMount().GetFsType()
		if out.fsType == "" {
			out.fsType = p.fsType
		}
		if out.fsType == "" {
			out.fsType = defaultFSType
		}
		if err := checkValue("file system type", "fsType", out.fsType, allowed[paramFSType]); err != nil {
			return capability{}, err
		}
	default:
		return capability{}, invalid("set block or mount", "volume_capability has no access type")
	}
	return out, nil
}

func parseCapabilities(cs []*csi.VolumeCapability, p parameters) ([]capability, error) {
	if len(cs) == 0 {
		return nil, invalid("say how the volume is used", "volume_capabilities are missing")
	}
	out := make([]capability, 0, len(cs))
	for _, c := range cs {
		parsed, err := parseCapability(c, p)
		if err != nil {
			return nil, err
		}
		out = append(out, parsed)
	}
	return out, nil
}
