package vmdk

import "github.com/vmdk-csi/vmdk-csi/pkg/fault"

// SectorSize is the unit of every number in a descriptor and a sparse header, whatever the guest's block size.
const SectorSize = 512

// Format is how the space of a flat disk is taken at creation.
type Format string

// Formats of flat disks. For sparse types only Thin has a meaning.
const (
	Thin             Format = "thin"             // holes: space is taken when written
	ZeroedThick      Format = "zeroedthick"      // space is reserved, not written
	EagerZeroedThick Format = "eagerzeroedthick" // every byte is written with zeros
)

// ExtentKind is how the bytes of an extent are found.
type ExtentKind int

// Extent kinds.
const (
	Flat     ExtentKind = iota + 1 // byte x of the extent is byte offset+x of the file
	Sparse                         // grains found through a directory and tables
	Zero                           // no file: reads as zeros, cannot be written
	Stream                         // compressed grains, only read (streamOptimized)
	SESparse                       // 4 KiB grains of ESXi's snapshots, only read
)

func (k ExtentKind) String() string {
	switch k {
	case Flat:
		return "FLAT"
	case Sparse:
		return "SPARSE"
	case Zero:
		return "ZERO"
	case Stream:
		return "SPARSE (compressed)"
	case SESparse:
		return "SESPARSE"
	}
	return "unknown"
}

// Limits of the format and of this package.
const (
	// MaxSparseExtent is the most guest space one sparse extent holds here: a 32-bit table entry reaches 2 TiB of
	// file, and 8 GiB of it are left for tables and for grains that were given up.
	MaxSparseExtent int64 = 2040 << 30
	// MaxCapacity is VMware's limit of a disk (62 TiB, vSphere configuration maximums).
	MaxCapacity int64 = 62 << 40
	// DefaultGrainSectors is 64 KiB, what every VMware product writes.
	DefaultGrainSectors = 128

	// CowdGrainSectors is 512 bytes, what ESXi writes into COWD extents.
	CowdGrainSectors = 1

	minGrainSectors     = 8          // 4 KiB (Virtual Disk Format 5.0)
	maxGrainSectors     = 2048       // 1 MiB, bounds the memory of one copy-on-write
	maxFileSectors      = 1 << 32    // what a 32-bit table entry reaches
	maxDirectoryBytes   = 64 << 20   // a grain directory; that of MaxSparseExtent in 64 KiB grains has 255 KiB
	maxSplitFlat        = 2047 << 20 // VMware's classic split size
	maxDescriptorBytes  = 1 << 20
	maxDescriptorLines  = 8192
	maxExtents          = 4096
	maxExtentName       = 4096
	embeddedDescSectors = 20 // what VMware, VirtualBox and qemu reserve
)

// unsupportedType explains a createType or extent type that is valid but not handled.
func unsupportedType(what, name string) error {
	return fault.New(fault.Unsupported, "convert the disk with qemu-img or vmkfstools to monolithicSparse, twoGbMaxExtentSparse or monolithicFlat",
		"%s %q is not supported", what, clip(name))
}
