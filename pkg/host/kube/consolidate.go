package kube

import (
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vmdk-csi/vmdk-csi/pkg/api/v1alpha1"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// consolidation puts into the status what becomes of the links that nobody needs, says when space came back, and has a disk
// whose merge runs, or begins soon, looked at again.
func (a *Agent) consolidation(vd *v1alpha1.VirtualDisk, st *diskStatus, d host.Disk) {
	st.Consolidation = consolidationOf(d)
	c := d.Consolidation
	switch {
	case c == nil:
		st.Conditions = without(st.Conditions, v1alpha1.ConditionConsolidating)
	case c.Running || c.Reason == "":
		st.set(fine(v1alpha1.ConditionConsolidating, vd.Generation, "Consolidating", fmt.Sprintf("Links that nobody needs: %d.", c.Links)))
	default:
		st.set(metav1.Condition{
			Type: v1alpha1.ConditionConsolidating, Status: metav1.ConditionFalse, Reason: "Waiting", ObservedGeneration: vd.Generation,
			Message: bounded(c.Reason, 32768),
		})
	}
	if merged := missingLinks(vd.Status.Links, st.Links); len(merged) > 0 && d.Phase != host.Retired {
		text := "Merged " + strings.Join(merged, ", ") + ": the chain has " + fmt.Sprint(len(st.Links)) + " links"
		if back := a.freedNow(vd, st, c); back > 0 {
			text += ", " + sizeText(back) + " came back to datastore " + vd.Spec.Datastore
		}
		a.say(vd, false, "Consolidated", text+".")
	}
	if c != nil && (c.Running || c.Reason == "") {
		a.disks.queue.AddAfter(vd.Name, a.p.ProgressEvery)
	}
}

// freedNow is the space that came back since it was told last: hostd's count, which starts anew with hostd, or what the
// links take less than before.
func (a *Agent) freedNow(vd *v1alpha1.VirtualDisk, st *diskStatus, c *host.Consolidation) int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c == nil || c.Freed == 0 {
		delete(a.freed, vd.Name)
		return vd.Status.UsedBytes - st.UsedBytes
	}
	if a.freed == nil {
		a.freed = map[string]int64{}
	}
	told := a.freed[vd.Name]
	a.freed[vd.Name] = c.Freed
	if c.Freed < told {
		told = 0
	}
	return c.Freed - told
}

// missingLinks are the names of links that were there and are no more.
func missingLinks(before, now []v1alpha1.DiskLink) []string {
	var gone []string
	for _, l := range before {
		if !slices.ContainsFunc(now, func(n v1alpha1.DiskLink) bool { return n.Name == l.Name }) {
			gone = append(gone, l.Name)
		}
	}
	return gone
}

// readable says whether VMware accepts the chain: it wants one capacity in all links.
func readable(generation int64, d host.Disk) metav1.Condition {
	why := d.VMwareProblem
	if why == "" && slices.ContainsFunc(d.Links, func(l host.Link) bool { return l.Size != d.Links[0].Size }) {
		why = "The links have different capacities; VMware opens the disk after its chain was consolidated or flattened."
	}
	if why != "" {
		return metav1.Condition{
			Type: v1alpha1.ConditionVMwareReadable, Status: metav1.ConditionFalse, Reason: "CapacityStep", ObservedGeneration: generation,
			Message: bounded(why, 32768),
		}
	}
	return fine(v1alpha1.ConditionVMwareReadable, generation, "OneCapacity", "Every link has the disk's capacity.")
}
