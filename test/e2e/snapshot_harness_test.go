//go:build e2e

package e2e

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/vmdk-csi/vmdk-csi/pkg/api/v1alpha1"
)

var (
	snapshots = schema.GroupVersionResource{Group: "snapshot.storage.k8s.io", Version: "v1", Resource: "volumesnapshots"}
	contents  = schema.GroupVersionResource{Group: "snapshot.storage.k8s.io", Version: "v1", Resource: "volumesnapshotcontents"}
)

func (e *env) snapshot(name, claimName, class string) {
	e.t.Helper()
	e.apply(fmt.Sprintf(`apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: %s}
spec:
  volumeSnapshotClassName: %s
  source: {persistentVolumeClaimName: %s}
`, name, class, claimName))
}

// ready waits until the VolumeSnapshot can be restored, and returns its DiskSnapshot.
func (e *env) ready(name string) *v1alpha1.DiskSnapshot {
	e.t.Helper()
	var content string
	e.wait(podTimeout, "snapshot "+name+" is ready", func() (string, bool) {
		s := e.object(snapshots, e.ns, name)
		ok, _, _ := unstructured.NestedBool(s.Object, "status", "readyToUse")
		content, _, _ = unstructured.NestedString(s.Object, "status", "boundVolumeSnapshotContentName")
		return fmt.Sprint(s.Object["status"]), ok && content != ""
	})
	handle, _, _ := unstructured.NestedString(e.object(contents, "", content).Object, "status", "snapshotHandle")
	ds := new(v1alpha1.DiskSnapshot)
	e.into(e.object(v1alpha1.GroupVersion.WithResource("disksnapshots"), "", handle), ds)
	return ds
}

// snapshotFails waits until the VolumeSnapshot says why it is not made.
func (e *env) snapshotFails(name string, want ...string) {
	e.t.Helper()
	e.wait(podTimeout, fmt.Sprintf("snapshot %s says %q", name, want), func() (string, bool) {
		got, _, _ := unstructured.NestedString(e.object(snapshots, e.ns, name).Object, "status", "error", "message")
		got += e.events("VolumeSnapshot", name)
		return got, containsAll(got, want)
	})
}

func containsAll(s string, want []string) bool {
	for _, w := range want {
		if !strings.Contains(s, w) {
			return false
		}
	}
	return true
}

func (e *env) deleteSnapshot(name string) {
	e.t.Helper()
	e.in("delete", "volumesnapshot", name, "--wait", "--timeout=120s")
}

func (e *env) deleteClaim(name string) {
	e.t.Helper()
	e.in("delete", "pvc", name, "--wait", "--timeout=120s")
}

// links waits until the disk's chain has that many.
func (e *env) links(id string, want int) *disk {
	e.t.Helper()
	var d *disk
	e.wait(podTimeout, fmt.Sprintf("the chain of %s has %d links", id, want), func() (string, bool) {
		d = e.disk(id)
		return fmt.Sprintf("%d links, consolidation %+v", len(d.Status.Links), d.Status.Consolidation), len(d.Status.Links) == want
	})
	return d
}

// condition waits until the disk's condition has the status.
func (e *env) condition(id, condition, want string) {
	e.t.Helper()
	e.wait(podTimeout, fmt.Sprintf("condition %s of %s is %s", condition, id, want), func() (string, bool) {
		for _, c := range e.disk(id).Status.Conditions {
			if c.Type == condition {
				return fmt.Sprint(c.Status, " ", c.Message), string(c.Status) == want
			}
		}
		return "no such condition", false
	})
}

// diskIsGone waits until neither object nor directory is left of the disk.
func (e *env) diskIsGone(d *disk) {
	e.t.Helper()
	e.wait(goneTimeout, "nothing is left of disk "+d.Name, func() (string, bool) {
		out, err := tryKubectl("get", "virtualdisk", d.Name, "-o", "jsonpath={.status.phase} {.status.snapshots} {.status.conditions}")
		dirs, _ := filepath.Glob(e.files(d))
		return fmt.Sprint(out, dirs), err != nil && strings.Contains(out, "NotFound") && len(dirs) == 0
	})
}

// said waits for what the pod prints first and returns it.
func (e *env) said(podName string) string {
	e.t.Helper()
	e.running(podName)
	var got string
	e.wait(podTimeout, podName+" prints something", func() (string, bool) {
		got = e.in("logs", podName)
		return got, got != ""
	})
	return got
}

// copyFrom makes a claim from a snapshot or a claim and a pod that runs script in it and stays.
func (e *env) copyFrom(c claim, script string) {
	e.t.Helper()
	e.claim(c)
	e.pod(pod{Name: c.Name, Claim: c.Name, Script: script + "\nwhile :; do sleep 1; done"})
}

// writes a MiB of one letter to /data/NAME; sizes of such files say which of them there are.
const putFile = `put() { head -c $2 /dev/zero | tr '\0' "$1" | dd of=/data/$1 bs=1M iflag=fullblock conv=fsync 2>/dev/null; }
`

// listing prints every file of /data that put made, with a checksum.
const listing = `cd /data; for f in ?; do echo "$f $(md5sum <$f | cut -c1-8)"; done | paste -sd, -`

// kib is a column of df in KiB.
func (e *env) kib(podName string, column int) int {
	e.t.Helper()
	n, err := strconv.Atoi(e.exec(podName, fmt.Sprintf("df -k /data | tail -1 | awk '{print $%d}'", column)))
	if err != nil {
		e.t.Fatal(err)
	}
	return n
}

// soon is for what takes no more than a look or two.
const soon = 30 * time.Second
