package chain_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/sys"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// TestDiscardWithoutHoles: on a file system that cannot punch a trim must not become a write of zeros over everything.
func TestDiscardWithoutHoles(t *testing.T) {
	const size = 8 << 20
	for _, typ := range []vmdk.Type{vmdk.MonolithicFlat, vmdk.TwoGbMaxExtentSparse} {
		t.Run(string(typ), func(t *testing.T) {
			m, err := sys.DetachedMount("ramfs", nil, 0)
			if err != nil {
				t.Skipf("a ramfs of our own needs CAP_SYS_ADMIN: %v", err)
			}
			defer m.Close()
			fd, err := sys.Fd(m)
			if err != nil {
				t.Fatal(err)
			}
			d, err := fsx.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", fd))
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			if _, err := vmdk.Create(t.Context(), d, "disk.vmdk", vmdk.CreateParams{Capacity: size, Type: typ}); err != nil {
				t.Fatal(err)
			}
			c, err := chain.Open(d, []chain.Ref{{Name: "disk.vmdk"}}, chain.Options{})
			if err != nil {
				t.Fatal(err)
			}
			data := bytes.Repeat([]byte{7}, size)
			if _, err := c.WriteAt(data, 0); err != nil {
				t.Fatal(err)
			}
			// A sparse disk gives grains up before it learns that their room is lost: up to a few runs, and no more.
			for off := int64(0); ; off += 128 << 10 {
				if off == size/2 {
					t.Fatal("grains are given up without end")
				}
				if err = c.Discard(off, 64<<10); err != nil {
					break
				}
				clear(data[off : off+64<<10])
				if err := c.Flush(); err != nil {
					t.Fatal(err)
				}
			}
			if fault.KindOf(err) != fault.Unsupported {
				t.Fatalf("Discard: %v", err)
			}
			if err := c.WriteZeroes(size/2, 100_000); err != nil {
				t.Fatal(err)
			}
			clear(data[size/2 : size/2+100_000])
			if _, err := c.WriteAt(data[:1<<20], 0); err != nil { // over what was given up
				t.Fatal(err)
			}
			got := make([]byte, size)
			if _, err := c.ReadAt(got, 0); err != nil || !bytes.Equal(got, data) {
				t.Fatalf("the content is not what was written, or %v", err)
			}
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
			if rep, err := vmdk.Check(t.Context(), d, "disk.vmdk"); err != nil || !rep.Sound() {
				t.Fatalf("%v %v", rep.Problems, err)
			}
		})
	}
}
