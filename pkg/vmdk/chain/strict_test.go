package chain_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/vmdktest"
)

// strict fails for everything in the closed disk that the strictest reader would refuse.
func (d *disk) strict(when string) {
	d.t.Helper()
	for _, r := range d.refs {
		for _, w := range vmdktest.Lint(d.path, r.Name) {
			d.t.Errorf("%s: %s", when, w)
		}
	}
}

// TestStrictOutput: what is made, written, grown and has children is what the strictest published readers take.
func TestStrictOutput(t *testing.T) {
	chosen := sample(t, len(peerDisks), 4)
	for i, k := range peerDisks {
		if !chosen(i) {
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			d := newDisk(t, seeded(t), k.p)
			d.strict("made")
			use := func(when string, first func()) {
				d.open()
				first()
				d.steps(12)
				d.close()
				d.strict(when)
			}
			use("written", func() {})
			use("grown", d.grow)
			for range 2 {
				d.addChild(vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse})
				d.strict("a child")
				use("a written child", func() {})
			}
			use("a grown child", d.grow)
		})
	}
}

// TestStrictSees: each rule of the linter is broken once.
func TestStrictSees(t *testing.T) {
	for _, c := range []struct {
		name string
		typ  vmdk.Type
		file string
		at   int64
		with string
	}{
		{"first line", vmdk.TwoGbMaxExtentSparse, "disk.vmdk", 0, "# disk"},
		{"line ends", vmdk.MonolithicFlat, "disk.vmdk", 21, "\r"},
		{"version", vmdk.MonolithicFlat, "disk.vmdk", 30, "3"},
		{"magic", vmdk.TwoGbMaxExtentSparse, "disk-s001.vmdk", 0, "VMDK"},
		{"header version", vmdk.TwoGbMaxExtentSparse, "disk-s001.vmdk", 4, "\x02"},
		{"flags", vmdk.TwoGbMaxExtentSparse, "disk-s001.vmdk", 8, "\x01"},
		{"capacity", vmdk.TwoGbMaxExtentSparse, "disk-s001.vmdk", 12, "\x01"},
		{"unclean", vmdk.MonolithicSparse, "disk.vmdk", 72, "\x01"},
		{"newline bytes", vmdk.MonolithicSparse, "disk.vmdk", 73, "\r"},
		{"compression", vmdk.MonolithicSparse, "disk.vmdk", 77, "\x01"},
		{"tail of the descriptor", vmdk.MonolithicSparse, "disk.vmdk", 21*512 - 1, "x"},
		{"a table that is missing", vmdk.TwoGbMaxExtentSparse, "disk-s001.vmdk", 512, "\x00\x00\x00\x00"},
		{"COWD magic", vmdk.VMFSSparse, "disk-delta.vmdk", 0, "VMDK"},
		{"COWD capacity", vmdk.VMFSSparse, "disk-delta.vmdk", 12, "\x01"},
		{"COWD unclean", vmdk.VMFSSparse, "disk-delta.vmdk", 1648, "\x01"},
		{"COWD free sector", vmdk.VMFSSparse, "disk-delta.vmdk", 28, "\x04"},
		{"COWD table in the header", vmdk.VMFSSparse, "disk-delta.vmdk", 2048, "\x01"},
		{"an entry in one copy", vmdk.TwoGbMaxExtentSparse, "disk-s001.vmdk", 1024, "\x80"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newDisk(t, seeded(t), vmdk.CreateParams{Type: c.typ, Capacity: 4 * mib})
			name := filepath.Join(d.path, c.file)
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			copy(b[c.at:], c.with)
			if err := os.WriteFile(name, b, 0o600); err != nil {
				t.Fatal(err)
			}
			if len(vmdktest.Lint(d.path, d.refs[0].Name)) == 0 {
				t.Error("not seen")
			}
		})
	}
}
