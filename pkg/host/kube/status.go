package kube

import (
	"context"
	"encoding/json"
	"hash/fnv"
	"slices"
	"strconv"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vmdk-csi/vmdk-csi/pkg/api/v1alpha1"
)

// Field managers of server-side apply. What a manager applied before and leaves out now is removed, so each payload is
// whole: everything that its manager owns.
const (
	// diskManager owns the facts of a disk. It has one name on all hosts: a host that takes over the work takes over
	// the fields, and none of its predecessor's stays.
	diskManager = "vmdk-csi-disk"
	// snapshotManager owns a snapshot's whole status, in the same way.
	snapshotManager = "vmdk-csi-snapshot"
	// attachedManager owns the condition Attached, which sums up the entries of all hosts. One name on all of them: of a
	// condition with two owners the server would keep the half that both agree on.
	attachedManager = "vmdk-csi-attached"
	// controllerManager owns what only the controller can know: that a node is gone.
	controllerManager = "vmdk-csi-controller"
)

// hostManager owns a host's entries in list maps. The API limits the name to 128 bytes, a node's name may have 253.
func hostManager(what, node string) string {
	if len(node) > 100 {
		h := fnv.New64a()
		_, _ = h.Write([]byte(node)) // hash.Hash: Write never returns an error
		node = node[:80] + "-" + strconv.FormatUint(h.Sum64(), 36)
	}
	return "vmdk-csi-" + what + "-" + node
}

// diskStatus is what diskManager and controllerManager apply. Its fields are those of v1alpha1.VirtualDiskStatus.
type diskStatus struct {
	ObservedGeneration int64                       `json:"observedGeneration,omitempty"`
	Phase              string                      `json:"phase,omitempty"`
	UUID               string                      `json:"uuid,omitempty"`
	SizeBytes          int64                       `json:"sizeBytes,omitempty"`
	UsedBytes          int64                       `json:"usedBytes,omitempty"`
	Size               string                      `json:"size,omitempty"`
	Used               string                      `json:"used,omitempty"`
	Links              []v1alpha1.DiskLink         `json:"links,omitempty"`
	Snapshots          []string                    `json:"snapshots,omitempty"`
	Consolidation      *v1alpha1.DiskConsolidation `json:"consolidation,omitempty"`
	Conditions         []metav1.Condition          `json:"conditions,omitempty"`
}

// attachStatus is what a host applies about its own attachment; nothing in it takes the host's entry away.
type attachStatus struct {
	Attachments []v1alpha1.DiskAttachment `json:"attachments,omitempty"`
}

// conditionStatus is what attachedManager applies.
type conditionStatus struct {
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// statusNow is what the object says of the fields that diskManager owns.
func statusNow(vd *v1alpha1.VirtualDisk) diskStatus {
	s := vd.Status
	out := diskStatus{
		ObservedGeneration: s.ObservedGeneration, Phase: s.Phase, UUID: s.UUID, SizeBytes: s.SizeBytes, UsedBytes: s.UsedBytes,
		Size: s.Size, Used: s.Used, Links: s.Links, Snapshots: s.Snapshots, Consolidation: s.Consolidation,
	}
	for _, c := range s.Conditions {
		if c.Type != v1alpha1.ConditionAttached {
			out.Conditions = append(out.Conditions, c)
		}
	}
	return out
}

// set puts a condition into the status and says whether it is news to a person.
func (s *diskStatus) set(c metav1.Condition) (news bool) {
	s.Conditions, news = with(s.Conditions, c)
	return news
}

// with is have with c in it, sharing nothing, and whether c is news to a person.
func with(have []metav1.Condition, c metav1.Condition) (now []metav1.Condition, news bool) {
	old := meta.FindStatusCondition(have, c.Type)
	news = old == nil || old.Status != c.Status || old.Reason != c.Reason || old.Message != c.Message
	now = slices.Clone(have)
	meta.SetStatusCondition(&now, c)
	return now, news
}

// without is have less the condition of a type, sharing nothing.
func without(have []metav1.Condition, conditionType string) []metav1.Condition {
	return slices.DeleteFunc(slices.Clone(have), func(c metav1.Condition) bool { return c.Type == conditionType })
}

// transition is c with the time of its last change, as the only element of a list.
func transition(have []metav1.Condition, c metav1.Condition) []metav1.Condition {
	var out []metav1.Condition
	if old := meta.FindStatusCondition(have, c.Type); old != nil {
		out = append(out, *old)
	}
	meta.SetStatusCondition(&out, c)
	return out
}

// applyStatus applies a status to exactly the object that o is a version of.
func applyStatus(ctx context.Context, api client.Client, o client.Object, manager string, status any) error {
	return applyStatusAt(ctx, api, o, "", manager, status)
}

// applyStatusAt is applyStatus to the version, unless it is empty; another version is a conflict.
func applyStatusAt(ctx context.Context, api client.Client, o client.Object, version, manager string, status any) error {
	raw, err := json.Marshal(status)
	if err != nil {
		return err
	}
	var fields map[string]any
	if err := json.Unmarshal(raw, &fields); err != nil {
		return err
	}
	kind := "VirtualDisk"
	switch o.(type) {
	case *v1alpha1.Datastore:
		kind = "Datastore"
	case *v1alpha1.DiskSnapshot:
		kind = "DiskSnapshot"
	}
	u := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": v1alpha1.GroupVersion.String(), "kind": kind,
		"metadata": map[string]any{"name": o.GetName(), "uid": string(o.GetUID())},
		"status":   fields,
	}}
	if version != "" {
		u.SetResourceVersion(version)
	}
	return api.Status().Apply(ctx, client.ApplyConfigurationFromUnstructured(u), client.FieldOwner(manager), client.ForceOwnership)
}
