package vmdk

import (
	"strings"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Type is the createType of a link.
type Type string

// The types this package knows; Creatable tells which of them it makes.
const (
	MonolithicFlat       Type = "monolithicFlat"       // descriptor + one file of raw data
	TwoGbMaxExtentFlat   Type = "twoGbMaxExtentFlat"   // descriptor + files of raw data
	MonolithicSparse     Type = "monolithicSparse"     // one file: header, embedded descriptor, tables, grains
	TwoGbMaxExtentSparse Type = "twoGbMaxExtentSparse" // descriptor + sparse extents of any size
	VMFS                 Type = "vmfs"                 // ESXi: descriptor + one file of raw data
	VMFSSparse           Type = "vmfsSparse"           // ESXi: descriptor + one COWD extent
	Custom               Type = "custom"               // descriptor + extents of any kinds
	FullDevice           Type = "fullDevice"           // descriptor + a block device
	PartitionedDevice    Type = "partitionedDevice"    // descriptor + parts of a block device, private files, ZERO
	RDM                  Type = "vmfsRawDeviceMap"     // ESXi: descriptor + a mapping of a LUN
	PassthroughRDM       Type = "vmfsPassthroughRawDeviceMap"
	VMFSRaw              Type = "vmfsRaw"         // ESXi: descriptor + a LUN by its path
	StreamOptimized      Type = "streamOptimized" // one file of compressed grains
	SESparseType         Type = "seSparse"        // ESXi: descriptor + one space-efficient sparse extent
	VSANSparse           Type = "vsanSparse"      // objects of a vSAN, which are not files
)

// aliases are other names of types, in lower case: what old products and VMware's documents write.
var aliases = map[string]Type{
	"2gbmaxextentsparse": TwoGbMaxExtentSparse, "2gbmaxextentflat": TwoGbMaxExtentFlat,
	"vmfsthin": VMFS, "vmfspreallocated": VMFS, "vmfseagerzeroedthick": VMFS, "vmfsthick": VMFS,
	"vmfssesparse": SESparseType, "vmfsrdm": RDM, "vmfsrdmp": PassthroughRDM,
}

// known are all types by their name in lower case.
var known = func() map[string]Type {
	m := map[string]Type{}
	for _, t := range []Type{MonolithicFlat, TwoGbMaxExtentFlat, MonolithicSparse, TwoGbMaxExtentSparse, VMFS, VMFSSparse, Custom, FullDevice,
		PartitionedDevice, RDM, PassthroughRDM, VMFSRaw, StreamOptimized, SESparseType, VSANSparse} {
		m[strings.ToLower(string(t))] = t
	}
	for name, t := range aliases {
		m[name] = t
	}
	return m
}()

// typeOf is the type a createType names; VMware compares without case. An unknown one stays as it is.
func typeOf(createType string) Type {
	if t, ok := known[strings.ToLower(createType)]; ok {
		return t
	}
	return Type(createType)
}

// Creatable are the types that Create makes: disks that any program may write in place.
func Creatable() []Type {
	return []Type{MonolithicFlat, TwoGbMaxExtentSparse, MonolithicSparse, TwoGbMaxExtentFlat, VMFS, VMFSSparse}
}

// Sparse tells that the extents of a link of this type are grain-mapped, so that it may have a parent.
func (t Type) Sparse() bool {
	return t == MonolithicSparse || t == TwoGbMaxExtentSparse || t == VMFSSparse
}

// Split tells that the type has as many extents as its size needs.
func (t Type) Split() bool { return t == TwoGbMaxExtentFlat || t == TwoGbMaxExtentSparse }

// Embedded tells that the descriptor lies inside the extent.
func (t Type) Embedded() bool { return t == MonolithicSparse }

// device tells that extents of the type may be block devices.
func (t Type) device() bool {
	switch t {
	case FullDevice, PartitionedDevice, RDM, PassthroughRDM, VMFSRaw:
		return true
	}
	return false
}

// refusal is why a link of this type is not opened; nil if it may be.
func (t Type) refusal() error {
	switch t {
	case MonolithicFlat, TwoGbMaxExtentFlat, MonolithicSparse, TwoGbMaxExtentSparse, VMFS, VMFSSparse, Custom,
		FullDevice, PartitionedDevice, RDM, PassthroughRDM, VMFSRaw, StreamOptimized, SESparseType:
		return nil
	case VSANSparse:
		return fault.New(fault.Unsupported, "clone the virtual machine to another datastore, or export it, with vSphere",
			"a vsanSparse link is objects of a vSAN, which cannot be read outside it")
	}
	return unsupportedType("createType", string(t))
}
