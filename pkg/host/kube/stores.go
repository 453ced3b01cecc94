package kube

import (
	"cmp"
	"context"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vmdk-csi/vmdk-csi/pkg/api/v1alpha1"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/transport"
)

// watchDatastores looks at the datastores again and again, and writes this host's view of them.
func (a *Agent) watchDatastores(ctx context.Context) {
	tick := time.NewTicker(a.p.DatastoreEvery)
	defer tick.Stop()
	for {
		if err := a.lookAtDatastores(ctx); err != nil && ctx.Err() == nil {
			a.log.Warn("the datastores' status is not current", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// lookTime is how long hostd may take to say what it has. It gives up on a datastore that does not answer before that;
// making and deleting may take as long as they need.
const lookTime = 30 * time.Second

// lookAtDatastores compares every Datastore object with what hostd serves.
func (a *Agent) lookAtDatastores(ctx context.Context) error {
	look, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	served, unreachable := a.p.Hostd.Datastores(look)
	var objects v1alpha1.DatastoreList
	if err := a.api.List(ctx, &objects); err != nil {
		return apiFault(err, "list datastores")
	}
	for i := range objects.Items {
		ds := &objects.Items[i]
		entry, err := a.view(ds, served, unreachable)
		state := a.store(ds.Name)
		state.err = err
		if a.worthWriting(state, hostStatus(ds, a.p.Node), entry) {
			err := applyStatus(ctx, a.api, ds, hostManager("datastore", a.p.Node), map[string]any{
				"hosts": []v1alpha1.DatastoreHostStatus{entry},
			})
			if err != nil {
				return apiFault(err, "write the status of datastore %s", ds.Name)
			}
			state.written, state.at = entry, time.Now()
		}
		a.mu.Lock()
		if a.stores == nil {
			a.stores = map[string]storeState{}
		}
		a.stores[ds.Name] = state
		a.mu.Unlock()
	}
	return nil
}

// view is this host's entry for ds, and why it cannot be used.
func (a *Agent) view(ds *v1alpha1.Datastore, served []host.Datastore, unreachable error) (v1alpha1.DatastoreHostStatus, error) {
	entry := v1alpha1.DatastoreHostStatus{Host: a.p.Node, ObservedTime: metav1.Now().Rfc3339Copy()}
	if old := hostStatus(ds, a.p.Node); old != nil {
		entry.TotalBytes, entry.FreeBytes, entry.TotalText, entry.FreeText = old.TotalBytes, old.FreeBytes, old.TotalText, old.FreeText
	}
	refuse := func(err error) (v1alpha1.DatastoreHostStatus, error) {
		entry.Ready, entry.Reason = false, bounded(err.Error(), 1024)
		return entry, err
	}
	if unreachable != nil {
		return refuse(fault.New(fault.Unavailable, "See the pod vmdk-hostd on this node.", "vmdk-hostd does not answer: %w", unreachable))
	}
	for _, s := range served {
		if s.Name != ds.Name {
			continue
		}
		for _, h := range s.Hosts {
			if h.Host != a.p.Node && len(s.Hosts) > 1 {
				continue
			}
			entry.TotalBytes, entry.FreeBytes = h.Total, h.Free
			entry.TotalText, entry.FreeText = sizeText(h.Total), sizeText(h.Free)
			entry.Transports = transportsOf(h.Transports)
			if !h.Ready {
				return refuse(fault.New(fault.Unavailable, "", "%s", h.Reason))
			}
			if kind := cmp.Or(s.Kind, host.Directory); kind != cmp.Or(host.DatastoreKind(ds.Spec.Kind), host.Directory) {
				return refuse(fault.New(fault.Precondition, "Make the object and vmdk-hostd's --datastore agree.",
					"the Datastore object is of kind %s, vmdk-hostd serves it as %s", ds.Spec.Kind, kind))
			}
			if string(s.Scope) != ds.Spec.Scope {
				return refuse(fault.New(fault.Precondition, "Make the object and vmdk-hostd's --datastore agree.",
					"the Datastore object has scope %s, vmdk-hostd serves it with scope %s", ds.Spec.Scope, s.Scope))
			}
			entry.Ready = true
			return entry, nil
		}
	}
	return refuse(fault.New(fault.NotFound, "Give vmdk-hostd the option --datastore for it.", "vmdk-hostd on this node does not serve it"))
}

// worthWriting keeps the API server from hearing every byte: readiness at once, room when it changed by a hundredth of
// the whole, the time of observation once a minute.
func (a *Agent) worthWriting(s storeState, have *v1alpha1.DatastoreHostStatus, entry v1alpha1.DatastoreHostStatus) bool {
	w := s.written
	if have == nil || s.at.IsZero() || have.Ready != entry.Ready || have.Reason != entry.Reason || w.TotalBytes != entry.TotalBytes ||
		!slices.EqualFunc(have.Transports, entry.Transports, sameUse) {
		return true
	}
	moved := w.FreeBytes - entry.FreeBytes
	return moved > entry.TotalBytes/100 || -moved > entry.TotalBytes/100 || time.Since(s.at) > time.Minute
}

// sameUse: the reason alone is no news.
func sameUse(a, b v1alpha1.TransportStatus) bool {
	return a.Transport == b.Transport && a.Usable == b.Usable
}

func (a *Agent) store(name string) storeState {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.stores[name]
}

// datastoreError is why the datastore could not be used at the last look; nil before the first.
func (a *Agent) datastoreError(name string) error { return a.store(name).err }

// borrowed says that the node has the disk by NBD: its hostd asks the host that lends it, whatever it reaches itself.
func borrowed(vd *v1alpha1.VirtualDisk, node string) bool {
	have := attachmentHere(vd, node)
	return have != nil && have.Transport == transport.NameNBD
}

// judgeDatastore sets condition DatastoreReady.
func (a *Agent) judgeDatastore(vd *v1alpha1.VirtualDisk, st *diskStatus) {
	a.mu.Lock()
	state, known := a.stores[vd.Spec.Datastore]
	a.mu.Unlock()
	switch {
	case !known:
	case state.err != nil && borrowed(vd, a.p.Node):
		st.set(fine(v1alpha1.ConditionDatastoreReady, vd.Generation, "Lent", "Host "+a.p.Node+" reaches the disk through another host."))
	case state.err != nil:
		st.set(failed(v1alpha1.ConditionDatastoreReady, vd.Generation, fault.Wrap(state.err, "host %s", a.p.Node)))
	default:
		st.set(fine(v1alpha1.ConditionDatastoreReady, vd.Generation, "Reached", "Host "+a.p.Node+" reaches datastore "+vd.Spec.Datastore+"."))
	}
}
