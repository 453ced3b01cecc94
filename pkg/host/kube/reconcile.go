package kube

import (
	"context"
	"reflect"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vmdk-csi/vmdk-csi/pkg/api/v1alpha1"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// reconcile makes one disk what its object asks for:
//
//  1. Read the object through the API: what is done follows the newest intent.
//  2. Call hostd: create a disk that was never made, describe one that was, expand, delete. Crash behind this: the next
//     reconcile asks again, and hostd finds what it did.
//  3. Apply the status. Crash behind this: nothing is left to do.
//
// An error means: try again, with growing pauses. A failure that cannot pass by itself is written into the status and
// is not an error; a higher generation asks again.
func (a *Agent) reconcile(ctx context.Context, id string) error {
	vd := &v1alpha1.VirtualDisk{}
	err := a.api.Get(ctx, client.ObjectKey{Name: id}, vd)
	if apierrors.IsNotFound(err) {
		a.forget(id)
		return nil
	}
	if err != nil {
		return apiFault(err, "read disk %s", id)
	}
	if vd.Spec.Host != a.p.Node {
		a.forget(id)
		return nil
	}
	ctx = host.WithDatastore(ctx, vd.Spec.Datastore)
	if len(vd.Spec.Evict) > 0 {
		return a.evict(ctx, vd) // its last step is a change of the object
	}
	if vd.DeletionTimestamp != nil {
		return a.remove(ctx, vd)
	}
	st := statusNow(vd)
	a.judgeDatastore(vd, &st)
	switch {
	case vd.Status.UUID == "":
		err = a.create(ctx, vd, &st)
	case !borrowed(vd, a.p.Node) && condition(vd, v1alpha1.ConditionDatastoreReady) != nil && a.datastoreError(vd.Spec.Datastore) != nil:
		// Without its datastore nothing can be said about the disk: the last knowledge stays, the condition tells.
	default:
		err = a.refresh(ctx, vd, &st)
	}
	if werr := a.write(ctx, vd, st); werr != nil {
		return werr
	}
	return err
}

// write applies the status if it says something new.
func (a *Agent) write(ctx context.Context, vd *v1alpha1.VirtualDisk, st diskStatus) error {
	now := statusNow(vd)
	if reflect.DeepEqual(st, now) || sameButUsage(st, now) && !a.usageIsDue(vd.Name, st.Consolidation) {
		return nil
	}
	err := applyStatus(ctx, a.api, vd, diskManager, st)
	if apierrors.IsNotFound(err) {
		return nil
	}
	return apiFault(err, "write the status of disk %s", vd.Name)
}

// sameButUsage says that two statuses differ at most in how much space the disk takes, and how far its consolidation is.
func sameButUsage(a, b diskStatus) bool {
	a.UsedBytes, a.Used = b.UsedBytes, b.Used
	if len(a.Links) == len(b.Links) {
		a.Links = slices.Clone(a.Links)
		for i := range a.Links {
			a.Links[i].AllocatedBytes = b.Links[i].AllocatedBytes
		}
	}
	if a.Consolidation != nil && b.Consolidation != nil {
		c := *a.Consolidation
		c.DoneBytes, c.TotalBytes, c.FreedBytes = b.Consolidation.DoneBytes, b.Consolidation.TotalBytes, b.Consolidation.FreedBytes
		a.Consolidation = &c
	}
	return reflect.DeepEqual(a, b)
}

// usageIsDue is true once per resync: the use of a disk that somebody writes to is another one each time it is looked
// at, and every write of the status is an event that has it looked at again. The progress of a merge is told more often.
func (a *Agent) usageIsDue(id string, merge *v1alpha1.DiskConsolidation) bool {
	every := a.p.Resync
	if merge != nil && merge.Running {
		every = min(every, a.p.ProgressEvery)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if time.Since(a.usage[id]) < every*9/10 {
		return false
	}
	if a.usage == nil {
		a.usage = map[string]time.Time{}
	}
	a.usage[id] = time.Now()
	return true
}

func (a *Agent) forget(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.usage, id)
	delete(a.freed, id)
}

// create makes a disk that was never made.
func (a *Agent) create(ctx context.Context, vd *v1alpha1.VirtualDisk, st *diskStatus) error {
	if neverMade(vd) {
		return nil // answered; a higher generation asks again
	}
	if vd.Status.Phase != v1alpha1.PhaseCreating {
		st.Phase = v1alpha1.PhaseCreating
		if err := a.write(ctx, vd, *st); err != nil {
			return err
		}
	}
	spec := specOf(vd)
	d, err := a.p.Hostd.Create(ctx, spec)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		err = fault.Wrap(err, "host %s cannot make the disk", a.p.Node)
		news := st.set(failed(v1alpha1.ConditionReady, vd.Generation, err))
		if passing(fault.KindOf(err)) {
			return err
		}
		st.Phase, st.ObservedGeneration = v1alpha1.PhaseFailed, vd.Generation
		a.tell(vd, news, "CreateFailed", err)
		return nil
	}
	a.say(vd, false, "Created", "Host "+a.p.Node+" made the disk in datastore "+spec.Datastore+": "+sizeText(d.Size)+", "+
		string(spec.Type)+", "+string(spec.Format)+".")
	return a.describe(ctx, vd, st, d)
}

