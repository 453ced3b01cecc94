package driver

import (
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/stage"
)

const (
	mib = 1 << 20
	gib = 1 << 30
	tib = 1 << 40
)

// defaultSize is what a volume gets whose size is not asked for.
const defaultSize int64 = 1 * gib

// Sizes below which the volume could be made and not used.
const (
	minXFS   int64 = 300 * mib // mkfs.xfs(8), "-d size": smaller file systems are not supported
	minBtrfs int64 = 109 * mib // mkfs.btrfs: "minimum size for each btrfs device is 114294784"
	minGPT   int64 = 4 * mib   // 1 MiB in front of the partition, the backup table behind it, and room for a file system
)

var minFileSystem = map[string]int64{"xfs": minXFS, "btrfs": minBtrfs}

// minSize is the smallest size that every one of the capabilities can use.
func minSize(cs []capability, p parameters) int64 {
	least := host.MinCapacity
	if p.partition == stage.PartitionGPT {
		least = minGPT
	}
	for _, c := range cs {
		need := minFileSystem[c.fsType]
		if need > 0 && p.partition == stage.PartitionGPT {
			need += 2 * mib
		}
		least = max(least, need)
	}
	return least
}

// sizeOf is the size in bytes that r asks for: the required bytes rounded up to whole MiB, never above the limit; standard
// where r leaves it open.
func sizeOf(r *csi.CapacityRange, least, standard int64) (int64, error) {
	required, limit := r.GetRequiredBytes(), r.GetLimitBytes()
	outOfRange := func(format string, args ...any) error {
		return fault.New(fault.OutOfRange, fmt.Sprintf("allowed: %s to %s, in whole MiB", sizeText(least), sizeText(host.MaxCapacity)),
			format, args...)
	}
	switch {
	case required < 0 || limit < 0:
		return 0, outOfRange("capacity_range has a negative size (required %d, limit %d)", required, limit)
	case limit > 0 && limit < required:
		return 0, outOfRange("limit_bytes %d is less than required_bytes %d", limit, required)
	case limit > 0 && limit < least:
		return 0, outOfRange("limit_bytes %d is less than the smallest size", limit)
	case required > host.MaxCapacity:
		return 0, outOfRange("required_bytes %d is more than the largest size", required)
	case required > 0 && roundUp(required) < least:
		return 0, outOfRange("required_bytes %d is less than the smallest size", required)
	}
	size := roundUp(required)
	if required == 0 {
		size = max(standard, least)
		if limit > 0 {
			size = min(size, limit-limit%host.CapacityUnit)
		}
	}
	if limit > 0 && size > limit {
		return 0, outOfRange("no whole number of MiB is between required_bytes %d and limit_bytes %d", required, limit)
	}
	return size, nil
}

func roundUp(n int64) int64 {
	return (n + host.CapacityUnit - 1) / host.CapacityUnit * host.CapacityUnit
}

func sizeText(n int64) string {
	for _, u := range []struct {
		size int64
		name string
	}{{tib, "TiB"}, {gib, "GiB"}, {mib, "MiB"}} {
		if n >= u.size && n%u.size == 0 {
			return fmt.Sprintf("%d %s", n/u.size, u.name)
		}
	}
	return fmt.Sprintf("%d bytes", n)
}

func outOfLimit(id string, size, limit int64) error {
	return fault.New(fault.OutOfRange, "a disk cannot shrink; allowed: "+sizeText(size)+" and more",
		"volume %s has %s, more than limit_bytes %d", id, sizeText(size), limit)
}
