package kube

import (
	"context"
	"fmt"
	"hash/fnv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vmdk-csi/vmdk-csi/pkg/api/v1alpha1"
)

// component is what kubectl describe shows as the source of an event.
const component = "vmdk-csi-node"

// note is an event that waits to be written. The disk is what the sender knows of it; nil: it is read when the event is
// written. A note about a snapshot is about that alone.
type note struct {
	id, reason, message string
	warning             bool
	at                  time.Time
	disk                *v1alpha1.VirtualDisk
	snapshot            *v1alpha1.DiskSnapshot
}

// Event says something about a disk, on its object and on the claim that it was made for.
func (r *recorder) Event(_ context.Context, id string, warning bool, reason, message string) {
	r.queue(note{id: id, warning: warning, reason: reason, message: message})
}

// say is Event about a disk that may be gone by the time it is written: its claim is not.
func (r *recorder) say(vd *v1alpha1.VirtualDisk, warning bool, reason, message string) {
	r.queue(note{id: vd.Name, disk: vd, warning: warning, reason: reason, message: message})
}

// sayOfSnapshot is say about a snapshot.
func (r *recorder) sayOfSnapshot(ds *v1alpha1.DiskSnapshot, warning bool, reason, message string) {
	r.queue(note{id: ds.Name, snapshot: ds, warning: warning, reason: reason, message: message})
}

func (r *recorder) queue(n note) {
	n.at, n.message = time.Now(), bounded(n.message, 1024)
	r.mu.Lock()
	r.events = append(r.events, n)
	if len(r.events) > maxEvents {
		r.events = r.events[1:]
	}
	r.mu.Unlock()
	r.poke()
}

// emit writes one event. An event of a disk that is gone, and that nobody remembers, has no reader.
func (r *recorder) emit(ctx context.Context, n note) error {
	if ds := n.snapshot; ds != nil {
		return r.put(ctx, n, corev1.ObjectReference{
			APIVersion: v1alpha1.GroupVersion.String(), Kind: "DiskSnapshot", Name: ds.Name, UID: ds.UID,
		})
	}
	vd := n.disk
	if vd == nil {
		vd = &v1alpha1.VirtualDisk{}
		if err := r.api.Get(ctx, client.ObjectKey{Name: n.id}, vd); err != nil {
			if apierrors.IsNotFound(err) {
				return nil
			}
			return apiFault(err, "read disk %s", n.id)
		}
	}
	err := r.put(ctx, n, corev1.ObjectReference{
		APIVersion: v1alpha1.GroupVersion.String(), Kind: "VirtualDisk", Name: vd.Name, UID: vd.UID,
	})
	if err != nil {
		return err
	}
	pvc := corev1.ObjectReference{
		APIVersion: "v1", Kind: "PersistentVolumeClaim",
		Namespace: vd.Annotations[v1alpha1.AnnotationPVCNamespace], Name: vd.Annotations[v1alpha1.AnnotationPVCName],
	}
	if pvc.Namespace == "" || pvc.Name == "" {
		return nil
	}
	// kubectl describe selects a claim's events by its uid too. The provisioner names a volume after its claim's uid
	// (external-provisioner, --volume-name-prefix pvc), so no right to read claims is needed.
	if uid, ok := claimUID(vd.Spec.Name); ok {
		pvc.UID = uid
	}
	n.message = bounded("disk "+vd.Name+": "+n.message, 1024)
	return r.put(ctx, n, pvc)
}

// put creates the event, or counts it up: its name is the hash of what it says.
func (r *recorder) put(ctx context.Context, n note, about corev1.ObjectReference) error {
	h := fnv.New64a()
	_, _ = fmt.Fprintf(h, "%s\x00%s\x00%s\x00%s\x00%v", about.UID, r.node, n.reason, n.message, n.warning) // hash.Hash: never an error
	namespace := about.Namespace
	if namespace == "" {
		namespace = metav1.NamespaceDefault // where events of cluster-scoped objects live
	}
	kind := corev1.EventTypeNormal
	if n.warning {
		kind = corev1.EventTypeWarning
	}
	at := metav1.NewTime(n.at)
	ev := &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("%s.%016x", bounded(about.Name, 200), h.Sum64())},
		InvolvedObject: about, Reason: n.reason, Message: n.message, Type: kind, Count: 1,
		FirstTimestamp: at, LastTimestamp: at,
		Source:              corev1.EventSource{Component: component, Host: r.node},
		ReportingController: component, ReportingInstance: bounded(r.node, 128),
	}
	err := r.api.Create(ctx, ev)
	if apierrors.IsAlreadyExists(err) {
		err = r.count(ctx, ev)
	}
	switch {
	case err == nil:
	case apierrors.IsNotFound(err), apierrors.IsInvalid(err), apierrors.IsForbidden(err):
		// The namespace is being deleted, or the event is refused: repeating will not help, and it must not block others.
		r.log.Warn("event is not accepted", "disk", n.id, "reason", n.reason, "message", n.message, "error", err)
	default:
		return apiFault(err, "write event %s of disk %s", n.reason, n.id)
	}
	return nil
}

func (r *recorder) count(ctx context.Context, ev *corev1.Event) error {
	have := &corev1.Event{}
	if err := r.api.Get(ctx, client.ObjectKeyFromObject(ev), have); err != nil {
		return err
	}
	next := have.DeepCopy()
	next.Count++
	next.LastTimestamp = ev.LastTimestamp
	return r.api.Patch(ctx, next, client.MergeFrom(have))
}

// claimUID is the uid in a volume's name "pvc-<uid>".
func claimUID(volume string) (types.UID, bool) {
	uid, ok := strings.CutPrefix(volume, "pvc-")
	return types.UID(uid), ok && len(uid) == 36 && strings.Count(uid, "-") == 4
}
