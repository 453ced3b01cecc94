package chain_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// customDisk has, one MiB each: a flat part of a file, nothing (ZERO), a hosted sparse extent, a COWD extent, another part of
// that file that is only read, an extent that must not be touched, and a VMFS file.
func customDisk(t *testing.T) *disk {
	t.Helper()
	d := newDisk(t, seeded(t), vmdk.CreateParams{Type: vmdk.MonolithicFlat, Capacity: 7 * mib})
	put := func(name string, b []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(d.path, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, typ := range map[string]vmdk.Type{"a.vmdk": vmdk.TwoGbMaxExtentSparse, "b.vmdk": vmdk.VMFSSparse} {
		if _, err := vmdk.Create(context.Background(), d.dir, name, vmdk.CreateParams{Type: typ, Capacity: mib}); err != nil {
			t.Fatal(err)
		}
	}
	put("parts.raw", append(fillOf(2*mib, 0x11), fillOf(mib, 0x22)...))
	put("secret.raw", fillOf(mib, 0x33))
	put("v.raw", fillOf(mib, 0x44))
	lines := []string{`RW 2048 FLAT "parts.raw" 2048`, `RW 2048 ZERO`, `RW 2048 SPARSE "a-s001.vmdk"`, `RW 2048 VMFSSPARSE "b-delta.vmdk"`,
		`RDONLY 2048 FLAT "parts.raw" 4096`, `NOACCESS 2048 FLAT "secret.raw" 0`, `RW 2048 VMFS "v.raw"`}
	put("disk.vmdk", fmt.Appendf(nil, "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"custom\"\n\n%s\n", strings.Join(lines, "\n")))
	copy(d.want, fillOf(mib, 0x11))
	copy(d.want[4*mib:], fillOf(mib, 0x22))
	copy(d.want[6*mib:], fillOf(mib, 0x44))
	return d
}

// TestCustom: every extent takes its part of the address space, and those that may be written are.
func TestCustom(t *testing.T) {
	d := customDisk(t)
	d.o = chain.Options{Locks: true, Pending: &chain.MemoryPending{Max: 50}}
	d.open()
	d.checkAll()
	for i := range int64(7) {
		b := fillOf(9000, byte(0xa0+i))
		_, err := d.c.WriteAt(b, i*mib+1000)
		if frozen := i == 1 || i == 4 || i == 5; frozen != (fault.KindOf(err) == fault.ReadOnly) || !frozen && err != nil {
			t.Errorf("write into extent %d: %v", i, err)
		} else if !frozen {
			copy(d.want[i*mib+1000:], b)
		}
	}
	if err := d.c.WriteZeroes(4*mib, 4096); fault.KindOf(err) != fault.ReadOnly {
		t.Errorf("zeroing of a RDONLY extent: %v", err)
	}
	if err := d.c.Discard(mib, mib); err != nil {
		t.Errorf("discard of a ZERO extent: %v", err)
	}
	d.checkAll()
	d.close()
	d.open()
	d.checkAll()
	d.close()
	d.sound()
	d.addChild(vmdk.CreateParams{Type: vmdk.VMFSSparse})
	d.open()
	d.steps(30)
	d.close()
	d.open()
	d.checkAll()
}

// TestMissingTables: an extent whose directory has entries of 0 and 1 is read as that means, and written.
func TestMissingTables(t *testing.T) {
	for _, version := range []uint32{2, 3} {
		t.Run(fmt.Sprint("version ", version), func(t *testing.T) {
			d := newDisk(t, seeded(t), vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse, Capacity: 10 * mib, GrainSectors: 8})
			name := filepath.Join(d.path, "disk-s001.vmdk")
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			binary.LittleEndian.PutUint32(b[4:], version)
			b[8] |= 4                          // zero entries are in use
			for _, at := range []int{48, 56} { // both directories: some tables missing, some all zeros
				dir := b[binary.LittleEndian.Uint64(b[at:])*512:]
				binary.LittleEndian.PutUint32(dir[0:], 0)
				binary.LittleEndian.PutUint32(dir[4:], 1)
				binary.LittleEndian.PutUint32(dir[8:], 0)
				binary.LittleEndian.PutUint32(dir[12:], 1)
			}
			if err := os.WriteFile(name, b, 0o600); err != nil {
				t.Fatal(err)
			}
			d.o = chain.Options{Pending: &chain.MemoryPending{Max: 50}}
			d.open()
			d.steps(40)
			d.close()
			d.open()
			d.checkAll()
			d.steps(10)
			d.close()
			d.sound()
			d.qemuReads()
			if after, err := os.ReadFile(name); err != nil || binary.LittleEndian.Uint32(after[4:]) != version {
				t.Errorf("the header's version is %d (%v)", after[4], err)
			}
		})
	}
}

// TestRenamedAndForeign: an embedded disk opens under another name, and unknown keys, comments and the bytes of a foreign
// encoding survive what is written.
func TestRenamedAndForeign(t *testing.T) {
	d := newDisk(t, seeded(t), vmdk.CreateParams{Type: vmdk.MonolithicSparse, Capacity: 2 * mib})
	if err := d.dir.Rename("disk.vmdk", "other name.vmdk"); err != nil {
		t.Fatal(err)
	}
	d.refs[0].Name = "other name.vmdk"
	d.open()
	d.steps(10)
	d.close()
	d.sound()

	path := t.TempDir()
	dir, err := fsx.OpenRoot(path)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	const name = "\xb2\xe2\xca\xd4-flat.vmdk" // GBK
	keep := []string{"encoding=\"GBK\"", "# \xb2\xe2\xca\xd4", "vendorKey = \"\xb2\xe2\"", "ddb.vendor.key = \"x y\""}
	text := "# Disk DescriptorFile\nversion=1\n" + keep[0] + "\nCID=12345678\nparentCID=ffffffff\ncreateType=\"vmfsThin\"\n" + keep[2] + "\n" + keep[1] +
		"\nRW 128 VMFS \"" + name + "\"\n" + keep[3] + "\n"
	if err := os.WriteFile(filepath.Join(path, name), make([]byte, 65536), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(path, "d.vmdk"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := chain.Open(dir, []chain.Ref{{Name: "d.vmdk"}}, chain.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.WriteAt(fillOf(512, 1), 0); err != nil {
		t.Fatal(err)
	}
	if err := c.Grow(context.Background(), 128<<10); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile(filepath.Join(path, "d.vmdk"))
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range append(keep, name, "createType=\"vmfsThin\"", "RW 256 VMFS") {
		if !strings.Contains(string(after), k) {
			t.Errorf("%q is gone:\n%s", k, after)
		}
	}
}
