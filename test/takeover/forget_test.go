package takeover

import (
	"bytes"
	"context"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
	"github.com/vmdk-csi/vmdk-csi/pkg/worker"
)

// forgetful is a Pending whose table is always found empty: what a worker without a hand-over table would be.
type forgetful struct{ chain.Pending }

func (forgetful) Load() []chain.PendingEntry { return nil }

func openForgetful(ctx context.Context, r worker.OpenRequest) (worker.Disk, error) {
	r.Pending = forgetful{r.Pending}
	return worker.OpenChain(ctx, r)
}

// TestAcknowledgedIsKept writes without ever flushing, kills, and reads back. With the table everything is there; a worker
// that forgets the table loses it, so the test sees what it is about.
func TestAcknowledgedIsKept(t *testing.T) {
	need(t)
	for _, c := range []struct {
		opener string
		keeps  bool
	}{{"chain", true}, {"forgetful", false}} {
		t.Run(c.opener, func(t *testing.T) {
			rnd := seeded(t)
			d := newDisk(t, "sparse")
			d.opener = c.opener
			h := &local{}
			r := attach(t, d, h, false)
			defer r.detach(t)
			f, err := os.OpenFile(r.loop.Path(), os.O_RDWR|unix.O_DIRECT, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			out, in := aligned(t), aligned(t)
			kept := true
			for i := range int64(8) {
				for j := range out {
					out[j] = byte(rnd.Uint32()) | 1
				}
				if _, err := f.WriteAt(out, i*8<<20); err != nil {
					t.Fatal(err)
				}
				if i%4 == 3 {
					h.kill(t)
				}
				if _, err := f.ReadAt(in, i*8<<20); err != nil {
					t.Fatal(err)
				}
				kept = kept && bytes.Equal(in, out)
			}
			if kept != c.keeps {
				t.Errorf("acknowledged data kept: %v", kept)
			}
		})
	}
}
