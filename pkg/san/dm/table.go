package dm

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/san"
)

const sector = 512

// Target is one line of a table: Len bytes at Start of the device.
type Target struct {
	Start, Len int64  // bytes, multiples of 512
	Kind       string // "linear", "zero", "error"
	Params     string // of linear: MAJOR:MINOR SECTOR
}

// Number is a block device's.
type Number struct{ Major, Minor uint32 }

func (n Number) String() string { return fmt.Sprintf("%d:%d", n.Major, n.Minor) }

// NumberOf is the number of the block device at a path. Kinds: Unsupported (a file: the device mapper takes devices only), NotFound.
func NumberOf(path string) (Number, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return Number{}, fault.Wrap(err, "%s", path)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return Number{}, fault.New(fault.Unsupported, "Make a loop device of it (losetup --direct-io=on).", "%s is no block device", path)
	}
	return Number{unix.Major(st.Rdev), unix.Minor(st.Rdev)}, nil
}

// Table is that of a map, whose LUNs are the devices luns. It validates the map. Kinds: Invalid.
func Table(m *san.Map, luns []Number) ([]Target, error) {
	if err := m.Validate(); err != nil {
		return nil, err
	}
	if len(luns) != len(m.LUNs) {
		return nil, fault.New(fault.Invalid, "", "%d devices for a map of %d LUNs", len(luns), len(m.LUNs))
	}
	table := make([]Target, 0, len(m.Extents))
	for _, x := range m.Extents {
		t := Target{Start: x.Off, Len: x.Len, Kind: "zero"}
		if !x.Zero {
			t.Kind, t.Params = "linear", fmt.Sprintf("%s %d", luns[x.LUN], x.Place/sector)
		}
		table = append(table, t)
	}
	return table, nil
}

// errorTable is a table of the same size that fails every request.
func errorTable(size int64) []Target { return []Target{{Len: size, Kind: "error"}} }

func sizeOf(table []Target) int64 {
	if len(table) == 0 {
		return 0
	}
	last := table[len(table)-1]
	return last.Start + last.Len
}
