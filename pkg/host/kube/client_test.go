package kube_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vmdk-csi/vmdk-csi/internal/kubetest"
	"github.com/vmdk-csi/vmdk-csi/pkg/api/v1alpha1"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/kube"
)

func wantKind(t *testing.T, err error, k fault.Kind) {
	t.Helper()
	if fault.KindOf(err) != k {
		t.Fatalf("got %v (kind %s), want kind %s", err, fault.KindOf(err), k)
	}
}

func TestCreateDescribeDelete(t *testing.T) {
	c := newCluster(t, "node-a", "node-b")
	ctx := host.WithOwner(t.Context(), host.Owner{Namespace: "default", Name: "data"})
	for _, tc := range []struct {
		name, datastore, node string
		hosts                 []string
	}{
		{"pvc-0a1b2c3d-0000-4000-8000-000000000001", "local", "node-b", []string{"node-b"}},
		{"shared disk with ünusual name " + strings.Repeat("x", 900), "shared", "", nil},
	} {
		s := spec(tc.name, tc.datastore, tc.node)
		d, err := c.client.Create(ctx, s)
		if err != nil {
			t.Fatal(err)
		}
		if d.Phase != host.Ready || d.UUID == "" || d.Size != s.Size || fmt.Sprint(d.Hosts) != fmt.Sprint(tc.hosts) || len(d.Links) != 1 {
			t.Fatalf("got %+v", d)
		}
		again := c.create(s)
		if again.UUID != d.UUID {
			t.Fatalf("a repeated request made another disk: %+v", again)
		}
		other := s
		other.Size *= 2
		_, err = c.client.Create(ctx, other)
		wantKind(t, err, fault.Exists)
		vd := c.object(d.ID)
		if vd.Annotations[v1alpha1.AnnotationPVCName] != "data" || vd.Status.Size != "64 MiB" || vd.Status.ObservedGeneration != vd.Generation {
			t.Fatalf("object: %+v", vd)
		}
		for _, cond := range []string{v1alpha1.ConditionReady, v1alpha1.ConditionDatastoreReady, v1alpha1.ConditionVMwareReadable} {
			c.eventually(cond, func() error {
				if !meta.IsStatusConditionTrue(c.object(d.ID).Status.Conditions, cond) {
					return fmt.Errorf("conditions: %+v", c.object(d.ID).Status.Conditions)
				}
				return nil
			})
		}
		if err := c.client.Delete(ctx, d.ID); err != nil {
			t.Fatal(err)
		}
		if err := c.client.Delete(ctx, d.ID); err != nil {
			t.Fatalf("a second deletion: %v", err)
		}
		_, err = c.client.Get(ctx, d.ID)
		wantKind(t, err, fault.NotFound)
		_, err = c.memory.Get(ctx, d.ID)
		wantKind(t, err, fault.NotFound)
	}
}

func TestCreateRefused(t *testing.T) {
	c := newCluster(t, "node-a")
	if err := kubetest.AddNodes(t.Context(), c.server.Config, "node-diskless"); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		change func(*host.DiskSpec)
		kind   fault.Kind
	}{
		{"no datastore of that name", func(s *host.DiskSpec) { s.Datastore = "nowhere" }, fault.NotFound},
		{"no possible name of a datastore", func(s *host.DiskSpec) { s.Datastore = "../../nodes/x" }, fault.NotFound},
		{"too small", func(s *host.DiskSpec) { s.Size = 1 }, fault.OutOfRange},
		{"too large", func(s *host.DiskSpec) { s.Size = 1 << 60 }, fault.OutOfRange},
		{"no name", func(s *host.DiskSpec) { s.Name = "" }, fault.Invalid},
		{"long name", func(s *host.DiskSpec) { s.Name = strings.Repeat("n", 2000) }, fault.Invalid},
		{"sparse and thick", func(s *host.DiskSpec) { s.Type, s.Format = host.TwoGbMaxExtentSparse, host.ZeroedThick }, fault.Invalid},
		{"no host of that name", func(s *host.DiskSpec) { s.Host = "node-z" }, fault.NotFound},
		{"a host that does not reach it", func(s *host.DiskSpec) { s.Host = "node-diskless" }, fault.Exhausted},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := spec(t.Name(), "local", "node-a")
			tc.change(&s)
			_, err := c.client.Create(t.Context(), s)
			wantKind(t, err, tc.kind)
			var all v1alpha1.VirtualDiskList
			if err := c.admin.List(t.Context(), &all); err != nil || len(all.Items) > 0 {
				t.Fatalf("something was left: %v %v", all.Items, err)
			}
		})
	}
}

