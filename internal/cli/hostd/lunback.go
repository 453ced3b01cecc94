package hostd

import (
	"context"
	"slices"

	"github.com/vmdk-csi/vmdk-csi/internal/sys"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/lun"
	"github.com/vmdk-csi/vmdk-csi/pkg/remote"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/lunpath"
	"github.com/vmdk-csi/vmdk-csi/pkg/worker"
)

// returned replaces a worker that cannot open a LUN which this process can: its walls are put up once, around what is there then, so that a
// LUN that was missing and came back, or whose directory was mounted anew, is behind them. Its successor takes the disk over as
// after an accident. A worker is replaced once until it reached the LUN again: what is denied for another reason stays denied.
func (w *remoteWorkers) returned(ctx context.Context, h *worker.Handle, s lun.WorkerSpec, replaced map[*worker.Handle]bool) {
	st := h.State()
	if st.Transport == remote.SAN {
		delete(replaced, h)
	}
	denied := slices.ContainsFunc(st.Skipped, func(k remote.Skip) bool {
		return k.Transport == remote.SAN && k.Reason != nil && k.Reason.Kind == fault.Denied
	})
	i := slices.IndexFunc(w.l.o.LUNs, func(d LUN) bool { return d.Name == s.Datastore })
	if !denied || replaced[h] || i < 0 || lunpath.IsURL(w.l.o.LUNs[i].Where) {
		return
	}
	f, _, err := lunpath.Open(ctx, w.l.o.LUNs[i].Where, lunpath.Options{})
	if err != nil {
		return
	}
	f.Close()
	p, err := h.PidFD()
	if err != nil {
		return // it is being replaced already
	}
	defer p.Close()
	w.l.log.Info("a LUN is there again, behind the walls of a disk's worker; another worker takes over", "disk", s.ID, "datastore", s.Datastore)
	replaced[h] = true
	if err := sys.PidfdKill(p); err != nil {
		w.l.log.Warn("a worker cannot be replaced", "disk", s.ID, "error", err)
	}
}