// refresh looks at a disk that was made. It is never made again: missing files are damage, not a reason for an empty disk.
func (a *Agent) refresh(ctx context.Context, vd *v1alpha1.VirtualDisk, st *diskStatus) error {
	look, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	d, err := a.p.Hostd.Get(look, vd.Name)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	switch fault.KindOf(err) {
	case "":
	case fault.NotFound:
		err = fault.New(fault.Damaged, "Restore the files, or delete the volume. Host "+a.p.Node+" does not make a disk twice.",
			"the files of disk %s are missing from datastore %s on host %s", vd.Name, vd.Spec.Datastore, a.p.Node)
	case fault.Damaged, fault.Poisoned:
	default:
		return fault.Wrap(err, "look at disk %s", vd.Name)
	}
	if err == nil && d.UUID != vd.Status.UUID {
		err = fault.New(fault.Damaged, "Find out who replaced the files; the disk is not used.",
			"disk %s on host %s has uuid %s, and was made with %s", vd.Name, a.p.Node, d.UUID, vd.Status.UUID)
	}
	if err != nil {
		news := st.set(failed(v1alpha1.ConditionReady, vd.Generation, err))
		st.Phase, st.ObservedGeneration = v1alpha1.PhaseFailed, vd.Generation
		a.tell(vd, news, "Damaged", err)
		return nil
	}
	return a.describe(ctx, vd, st, d)
}

// describe expands the disk if it is smaller than wanted, and puts into the status what it is.
func (a *Agent) describe(ctx context.Context, vd *v1alpha1.VirtualDisk, st *diskStatus, d host.Disk) error {
	var again error
	if d.Size < vd.Spec.SizeBytes && d.Phase != host.Retired {
		bigger, err := a.expand(ctx, vd, st, d)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		d, again = bigger, err
	} else if condition(vd, v1alpha1.ConditionExpanded) != nil {
		st.set(fine(v1alpha1.ConditionExpanded, vd.Generation, "Expanded", "The disk has the capacity that was asked for."))
	}
	st.Phase, st.ObservedGeneration, st.UUID = v1alpha1.PhaseReady, vd.Generation, d.UUID
	if d.Phase == host.Retired {
		st.Phase = v1alpha1.PhaseRetired
	}
	st.SizeBytes, st.Size = d.Size, sizeText(d.Size)
	st.Links, st.UsedBytes = linksOf(d)
	st.Used = sizeText(st.UsedBytes)
	st.Snapshots = slices.Sorted(slices.Values(d.Snapshots))
	if d.Phase == host.Retired {
		st.set(fine(v1alpha1.ConditionReady, vd.Generation, "Retired", "The volume was deleted; its links stay for its snapshots."))
	} else {
		st.set(fine(v1alpha1.ConditionReady, vd.Generation, "Made", "The disk can be attached."))
	}
	st.set(readable(vd.Generation, d))
	a.consolidation(vd, st, d)
	return again
}