// A failure for good reaches the caller as the host said it, and leaves nothing; the next request is a fresh attempt.
func TestCreateFailureLeavesNothing(t *testing.T) {
	c := newCluster(t, "node-a")
	s := spec("pvc-0a1b2c3d-0000-4000-8000-000000000002", "local", "node-a")
	c.memory.FailNext(failing("create", fault.New(fault.NoSpace, "Free space on it.", "the datastore is full")))
	ctx := host.WithOwner(t.Context(), host.Owner{Namespace: "default", Name: "full"})
	_, err := c.client.Create(ctx, s)
	wantKind(t, err, fault.NoSpace)
	if !strings.Contains(err.Error(), "the datastore is full") || !strings.Contains(err.Error(), "Free space on it.") {
		t.Fatalf("the host's words are lost: %v", err)
	}
	c.eventually("the claim has an event", func() error {
		var events corev1.EventList
		if err := c.admin.List(ctx, &events, client.InNamespace("default")); err != nil {
			return err
		}
		for _, e := range events.Items {
			if e.InvolvedObject.Kind == "PersistentVolumeClaim" && e.InvolvedObject.Name == "full" && e.Reason == "CreateFailed" &&
				e.InvolvedObject.UID == "0a1b2c3d-0000-4000-8000-000000000002" && strings.Contains(e.Message, "NoSpace") {
				return nil
			}
		}
		return fmt.Errorf("%d events, none of them", len(events.Items))
	})
	c.memory.FailNext(nil)
	_, err = c.client.Get(ctx, host.DiskID(s.Name))
	wantKind(t, err, fault.NotFound)
	c.create(s)
}

// failing makes one method of Memory fail.
func failing(method string, err error) func(string, string) error {
	return func(m, _ string) error {
		if m == method {
			return err
		}
		return nil
	}
}

// A host that takes long: the caller hears InProgress before its deadline, and a repeated request finds the disk.
func TestCreateInProgress(t *testing.T) {
	c := newCluster(t, "node-a")
	c.memory.FailNext(failing("create", fault.New(fault.InProgress, "", "writing zeros")))
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	s := spec("slow", "local", "node-a")
	_, err := c.client.Create(ctx, s)
	wantKind(t, err, fault.InProgress)
	if ctx.Err() != nil {
		t.Error("the answer came after the deadline")
	}
	if err := c.client.Claim(t.Context(), host.DiskID(s.Name), host.Claim{Node: "node-a"}); fault.KindOf(err) != fault.InProgress {
		t.Errorf("claim of a disk that is not made: %v", err)
	}
	c.memory.FailNext(nil)
	c.create(s)
}

// Any number of controllers may hear the same request at once.
func TestCreateConcurrently(t *testing.T) {
	c := newCluster(t, "node-a", "node-b")
	s := spec("contended", "shared", "")
	var wg sync.WaitGroup
	uuids, errs := make([]string, 8), make([]error, 8)
	for i := range uuids {
		wg.Go(func() {
			other := kube.NewClient(kube.ClientParams{API: c.admin})
			d, err := other.Create(t.Context(), s)
			uuids[i], errs[i] = d.UUID, err
		})
	}
	wg.Wait()
	for i := range uuids {
		if errs[i] != nil || uuids[i] == "" || uuids[i] != uuids[0] {
			t.Fatalf("%v %v", uuids, errs)
		}
	}
}

func TestList(t *testing.T) {
	c := newCluster(t, "node-a")
	want := map[string]bool{}
	for i := range 5 {
		want[c.create(spec(fmt.Sprint("listed-", i), "local", "node-a")).ID] = true
	}
	token, seen, last := "", 0, ""
	for {
		page, next, err := c.client.List(t.Context(), 2, token)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range page {
			if !want[d.ID] || d.ID <= last {
				t.Fatalf("disk %s out of order or unknown", d.ID)
			}
			last = d.ID
			seen++
		}
		if token = next; token == "" {
			break
		}
	}
	if seen != len(want) {
		t.Fatalf("%d of %d disks", seen, len(want))
	}
	_, _, err := c.client.List(t.Context(), 0, "nonsense")
	wantKind(t, err, fault.Invalid)
}

func TestExpand(t *testing.T) {
	c := newCluster(t, "node-a")
	s := spec("growing", "local", "node-a")
	d := c.create(s)
	c.memory.FailNext(failing("expand", fault.New(fault.NoSpace, "Free space.", "full")))
	_, err := c.client.Expand(t.Context(), d.ID, 2*s.Size)
	wantKind(t, err, fault.NoSpace)
	if cond := meta.FindStatusCondition(c.object(d.ID).Status.Conditions, v1alpha1.ConditionExpanded); cond == nil || cond.Status != metav1.ConditionFalse {
		t.Fatalf("condition Expanded: %+v", cond)
	}
	// The same request again gets a fresh answer.
	c.memory.FailNext(nil)
	grown, err := c.client.Expand(t.Context(), d.ID, 2*s.Size)
	if err != nil || grown.Size != 2*s.Size {
		t.Fatalf("%+v %v", grown, err)
	}
	if again := c.create(s); again.Size != 2*s.Size {
		t.Fatalf("the first request is no longer recognized: %+v", again)
	}
	if small, err := c.client.Expand(t.Context(), d.ID, s.Size); err != nil || small.Size != 2*s.Size {
		t.Fatalf("%+v %v", small, err)
	}
	_, err = c.client.Expand(t.Context(), host.DiskID("nobody"), s.Size)
	wantKind(t, err, fault.NotFound)
	vd := c.object(d.ID)
	vd.Spec.SizeBytes = s.Size
	if err := c.admin.Update(t.Context(), vd); !apierrors.IsInvalid(err) {
		t.Fatalf("the API let a disk shrink: %v", err)
	}
}

