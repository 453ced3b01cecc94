package chain_test

import (
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// TestHostileCOWD changes bytes of the metadata of a COWD extent at random: it is refused with a reason, or read and written as
// far as it makes sense, and nothing panics.
func TestHostileCOWD(t *testing.T) {
	d := newDisk(t, seeded(t), vmdk.CreateParams{Type: vmdk.VMFSSparse, Capacity: 5 * mib})
	d.open()
	d.steps(10)
	d.close()
	file, err := d.dir.Open("disk-delta.vmdk", fsx.ReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	info, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	whole := make([]byte, info.Size)
	if _, err := file.ReadAt(whole, 0); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	refused := 0
	const tries = 150
	for range tries {
		f, err := d.dir.Open("disk-delta.vmdk", fsx.ReadWrite)
		if err != nil {
			t.Fatal(err)
		}
		bad := append([]byte(nil), whole...)
		for range 1 + d.r.IntN(4) {
			at := d.r.Int64N(64)
			if d.r.IntN(2) == 0 {
				at = 2048 + d.r.Int64N(20<<10) // directory and first table
			}
			bad[at] = byte(d.r.IntN(256))
		}
		bad = bad[:len(bad)-d.r.IntN(2)*d.r.IntN(len(bad)/2)]
		if err := f.Truncate(0); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(bad, 0); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		c, err := chain.Open(d.dir, d.refs, chain.Options{})
		if err != nil {
			if fault.KindOf(err) == "" {
				t.Fatalf("no kind: %v", err)
			}
			refused++
			continue
		}
		b := make([]byte, min(c.Size(), 8*mib))
		for off := int64(0); off < int64(len(b)); off += 64 << 10 {
			_, _ = c.ReadAt(b[off:min(off+64<<10, int64(len(b)))], off)
			if d.r.IntN(4) == 0 {
				_, _ = c.WriteAt(b[off:off+512], off)
			}
		}
		_ = c.Close()
	}
	if refused == 0 || refused == tries {
		t.Errorf("%d of %d were refused", refused, tries)
	}
}
