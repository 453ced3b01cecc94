package remote_test

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/remote"
	"github.com/vmdk-csi/vmdk-csi/pkg/san"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/lunpath"
)

// copyLUN is what an array's clone of the LUN is, cut off at size if that is not 0.
func copyLUN(t *testing.T, from string, size int64) string {
	t.Helper()
	in, err := os.Open(from)
	must(t, err)
	defer in.Close()
	path := filepath.Join(t.TempDir(), "copy")
	out, err := os.Create(path)
	must(t, err)
	_, err = io.Copy(out, in)
	must(t, err, out.Close())
	if size > 0 {
		must(t, os.Truncate(path, size))
	}
	return path
}

// Everything that can be wrong with a node's path to the LUN, by lunpath: each is told with its kind, NBD serves meanwhile, and SAN as soon as the
// path is right. Nothing that was written is lost.
func TestLUNFaults(t *testing.T) {
	r, other := newRig(t), newRig(t)
	id := r.create("v", host.EagerZeroedThick)
	clone := copyLUN(t, r.path, 0)
	info, err := os.Stat(r.path)
	must(t, err)
	blank := filepath.Join(t.TempDir(), "blank")
	must(t, os.WriteFile(blank, nil, 0o600), os.Truncate(blank, info.Size()))
	small := filepath.Join(t.TempDir(), "small")
	must(t, os.WriteFile(small, make([]byte, 1<<20), 0o600))
	r.kill()
	r.start() // what the owner says at its start is not on the clone
	where := &atomic.Pointer[string]{}
	where.Store(&r.path)
	c, _ := r.config(id, "node1")
	c.OpenLUN = func(ctx context.Context, want san.LUN) (fsx.File, error) {
		f, _, err := lunpath.Open(ctx, *where.Load(), lunpath.Options{ReadWrite: true}.Want(want))
		return f, err
	}
	d := r.open(c)
	l := startLoad(t, d)
	for _, x := range []struct {
		what, where string
		kind        fault.Kind
	}{
		{"missing", r.path + "-none", fault.NotFound},
		{"another store's", other.path, fault.Precondition},
		{"a clone of it", clone, fault.Precondition},
		{"without a store", blank, fault.NotFound},
		{"too small", small, fault.OutOfRange},
		{"a directory", filepath.Dir(r.path), fault.Invalid},
	} {
		r.becomes(d, remote.SAN)
		l.more(30)
		where.Store(&x.where)
		must(t, r.mds.maps.Recall(ctx, id)) // the next map meets the path as it is now
		until(t, "it is told that the LUN is "+x.what, func() bool {
			s := d.State()
			return s.Transport == remote.NBD && len(s.Skipped) == 1 && s.Skipped[0].Reason.Kind == x.kind && s.Skipped[0].Reason.Remedy != ""
		})
		l.more(30)
		where.Store(&r.path)
	}
	r.becomes(d, remote.SAN)
	l.finish(d)
	must(t, d.Close(), r.api("node1").CloseVolume(ctx, id))
	r.stored(id, l.want)
}
