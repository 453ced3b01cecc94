package kube

import (
	"context"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vmdk-csi/vmdk-csi/pkg/api/v1alpha1"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

const (
	// longestWait bounds a call whose caller gave no deadline.
	longestWait = 2 * time.Minute
	// rereadEvery bounds the age of what a waiting call knows when its watch is silently dead.
	rereadEvery = 2 * time.Second
)

// bound ends a call shortly before its caller's deadline, so that the caller reads a sentence and not a timeout.
func bound(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return context.WithTimeout(ctx, longestWait)
	}
	margin := min(time.Until(deadline)/10, time.Second)
	return context.WithDeadline(ctx, deadline.Add(-margin))
}

// object is a pointer to a kind of object.
type object[E any] interface {
	*E
	client.Object
}

// kind is how the objects of one kind are read and followed.
type kind[E any, P object[E]] struct {
	noun string            // for people
	list client.ObjectList // tells the client what to watch
	// busy says why what one waits for takes longer, by the object as it was seen last.
	busy func(last P, what string) error
}

var (
	disks     = kind[v1alpha1.VirtualDisk, *v1alpha1.VirtualDisk]{"disk", &v1alpha1.VirtualDiskList{}, diskBusy}
	snapshots = kind[v1alpha1.DiskSnapshot, *v1alpha1.DiskSnapshot]{"snapshot", &v1alpha1.DiskSnapshotList{}, snapshotBusy}
)

// read gets a disk; a missing one is (nil, nil).
func (c *Client) read(ctx context.Context, id string) (*v1alpha1.VirtualDisk, error) {
	return disks.read(ctx, c.api, id)
}

// await waits for a disk; see kind.await.
func (c *Client) await(ctx context.Context, id, what string, done func(*v1alpha1.VirtualDisk) (bool, error)) (*v1alpha1.VirtualDisk, error) {
	return disks.await(ctx, c.api, id, what, done)
}

// read gets an object; a missing one is (nil, nil).
func (k kind[E, P]) read(ctx context.Context, api client.Reader, id string) (P, error) {
	o := P(new(E))
	err := api.Get(ctx, client.ObjectKey{Name: id}, o)
	if apierrors.IsNotFound(err) && apierrors.ReasonForError(err) == metav1.StatusReasonNotFound && !noDefinition(err) {
		return nil, nil
	}
	if err != nil {
		return nil, apiFault(err, "read %s %s", k.noun, id)
	}
	return o, nil
}

// noDefinition says that not the object is missing but its kind: the server then names no object.
func noDefinition(err error) bool {
	s, ok := err.(apierrors.APIStatus)
	return ok && (s.Status().Details == nil || s.Status().Details.Name == "")
}

// await reads the object until done says so, and returns what it saw last. One that is gone is nil for done. When the
// time is over it returns fault.InProgress: the host works on, and a repeated request finds what it did.
func (k kind[E, P]) await(ctx context.Context, api client.WithWatch, id, what string, done func(P) (bool, error)) (P, error) {
	var last P
	for {
		o, err := k.read(ctx, api, id)
		if err == nil {
			last = o
			if ok, err := done(o); ok || err != nil {
				return o, err
			}
			o, err = k.follow(ctx, api, o, done)
			if err != nil || o != nil {
				return o, err
			}
		}
		if ctx.Err() != nil {
			if last == nil {
				return nil, fault.New(fault.InProgress, "The request is repeated.", "%s %s: %s takes longer", k.noun, id, what)
			}
			return nil, k.busy(last, what)
		}
		if err != nil {
			return nil, err
		}
	}
}

// follow watches the object from the version o and returns the first that is done, or nil when it is time to read again.
func (k kind[E, P]) follow(ctx context.Context, api client.WithWatch, o P, done func(P) (bool, error)) (P, error) {
	ctx, cancel := context.WithTimeout(ctx, rereadEvery)
	defer cancel()
	list, _ := k.list.DeepCopyObject().(client.ObjectList)
	w, err := api.Watch(ctx, list, &client.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("metadata.name", o.GetName()),
		Raw:           &metav1.ListOptions{ResourceVersion: o.GetResourceVersion()},
	})
	if err != nil {
		<-ctx.Done() // the next read tells what is wrong
		return nil, nil
	}
	defer w.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil, nil
		case ev, ok := <-w.ResultChan():
			seen, isOne := ev.Object.(P)
			if !ok || !isOne || ev.Type == watch.Deleted {
				return nil, nil // the watch ended, or the object did: read it
			}
			if seen.GetName() != o.GetName() {
				continue
			}
			if ok, err := done(seen); ok || err != nil {
				return seen, err
			}
		}
	}
}

func diskBusy(vd *v1alpha1.VirtualDisk, what string) error {
	phase := vd.Status.Phase
	if phase == "" {
		phase = v1alpha1.PhasePending
	}
	remedy := "The request is repeated; see kubectl describe virtualdisk " + vd.Name + "."
	for _, t := range []string{v1alpha1.ConditionDeleted, v1alpha1.ConditionExpanded, v1alpha1.ConditionDatastoreReady, v1alpha1.ConditionReady} {
		if cond := condition(vd, t); cond != nil && cond.Status == metav1.ConditionFalse && cond.ObservedGeneration >= vd.Generation {
			return fault.New(fault.InProgress, remedy, "disk %s: %s by host %q is not finished: %w", vd.Name, what, vd.Spec.Host, faultOf(cond))
		}
	}
	return fault.New(fault.InProgress, remedy, "disk %s: %s by host %q is not finished (phase %s)", vd.Name, what, vd.Spec.Host, phase)
}

func snapshotBusy(ds *v1alpha1.DiskSnapshot, what string) error {
	remedy := "The request is repeated; see kubectl describe disksnapshot " + ds.Name + "."
	for _, t := range []string{v1alpha1.ConditionDeleted, v1alpha1.ConditionReady} {
		if cond := meta.FindStatusCondition(ds.Status.Conditions, t); cond != nil && cond.Status == metav1.ConditionFalse {
			return fault.New(fault.InProgress, remedy, "snapshot %s: %s by host %q is not finished: %w", ds.Name, what, ds.Spec.Host, faultOf(cond))
		}
	}
	return fault.New(fault.InProgress, remedy, "snapshot %s: %s by host %q is not finished", ds.Name, what, ds.Spec.Host)
}