func TestDeleteRefusedAndRepeated(t *testing.T) {
	c := newCluster(t, "node-a")
	d := c.create(spec("stubborn", "local", "node-a"))
	claim := host.Claim{Node: "node-a"}
	if err := c.client.Claim(t.Context(), d.ID, claim); err != nil {
		t.Fatal(err)
	}
	wantKind(t, c.client.Delete(t.Context(), d.ID), fault.InUse)
	if err := c.client.Unclaim(t.Context(), d.ID, "node-a"); err != nil {
		t.Fatal(err)
	}
	c.memory.FailNext(failing("delete", fault.New(fault.ReadOnly, "Mount it for writing.", "the file system is read-only")))
	wantKind(t, c.client.Delete(t.Context(), d.ID), fault.ReadOnly)
	wantKind(t, c.client.Claim(t.Context(), d.ID, claim), fault.Precondition)
	_, err := c.client.Create(t.Context(), spec("stubborn", "local", "node-a"))
	wantKind(t, err, fault.InProgress)
	c.memory.FailNext(nil)
	if err := c.client.Delete(t.Context(), d.ID); err != nil {
		t.Fatal(err)
	}
}

func setReady(c *cluster, name string, status corev1.ConditionStatus) {
	c.t.Helper()
	node := &corev1.Node{}
	if err := c.admin.Get(context.Background(), client.ObjectKey{Name: name}, node); err != nil {
		c.t.Fatal(err)
	}
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status}}
	if err := c.admin.Status().Update(context.Background(), node); err != nil {
		c.t.Fatal(err)
	}
}

// The host that was picked goes away before it answers: on a shared datastore another one makes the disk.
func TestPickedHostGoesAway(t *testing.T) {
	c := newCluster(t, "node-a", "node-b")
	for _, stop := range c.stops {
		stop()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	s := spec("moving", "shared", "node-a")
	_, err := c.client.Create(ctx, s)
	wantKind(t, err, fault.InProgress)
	setReady(c, "node-a", corev1.ConditionUnknown)
	t.Cleanup(func() { setReady(c, "node-a", corev1.ConditionTrue) })
	c.startAgent("node-b", c.memory.On("node-b"))
	c.create(s)
	if vd := c.object(host.DiskID(s.Name)); vd.Spec.Host != "node-b" {
		t.Fatalf("host %s", vd.Spec.Host)
	}
	_, err = c.client.Create(t.Context(), spec("not here", "local", "node-a"))
	wantKind(t, err, fault.Unavailable)
}

// A node that is gone for good: the disk says what to do, and the documented command ends it.
func TestDeleteOnLostNode(t *testing.T) {
	c := newCluster(t, "node-a", "node-lost")
	d := c.create(spec("lost", "local", "node-lost"))
	c.stops["node-lost"]()
	node := &corev1.Node{}
	node.Name = "node-lost"
	if err := c.admin.Delete(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	err := c.client.Delete(t.Context(), d.ID)
	wantKind(t, err, fault.Unavailable)
	cond := meta.FindStatusCondition(c.object(d.ID).Status.Conditions, v1alpha1.ConditionDeleted)
	if cond == nil || !strings.Contains(cond.Message, "kubectl patch virtualdisk "+d.ID) || !strings.Contains(err.Error(), "kubectl patch") {
		t.Fatalf("condition %+v, error %v", cond, err)
	}
	c.forget(c.object(d.ID))
	if err := c.client.Delete(t.Context(), d.ID); err != nil {
		t.Fatal(err)
	}
}

func TestErrorsAreFaults(t *testing.T) {
	c := newCluster(t, "node-a")
	for _, id := range []string{"", "vd-x", "../x", strings.Repeat("v", 3000)} {
		_, err := c.client.Get(t.Context(), id)
		var f *fault.Fault
		if !errors.As(err, &f) || f.Kind != fault.NotFound {
			t.Errorf("get %.10q: %v", id, err)
		}
		if err := c.client.Delete(t.Context(), id); err != nil {
			t.Errorf("delete %.10q: %v", id, err)
		}
		if err := c.client.Unclaim(t.Context(), id, ""); err != nil {
			t.Errorf("unclaim %.10q: %v", id, err)
		}
	}
}
