package kube

import (
	"context"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
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

// read gets a disk; a missing one is (nil, nil).
func (c *Client) read(ctx context.Context, id string) (*v1alpha1.VirtualDisk, error) {
	vd := &v1alpha1.VirtualDisk{}
	err := c.api.Get(ctx, client.ObjectKey{Name: id}, vd)
	if apierrors.IsNotFound(err) && apierrors.ReasonForError(err) == metav1.StatusReasonNotFound && !noDefinition(err) {
		return nil, nil
	}
	if err != nil {
		return nil, apiFault(err, "read disk %s", id)
	}
	return vd, nil
}

// noDefinition says that not the object is missing but its kind: the server then names no object.
func noDefinition(err error) bool {
	s, ok := err.(apierrors.APIStatus)
	return ok && (s.Status().Details == nil || s.Status().Details.Name == "")
}

// await reads the disk until done says so, and returns what it saw last. A disk that is gone is nil for done. When the
// time is over it returns fault.InProgress: the host works on, and a repeated request finds what it did.
func (c *Client) await(ctx context.Context, id, what string, done func(*v1alpha1.VirtualDisk) (bool, error)) (*v1alpha1.VirtualDisk, error) {
	var last *v1alpha1.VirtualDisk
	for {
		vd, err := c.read(ctx, id)
		if err == nil {
			last = vd
			if ok, err := done(vd); ok || err != nil {
				return vd, err
			}
			vd, err = c.follow(ctx, vd, done)
			if err != nil || vd != nil {
				return vd, err
			}
		}
		if ctx.Err() != nil {
			return nil, c.stillBusy(last, id, what)
		}
		if err != nil {
			return nil, err
		}
	}
}

// follow watches the disk from the version vd and returns the first that is done, or nil when it is time to read again.
func (c *Client) follow(ctx context.Context, vd *v1alpha1.VirtualDisk, done func(*v1alpha1.VirtualDisk) (bool, error)) (*v1alpha1.VirtualDisk, error) {
	ctx, cancel := context.WithTimeout(ctx, rereadEvery)
	defer cancel()
	w, err := c.api.Watch(ctx, &v1alpha1.VirtualDiskList{}, &client.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("metadata.name", vd.Name),
		Raw:           &metav1.ListOptions{ResourceVersion: vd.ResourceVersion},
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
			seen, isDisk := ev.Object.(*v1alpha1.VirtualDisk)
			if !ok || !isDisk || ev.Type == watch.Deleted {
				return nil, nil // the watch ended, or the disk did: read it
			}
			if seen.Name != vd.Name {
				continue
			}
			if ok, err := done(seen); ok || err != nil {
				return seen, err
			}
		}
	}
}

func (c *Client) stillBusy(vd *v1alpha1.VirtualDisk, id, what string) error {
	if vd == nil {
		return fault.New(fault.InProgress, "The request is repeated.", "disk %s: %s takes longer", id, what)
	}
	phase := vd.Status.Phase
	if phase == "" {
		phase = v1alpha1.PhasePending
	}
	remedy := "The request is repeated; see kubectl describe virtualdisk " + id + "."
	for _, t := range []string{v1alpha1.ConditionDeleted, v1alpha1.ConditionExpanded, v1alpha1.ConditionDatastoreReady, v1alpha1.ConditionReady} {
		if cond := condition(vd, t); cond != nil && cond.Status == metav1.ConditionFalse && cond.ObservedGeneration >= vd.Generation {
			return fault.New(fault.InProgress, remedy, "disk %s: %s by host %q is not finished: %w", id, what, vd.Spec.Host, faultOf(cond))
		}
	}
	return fault.New(fault.InProgress, remedy, "disk %s: %s by host %q is not finished (phase %s)", id, what, vd.Spec.Host, phase)
}