func (a *Agent) expand(ctx context.Context, vd *v1alpha1.VirtualDisk, st *diskStatus, d host.Disk) (host.Disk, error) {
	if tooSmall(vd) != nil {
		return d, nil // answered; a higher generation asks again
	}
	bigger, err := a.p.Hostd.Expand(ctx, vd.Name, vd.Spec.SizeBytes)
	if err != nil {
		err = fault.Wrap(err, "host %s cannot expand the disk to %s", a.p.Node, sizeText(vd.Spec.SizeBytes))
		news := st.set(failed(v1alpha1.ConditionExpanded, vd.Generation, err))
		if passing(fault.KindOf(err)) {
			return d, err
		}
		a.tell(vd, news, "ExpandFailed", err)
		return d, nil
	}
	st.set(fine(v1alpha1.ConditionExpanded, vd.Generation, "Expanded", "The disk has the capacity that was asked for."))
	a.say(vd, false, "Expanded", "The disk grew from "+sizeText(d.Size)+" to "+sizeText(bigger.Size)+".")
	return bigger, nil
}

func fine(conditionType string, generation int64, reason, message string) metav1.Condition {
	return metav1.Condition{
		Type: conditionType, Status: metav1.ConditionTrue, Reason: reason, Message: message, ObservedGeneration: generation,
	}
}

// remove deletes the files, then lets the object go. A disk that has snapshots is retired instead: its object says so until
// the last of them is gone.
func (a *Agent) remove(ctx context.Context, vd *v1alpha1.VirtualDisk) error {
	if !slices.Contains(vd.Finalizers, v1alpha1.Finalizer) {
		return nil
	}
	st := statusNow(vd)
	a.judgeDatastore(vd, &st)
	left, err := a.delete(ctx, vd.Name)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		err = fault.Wrap(err, "host %s cannot delete the disk", a.p.Node)
		news := st.set(failed(v1alpha1.ConditionDeleted, vd.Generation, err))
		st.ObservedGeneration = vd.Generation
		if st.Phase != v1alpha1.PhaseRetired {
			st.Phase = v1alpha1.PhaseDeleting
		}
		if !passing(fault.KindOf(err)) {
			a.tell(vd, news, "DeleteFailed", err)
		}
		if werr := a.write(ctx, vd, st); werr != nil {
			return werr
		}
		return err
	}
	if left != nil {
		st.Conditions = without(st.Conditions, v1alpha1.ConditionDeleted)
		if vd.Status.Phase != v1alpha1.PhaseRetired {
			a.say(vd, false, "Retired", "The volume was deleted; its links stay for its snapshots "+strings.Join(left.Snapshots, ", ")+".")
		}
		if err := a.describe(ctx, vd, &st, *left); err != nil {
			return err
		}
		return a.write(ctx, vd, st)
	}
	return a.letObjectGo(ctx, vd)
}

// delete has hostd delete the disk, and says what is left of it for its snapshots, if anything.
func (a *Agent) delete(ctx context.Context, id string) (left *host.Disk, err error) {
	if err := a.p.Hostd.Delete(ctx, id); err != nil {
		return nil, err
	}
	d, err := a.p.Hostd.Get(ctx, id)
	if fault.KindOf(err) == fault.NotFound {
		return nil, nil
	}
	if err == nil && d.Phase != host.Retired {
		err = fault.New(fault.InProgress, "", "disk %s is deleted, and still there", id)
	}
	return &d, err
}

// letObjectGo takes the finalizer away.
func (a *Agent) letObjectGo(ctx context.Context, o client.Object) error {
	next, _ := o.DeepCopyObject().(client.Object)
	next.SetFinalizers(slices.DeleteFunc(slices.Clone(o.GetFinalizers()), func(f string) bool { return f == v1alpha1.Finalizer }))
	err := a.api.Patch(ctx, next, client.MergeFromWithOptions(o, client.MergeFromWithOptimisticLock{}))
	if apierrors.IsNotFound(err) {
		return nil
	}
	return apiFault(err, "let the object %s go", o.GetName())
}

// tell makes an event of a failure that is news.
func (a *Agent) tell(vd *v1alpha1.VirtualDisk, news bool, reason string, err error) {
	if !news {
		return
	}
	a.say(vd, true, reason, eventText(err))
}

func eventText(err error) string {
	f := fault.From(err)
	text := string(f.Kind) + ": " + f.Message
	if f.Remedy != "" {
		text += ". " + f.Remedy
	}
	return text
}
