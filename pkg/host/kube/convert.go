package kube

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vmdk-csi/vmdk-csi/pkg/api/v1alpha1"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

func condition(vd *v1alpha1.VirtualDisk, t string) *metav1.Condition {
	return meta.FindStatusCondition(vd.Status.Conditions, t)
}

// rawPrefix marks a name that JSON cannot carry as it is: base64 of its bytes follows. A name that starts with it is
// encoded too, so that every text has one meaning.
const rawPrefix = "base64:"

func nameToText(name string) string {
	if utf8.ValidString(name) && !strings.HasPrefix(name, rawPrefix) {
		return name
	}
	return rawPrefix + base64.StdEncoding.EncodeToString([]byte(name))
}

// nameFromText undoes nameToText. What nameToText cannot have written is taken as it is.
func nameFromText(text string) string {
	if rest, ok := strings.CutPrefix(text, rawPrefix); ok {
		if raw, err := base64.StdEncoding.DecodeString(rest); err == nil {
			return string(raw)
		}
	}
	return text
}

// specOf is the request that the object was made by.
func specOf(vd *v1alpha1.VirtualDisk) host.DiskSpec {
	spec := host.DiskSpec{
		Name: nameFromText(vd.Spec.Name), Datastore: vd.Spec.Datastore, Size: vd.Spec.InitialSizeBytes,
		Format: host.DiskFormat(vd.Spec.DiskFormat), Type: host.DiskType(vd.Spec.DiskType), Host: vd.Spec.Host,
		CloneMode: host.CloneMode(vd.Spec.CloneMode),
	}
	if from := vd.Spec.Source; from != nil {
		spec.Source = &host.Source{Snapshot: from.Snapshot, Disk: from.Disk}
	}
	return spec
}

// diskOf is the disk as its object tells.
func diskOf(vd *v1alpha1.VirtualDisk, shared bool) host.Disk {
	spec := specOf(vd)
	spec.Host = "" // a wish, not part of the identity
	d := host.Disk{
		ID: vd.Name, Spec: spec, Size: vd.Status.SizeBytes, UUID: vd.Status.UUID, Phase: phaseOf(vd),
		Snapshots: slices.Clone(vd.Status.Snapshots),
	}
	if cond := condition(vd, v1alpha1.ConditionVMwareReadable); cond != nil && cond.Status == metav1.ConditionFalse {
		d.VMwareProblem = cond.Message
	}
	if c := vd.Status.Consolidation; c != nil {
		d.Consolidation = &host.Consolidation{
			Links: int(c.Links), Running: c.Running, Done: c.DoneBytes, Total: c.TotalBytes, Freed: c.FreedBytes, Reason: c.Reason,
		}
	}
	if !shared && vd.Spec.Host != "" {
		d.Hosts = []string{vd.Spec.Host}
	}
	for _, l := range vd.Status.Links {
		d.Links = append(d.Links, host.Link{
			Name: l.Name, Type: l.Type, CID: l.CID, ParentCID: l.ParentCID, Size: l.SizeBytes, Allocated: l.AllocatedBytes,
		})
	}
	for _, c := range vd.Spec.Claims {
		d.Claims = append(d.Claims, host.Claim{Node: c.Node, ReadOnly: c.ReadOnly})
	}
	for _, a := range vd.Status.Attachments {
		at := host.Attachment{
			ID: vd.Name, Host: a.Host, UUID: vd.Status.UUID, Size: vd.Status.SizeBytes, ReadOnly: a.ReadOnly,
			Transport: a.Transport, Epoch: a.Epoch, Since: a.Since.Time, WorkerPID: int(a.WorkerPID), Restarts: int(a.Restarts),
		}
		for _, s := range a.SkippedTransports {
			at.Skipped = append(at.Skipped, host.Skipped{Transport: s.Transport, Reason: s.Reason})
		}
		// An entry that no agent wrote has no slot; the port has no way to say so, and nothing depends on it.
		_, _ = fmt.Sscanf(a.Slot, "%d:%d", &at.Slot.Controller, &at.Slot.Unit)
		d.Attachments = append(d.Attachments, at)
	}
	return d
}

// retired: the volume was deleted, and its links stay for the snapshots.
func retired(vd *v1alpha1.VirtualDisk) bool {
	return vd.DeletionTimestamp != nil && vd.Status.Phase == v1alpha1.PhaseRetired
}

func phaseOf(vd *v1alpha1.VirtualDisk) host.Phase {
	switch {
	case retired(vd):
		return host.Retired
	case vd.DeletionTimestamp != nil:
		return host.Deleting
	case vd.Status.Phase == "", vd.Status.Phase == v1alpha1.PhaseCreating:
		return host.Pending
	}
	return host.Phase(vd.Status.Phase)
}

func linksOf(d host.Disk) (links []v1alpha1.DiskLink, used int64) {
	for _, l := range d.Links {
		links = append(links, v1alpha1.DiskLink{
			Name: l.Name, Type: l.Type, CID: l.CID, ParentCID: l.ParentCID, SizeBytes: l.Size, AllocatedBytes: l.Allocated,
		})
		used += l.Allocated
	}
	return links, used
}

func consolidationOf(d host.Disk) *v1alpha1.DiskConsolidation {
	c := d.Consolidation
	if c == nil {
		return nil
	}
	return &v1alpha1.DiskConsolidation{
		Links: int32(min(c.Links, host.MaxLinks)), Running: c.Running, DoneBytes: c.Done, TotalBytes: c.Total, FreedBytes: c.Freed,
		Reason: bounded(c.Reason, 1024),
	}
}

// snapshotOf is the snapshot as its object tells.
func snapshotOf(ds *v1alpha1.DiskSnapshot, shared bool) host.Snapshot {
	s := host.Snapshot{
		ID: ds.Name, Name: nameFromText(ds.Spec.Name), Disk: ds.Spec.Disk, DiskUUID: ds.Spec.UUID, Datastore: ds.Spec.Datastore,
		Size: ds.Status.RestoreSizeBytes, CID: ds.Status.CID, Consistency: host.Consistency(ds.Status.Consistency), Ready: ds.Status.Ready,
	}
	if !shared && ds.Spec.Host != "" {
		s.Hosts = []string{ds.Spec.Host}
	}
	if ds.Status.CreationTime != nil {
		s.Created = ds.Status.CreationTime.Time
	}
	return s
}

func attachmentOf(a host.Attachment, node string) v1alpha1.DiskAttachment {
	return v1alpha1.DiskAttachment{
		Host: node, Slot: fmt.Sprintf("%d:%d", a.Slot.Controller, a.Slot.Unit), Transport: a.Transport, ReadOnly: a.ReadOnly,
		SkippedTransports: skippedOf(a.Skipped), Epoch: a.Epoch, Since: metav1.Time{Time: a.Since}.Rfc3339Copy(), WorkerPID: int64(a.WorkerPID), Restarts: int64(a.Restarts),
	}
}

// sizeText is n bytes for people: the largest unit that leaves a whole part, two digits behind the point at most.
func sizeText(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	f, i := float64(n), 0
	for f >= 1024 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	if f == float64(int64(f)) {
		return fmt.Sprintf("%d %s", int64(f), units[i])
	}
	return fmt.Sprintf("%.1f %s", f, units[i])
}
