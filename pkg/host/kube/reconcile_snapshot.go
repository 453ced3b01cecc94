package kube

import (
	"context"
	"reflect"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vmdk-csi/vmdk-csi/pkg/api/v1alpha1"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// reconcileSnapshot makes one snapshot what its object asks for:
//
//  1. Read the object through the API.
//  2. Stop the file system, if that is asked for and it is mounted here; have hostd make the snapshot; let the file system go
//     on. Crash behind the stop: the file system goes on at its deadline. Crash behind hostd's commit: the next reconcile
//     finds the snapshot, stops nothing, and writes what hostd recorded.
//  3. Apply the status. Crash behind this: nothing is left to do.
//
// A snapshot that was made is never made again: a point in time cannot come back.
func (a *Agent) reconcileSnapshot(ctx context.Context, id string) error {
	ds := &v1alpha1.DiskSnapshot{}
	err := a.api.Get(ctx, client.ObjectKey{Name: id}, ds)
	if apierrors.IsNotFound(err) || err == nil && ds.Spec.Host != a.p.Node {
		return nil
	}
	if err != nil {
		return apiFault(err, "read snapshot %s", id)
	}
	ctx = host.WithDatastore(ctx, ds.Spec.Datastore)
	if ds.DeletionTimestamp != nil {
		return a.removeSnapshot(ctx, ds)
	}
	st := *ds.Status.DeepCopy()
	if ds.Status.CID == "" {
		err = a.createSnapshot(ctx, ds, &st)
	} else {
		err = a.refreshSnapshot(ctx, ds, &st)
	}
	if werr := a.writeSnapshot(ctx, ds, st); werr != nil {
		return werr
	}
	return err
}

func (a *Agent) writeSnapshot(ctx context.Context, ds *v1alpha1.DiskSnapshot, st v1alpha1.DiskSnapshotStatus) error {
	if reflect.DeepEqual(st, ds.Status) {
		return nil
	}
	err := applyStatus(ctx, a.api, ds, snapshotManager, st)
	if apierrors.IsNotFound(err) {
		return nil
	}
	return apiFault(err, "write the status of snapshot %s", ds.Name)
}

// createSnapshot makes a snapshot that was never made.
func (a *Agent) createSnapshot(ctx context.Context, ds *v1alpha1.DiskSnapshot, st *v1alpha1.DiskSnapshotStatus) error {
	if neverSnapped(ds) {
		return nil // answered; a higher generation asks again
	}
	vd, err := disks.read(ctx, a.api, ds.Spec.Disk)
	if err != nil {
		return err
	}
	var made host.Snapshot
	var notFrozen error
	if vd == nil || vd.Status.UUID != ds.Spec.UUID {
		err = fault.New(fault.NotFound, "", "disk %s with uuid %s does not exist", ds.Spec.Disk, ds.Spec.UUID)
	} else {
		made, notFrozen, err = a.snap(ctx, ds)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		err = fault.Wrap(err, "host %s cannot make the snapshot", a.p.Node)
		var news bool
		st.Conditions, news = with(st.Conditions, failed(v1alpha1.ConditionReady, ds.Generation, err))
		if passing(fault.KindOf(err)) {
			return err
		}
		st.ObservedGeneration = ds.Generation
		if news {
			a.sayOfSnapshot(ds, true, "CreateFailed", eventText(err))
			if vd != nil {
				a.say(vd, true, "SnapshotFailed", "snapshot "+ds.Name+": "+eventText(err))
			}
		}
		return nil
	}
	text := "Host " + a.p.Node + " made snapshot " + ds.Name + " of disk " + vd.Name + "; its content is " + string(made.Consistency) + "-consistent."
	a.sayOfSnapshot(ds, false, "Created", text)
	a.say(vd, false, "SnapshotCreated", text)
	if notFrozen != nil && made.Consistency != host.FilesystemConsistent {
		text := "The file system was not stopped for snapshot " + ds.Name + ", whose content is what a power cut would leave: " + eventText(notFrozen)
		a.sayOfSnapshot(ds, true, "NotFrozen", text)
		a.say(vd, true, "SnapshotNotFrozen", text)
	}
	describeSnapshot(ds, st, made)
	a.disks.queue.Add(vd.Name) // its chain is another one now
	return nil
}

// thawTime is how long the end of a freeze may take until it is left to the deadline.
const thawTime = 5 * time.Second

// snap has hostd make the snapshot, with the file system stopped if that is asked for and possible. That it is not
// (notFrozen) does not hinder the snapshot.
func (a *Agent) snap(ctx context.Context, ds *v1alpha1.DiskSnapshot) (made host.Snapshot, notFrozen, err error) {
	spec := host.SnapshotSpec{
		Name: nameFromText(ds.Spec.Name), Disk: ds.Spec.Disk, Freeze: host.Freeze(ds.Spec.Freeze),
		FreezeDeadline: time.Duration(ds.Spec.FreezeDeadlineSeconds) * time.Second,
	}
	if spec.Freeze == host.FreezeFilesystem && a.p.Freezer != nil {
		if made, err := a.p.Hostd.GetSnapshot(ctx, ds.Name); err == nil && made.Disk == spec.Disk {
			return made, nil, nil // made before, and not told
		}
		allowed := spec.FreezeDeadline
		if allowed == 0 {
			allowed = host.DefaultFreezeDeadline
		}
		deadline := time.Now().Add(allowed)
		var thaw func(context.Context) error
		if thaw, notFrozen = a.p.Freezer.Freeze(ctx, ds.Spec.Disk, deadline); notFrozen == nil {
			defer func() {
				end, cancel := context.WithTimeout(context.WithoutCancel(ctx), thawTime)
				defer cancel()
				if terr := thaw(end); terr != nil {
					a.log.Warn("the file system goes on at the deadline of its freeze only", "disk", ds.Spec.Disk, "error", terr)
				}
			}()
			// hostd counts from when it hears of it: what the way there takes must not make the freeze look longer.
			spec.Frozen = max(0, time.Until(deadline)-allowed/8)
			if spec.Frozen == 0 {
				notFrozen = fault.New(fault.Timeout, "Give the VolumeSnapshotClass a longer freeze deadline.",
					"stopping it took nearly all of the %s that it may stand still", allowed)
			}
		}
	} else if spec.Freeze == host.FreezeFilesystem {
		notFrozen = fault.New(fault.Unsupported, "", "this node cannot stop file systems")
	}
	made, err = a.p.Hostd.CreateSnapshot(ctx, spec)
	if err == nil && notFrozen == nil && spec.Freeze == host.FreezeFilesystem && made.Consistency != host.FilesystemConsistent {
		notFrozen = fault.New(fault.Timeout, "Give the VolumeSnapshotClass a longer freeze deadline.", "the snapshot took longer than the freeze lasted")
	}
	return made, notFrozen, err
}

func describeSnapshot(ds *v1alpha1.DiskSnapshot, st *v1alpha1.DiskSnapshotStatus, s host.Snapshot) {
	created := metav1.NewTime(s.Created).Rfc3339Copy()
	if st.CreationTime == nil || !st.CreationTime.Equal(&created) {
		st.CreationTime = &created
	}
	st.ObservedGeneration, st.Ready, st.CID, st.Consistency = ds.Generation, s.Ready, s.CID, string(s.Consistency)
	st.RestoreSizeBytes, st.RestoreSize = s.Size, sizeText(s.Size)
	st.Conditions, _ = with(st.Conditions, fine(v1alpha1.ConditionReady, ds.Generation, "Made", "Disks can be restored from it."))
}

// refreshSnapshot looks at a snapshot that was made.
func (a *Agent) refreshSnapshot(ctx context.Context, ds *v1alpha1.DiskSnapshot, st *v1alpha1.DiskSnapshotStatus) error {
	if a.datastoreError(ds.Spec.Datastore) != nil {
		return nil // without its datastore nothing can be said about it: the last knowledge stays
	}
	look, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	s, err := a.p.Hostd.GetSnapshot(look, ds.Name)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	switch fault.KindOf(err) {
	case "":
	case fault.NotFound:
		err = fault.New(fault.Damaged, "Delete the snapshot: a point in time cannot be made again.",
			"snapshot %s is missing from datastore %s on host %s", ds.Name, ds.Spec.Datastore, a.p.Node)
	case fault.Damaged, fault.Poisoned:
	default:
		return fault.Wrap(err, "look at snapshot %s", ds.Name)
	}
	if err != nil {
		var news bool
		st.Conditions, news = with(st.Conditions, failed(v1alpha1.ConditionReady, ds.Generation, err))
		st.Ready, st.ObservedGeneration = false, ds.Generation
		if news {
			a.sayOfSnapshot(ds, true, "Damaged", eventText(err))
		}
		return nil
	}
	describeSnapshot(ds, st, s)
	return nil
}

// removeSnapshot has hostd let the snapshot go, then lets the object go: in this order, and with the object of a retired disk
// before that of its last snapshot, so that whoever waits for the deletion finds nothing left behind it.
func (a *Agent) removeSnapshot(ctx context.Context, ds *v1alpha1.DiskSnapshot) error {
	if !slices.Contains(ds.Finalizers, v1alpha1.Finalizer) {
		return nil
	}
	err := a.p.Hostd.DeleteSnapshot(ctx, ds.Name)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		st := *ds.Status.DeepCopy()
		err = fault.Wrap(err, "host %s cannot delete the snapshot", a.p.Node)
		var news bool
		st.Conditions, news = with(st.Conditions, failed(v1alpha1.ConditionDeleted, ds.Generation, err))
		st.ObservedGeneration = ds.Generation
		if news && !passing(fault.KindOf(err)) {
			a.sayOfSnapshot(ds, true, "DeleteFailed", eventText(err))
		}
		if werr := a.writeSnapshot(ctx, ds, st); werr != nil {
			return werr
		}
		return err
	}
	vd, err := disks.read(ctx, a.api, ds.Spec.Disk)
	if err != nil {
		return err
	}
	if vd != nil && retired(vd) {
		if err := a.remove(ctx, vd); err != nil {
			return err
		}
	} else {
		a.disks.queue.Add(ds.Spec.Disk)
	}
	return a.letObjectGo(ctx, ds)
}
