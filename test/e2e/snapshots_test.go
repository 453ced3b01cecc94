//go:build e2e

package e2e

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/api/v1alpha1"
)

// restoreBesideSource: snapshot and clone of a disk in use, restored at the same and at a larger size; the copies are mounted on
// the node of their source, each with its own content.
func restoreBesideSource(t *testing.T) {
	for _, fs := range []string{"xfs", "ext4", "btrfs"} {
		t.Run(fs, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t)
			e.claim(claim{Name: "c", Class: "e2e-" + fs})
			e.pod(pod{Name: "p", Claim: "c"})
			e.running("p")
			e.exec("p", putFile+"put a 3000000")
			onlyA := e.exec("p", listing)
			e.snapshot("s", "c", "e2e-freeze")
			if ds := e.ready("s"); ds.Status.Consistency != "filesystem" {
				t.Errorf("the snapshot of a frozen file system is %q: %v", ds.Status.Consistency, ds.Status.Conditions)
			}
			e.exec("p", putFile+"put b 2000000; put a 1000")
			both := e.exec("p", listing)
			e.copyFrom(claim{Name: "same", Class: "e2e-copy-" + fs, Snapshot: "s"}, listing)
			e.copyFrom(claim{Name: "large", Class: "e2e-copy-" + fs, Snapshot: "s", Size: "640Mi"}, listing)
			e.copyFrom(claim{Name: "clone", Class: "e2e-copy-" + fs, Clone: "c"}, listing)
			for name, want := range map[string]string{"same": onlyA, "large": onlyA, "clone": both} {
				if got := e.said(name); got != want {
					t.Errorf("%s holds %q, want %q", name, got, want)
				}
			}
			if got, was := e.kib("large", 2), e.kib("same", 2); got < was+250*1024 {
				t.Errorf("the file system of the larger disk has %d KiB, of the other %d", got, was)
			}
			// what one writes no other sees
			for _, name := range []string{"p", "same", "large", "clone"} {
				e.exec(name, "echo "+name+" >/data/mine && sync -f /data/mine")
			}
			for _, name := range []string{"p", "same", "large", "clone"} {
				if got := e.exec(name, "cat /data/mine"); got != name {
					t.Errorf("%s reads %q", name, got)
				}
			}
			if got := e.exec("p", listing); got != both {
				t.Errorf("the source holds %q, want %q", got, both)
			}
			e.wholeInQEMU(fs, "same", "large", "clone", "c")
		})
	}
}

// wholeInQEMU deletes all pods and has qemu-img and the file system's own checker look at the claims' disks.
func (e *env) wholeInQEMU(fs string, claims ...string) {
	e.t.Helper()
	e.in("delete", "pod", "--all", "--now", "--wait", "--timeout=120s")
	check := map[string][]string{"xfs": {"xfs_repair", "-n", "-f"}, "ext4": {"e2fsck", "-fn"}, "btrfs": {"btrfs", "check", "--readonly"}}[fs]
	for _, c := range claims {
		raw := e.raw(e.diskOf(c))
		e.host(append(slices.Clone(check), raw)...)
	}
}

// detachedSnapshots: linked and full restores and a clone of a detached disk; the source goes and its snapshot is restored
// afterwards; the snapshot goes and what was restored stays whole.
func detachedSnapshots(t *testing.T) {
	e := newEnv(t)
	e.claim(claim{Name: "c", Class: "e2e-sparse"})
	want := strings.TrimSpace(e.runPod(pod{Name: "w", Claim: "c", Script: putFile + "put a 5000000; " + listing}))
	source := e.diskOf("c")
	e.detached(source.Name)
	e.snapshot("s", "c", "e2e")
	if ds := e.ready("s"); ds.Status.Consistency != "filesystem" {
		t.Errorf("a disk that was released cleanly gives a snapshot that is %q", ds.Status.Consistency)
	}
	e.copyFrom(claim{Name: "full", Class: "e2e-copy-full", Snapshot: "s"}, listing)
	e.copyFrom(claim{Name: "clone", Class: "e2e-copy-xfs", Clone: "c"}, listing)
	for _, name := range []string{"full", "clone"} {
		if got := strings.TrimSpace(e.said(name)); got != want {
			t.Errorf("%s holds %q, want %q", name, got, want)
		}
	}
	if n := len(e.diskOf("full").Status.Links); n != 1 {
		t.Errorf("the full copy has %d links", n)
	}
	e.deleteClaim("c")
	e.wait(soon, "the disk is retired", func() (string, bool) {
		p := e.disk(source.Name).Status.Phase
		return p, p == "Retired"
	})
	e.copyFrom(claim{Name: "after", Class: "e2e-copy-xfs", Snapshot: "s"}, listing)
	if got := strings.TrimSpace(e.said("after")); got != want {
		t.Errorf("restored after the source went: %q, want %q", got, want)
	}
	e.deleteSnapshot("s")
	e.diskIsGone(source)
	e.in("delete", "pod", "--all", "--now", "--wait", "--timeout=120s")
	for _, name := range []string{"full", "clone", "after"} {
		if got := strings.TrimSpace(e.runPod(pod{Name: name + "-2", Claim: name, Script: listing})); got != want {
			t.Errorf("%s after its snapshot went: %q, want %q", name, got, want)
		}
	}
}

// anyOrder makes a snapshot, a restore of it, a snapshot of that and a clone of that, deletes them in several orders, and looks
// whether what is still there is whole, and whether nothing is left at last.
func anyOrder(t *testing.T) {
	for _, order := range []string{"c s r s2 k", "k s2 r s c", "s r c k s2"} {
		t.Run(strings.ReplaceAll(order, " ", "-"), func(t *testing.T) {
			t.Parallel()
			e := newEnv(t)
			e.claim(claim{Name: "c", Class: "e2e-shared"})
			want := strings.TrimSpace(e.runPod(pod{Name: "w", Claim: "c", Script: putFile + "put a 2000000; " + listing}))
			e.snapshot("s", "c", "e2e")
			e.claim(claim{Name: "r", Class: "e2e-shared", Snapshot: "s"})
			e.ready("s")
			disks := []*disk{e.diskOf("c"), e.diskOf("r")}
			e.snapshot("s2", "r", "e2e")
			e.claim(claim{Name: "k", Class: "e2e-shared", Clone: "r"})
			e.ready("s2")
			disks = append(disks, e.diskOf("k"))
			left := strings.Fields(order)
			for i, name := range left {
				if strings.HasPrefix(name, "s") {
					e.deleteSnapshot(name)
				} else {
					e.deleteClaim(name)
				}
				if i == 2 {
					for _, c := range left[i+1:] {
						if strings.HasPrefix(c, "s") {
							continue
						}
						if got := strings.TrimSpace(e.runPod(pod{Name: "r-" + c, Claim: c, Script: listing})); got != want {
							t.Errorf("%s holds %q, want %q", c, got, want)
						}
					}
				}
			}
			for _, d := range disks {
				e.diskIsGone(d)
			}
		})
	}
}

// growthWithSnapshots: a disk with a snapshot grows online; VMware would refuse the step until the links are merged, which
// happens in the background and gives the space back.
func growthWithSnapshots(t *testing.T) {
	for _, class := range []string{"e2e-xfs", "e2e-sparse"} {
		t.Run(class, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t)
			e.claim(claim{Name: "c", Class: class})
			e.pod(pod{Name: "p", Claim: "c", Script: "dd if=/dev/urandom of=/data/blob bs=1M count=24 conv=fsync 2>/dev/null\n" + steadyWriter})
			e.running("p")
			e.advances("p", 3)
			d := e.diskOf("c")
			e.snapshot("s", "c", "e2e-freeze")
			e.ready("s")
			e.exec("p", "dd if=/dev/urandom of=/data/blob bs=1M count=24 conv=notrunc,fsync 2>/dev/null")
			want := e.exec("p", readSum)
			e.in("patch", "pvc", "c", "-p", `{"spec":{"resources":{"requests":{"storage":"640Mi"}}}}`)
			e.condition(d.Name, v1alpha1.ConditionVMwareReadable, "False")
			e.podSees("p", "640Mi", 550*1024)
			used := e.links(d.Name, 2).Status.UsedBytes
			e.deleteSnapshot("s")
			d = e.links(d.Name, 1)
			e.condition(d.Name, v1alpha1.ConditionVMwareReadable, "True")
			e.wait(soon, "the space came back", func() (string, bool) {
				now := e.disk(d.Name).Status.UsedBytes
				return fmt.Sprintf("%d bytes, %d before", now, used), now < used-16<<20
			})
			e.eventually("PersistentVolumeClaim", "c", "Consolidated", "came back")
			e.advances("p", 5)
			if got := e.exec("p", readSum); got != want {
				t.Errorf("content changed: %s, was %s", got, want)
			}
			e.complete("p")
			e.deletePod("p")
			if got := e.sumInImage(e.raw(d), "xfs", 0, "blob"); got != want {
				t.Errorf("through qemu-img: %s, the pod wrote %s", got, want)
			}
		})
	}
}

// podSees waits until the claim has the size and the pod's file system at least so many KiB.
func (e *env) podSees(podName, size string, kib int) {
	e.t.Helper()
	e.wait(podTimeout, "the disk has grown", func() (string, bool) {
		got := e.in("get", "pvc", "c", "-o", "jsonpath={.status.conditions[*].type}{.status.capacity.storage}")
		return got, strings.Contains(got, "FileSystemResizePending") || strings.Contains(got, size)
	})
	// The kubelet looks at a pod when something about it changes, else once a minute.
	e.in("annotate", "pod", podName, "looked-at=now")
	e.wait(podTimeout, "the pod sees the new size", func() (string, bool) {
		now := e.kib(podName, 2)
		return fmt.Sprintf("%d KiB", now), now > kib
	})
}

// flattened: a restore that is larger than its source shares a shorter base, which VMware would refuse; nothing can be merged,
// and vmdkctl makes one link of it, which shares nothing.
func flattened(t *testing.T) {
	e := newEnv(t)
	e.claim(claim{Name: "c", Class: "e2e-shared"})
	want := strings.TrimSpace(e.runPod(pod{Name: "w", Claim: "c", Script: putFile + "put a 5000000; " + listing}))
	e.snapshot("s", "c", "e2e")
	e.ready("s")
	e.claim(claim{Name: "larger", Class: "e2e-shared", Size: "640Mi", Snapshot: "s"})
	if got := strings.TrimSpace(e.runPod(pod{Name: "before", Claim: "larger", Script: listing})); got != want {
		t.Errorf("the restore holds %q, want %q", got, want)
	}
	d := e.diskOf("larger")
	e.condition(d.Name, v1alpha1.ConditionVMwareReadable, "False")
	e.detached(d.Name)
	tool := filepath.Join(t.TempDir(), "vmdkctl")
	e.host("go", "build", "-o", tool, "../../cmd/vmdkctl")
	e.host(tool, "flatten", "--datastore", sharedRoots()["shared"], d.Name)
	if got := strings.TrimSpace(e.runPod(pod{Name: "after", Claim: "larger", Script: listing})); got != want {
		t.Errorf("flattened, the disk holds %q, want %q", got, want)
	}
	e.condition(d.Name, v1alpha1.ConditionVMwareReadable, "True")
	e.links(d.Name, 1)
	if size := e.host("stat", "-c", "%s", e.raw(d)); size != fmt.Sprint(640<<20) {
		t.Errorf("qemu-img reads %s bytes", size)
	}
}

// snapshotOfFullFileSystem: the pod has no room left, its snapshot needs none; a file that is deleted in the restore makes room
// there and is still in the source.
func snapshotOfFullFileSystem(t *testing.T) {
	e := newEnv(t)
	e.claim(claim{Name: "c", Class: "e2e-ext4", Size: "64Mi"})
	e.pod(pod{Name: "p", Claim: "c"})
	e.running("p")
	e.exec("p", "! dd if=/dev/urandom of=/data/blob bs=1M 2>/dev/null; sync -f /data/blob")
	want := e.exec("p", readSum)
	e.snapshot("s", "c", "e2e-freeze")
	e.ready("s")
	e.copyFrom(claim{Name: "r", Class: "e2e-copy-ext4", Size: "64Mi", Snapshot: "s"}, readSum)
	if got := strings.TrimSpace(e.said("r")); got != want {
		t.Errorf("restored: %s, want %s", got, want)
	}
	e.exec("r", "rm /data/blob; echo room >/data/mine; sync -f /data/mine")
	if got := e.exec("p", readSum); got != want {
		t.Errorf("source: %s, want %s", got, want)
	}
}

// preProvisioned: a VolumeSnapshotContent made by hand from a snapshot's id is restored, and leaves the snapshot when it goes.
func preProvisioned(t *testing.T) {
	e := newEnv(t)
	e.claim(claim{Name: "c", Class: "e2e-shared"})
	want := strings.TrimSpace(e.runPod(pod{Name: "w", Claim: "c", Script: putFile + "put a 1000000; " + listing}))
	e.snapshot("s", "c", "e2e")
	id := e.ready("s").Name
	content := "again-" + e.ns
	e.apply(fmt.Sprintf(`apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshotContent
metadata: {name: %[1]s}
spec:
  deletionPolicy: Retain
  driver: csi.vmdk-csi.io
  source: {snapshotHandle: %[2]s}
  volumeSnapshotRef: {name: again, namespace: %[3]s}
---
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: again}
spec:
  source: {volumeSnapshotContentName: %[1]s}
`, content, id, e.ns))
	t.Cleanup(func() { _, _ = tryKubectl("delete", "volumesnapshotcontent", content, "--wait=false") })
	if ds := e.ready("again"); ds.Name != id {
		t.Errorf("bound to %s, want %s", ds.Name, id)
	}
	e.copyFrom(claim{Name: "r", Class: "e2e-shared", Snapshot: "again"}, listing)
	if got := strings.TrimSpace(e.said("r")); got != want {
		t.Errorf("restored: %q, want %q", got, want)
	}
	e.deleteSnapshot("again")
	e.kubectl("delete", "volumesnapshotcontent", content, "--wait", "--timeout=60s")
	if e.ready("s").Status.Ready != true {
		t.Error("the snapshot went with a content that retains it")
	}
}

// manySnapshots fills a chain: the snapshot that would exceed its depth says what to do, the others are there; they go again and
// the chain is short.
func manySnapshots(t *testing.T) {
	e := newEnv(t)
	e.claim(claim{Name: "c", Class: "e2e-sparse"})
	e.pod(pod{Name: "p", Claim: "c", Script: steadyWriter})
	e.running("p")
	d := e.diskOf("c")
	var manifest []string
	const limit = 32
	for i := range limit {
		manifest = append(manifest, fmt.Sprintf(`apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: s%d}
spec: {volumeSnapshotClassName: e2e, source: {persistentVolumeClaimName: c}}
`, i))
	}
	e.apply(strings.Join(manifest, "---\n"))
	e.links(d.Name, limit)
	e.wait(podTimeout, "one snapshot says that there are too many", func() (string, bool) {
		got := e.in("get", "volumesnapshots", "-o", "jsonpath={.items[*].status.error.message}")
		return got, containsAll(got, []string{fmt.Sprint(limit), "cloneMode full"})
	})
	e.advances("p", 3)
	e.in("delete", "volumesnapshot", "--all", "--wait", "--timeout=240s")
	e.links(d.Name, 1)
	e.advances("p", 3)
	e.complete("p")
	if files, _ := filepath.Glob(filepath.Join(e.files(d), "*-s001.vmdk")); len(files) != 1 {
		t.Errorf("files of merged links stay: %v", files)
	}
}

// badSnapshots: what a user did wrong stands where he looks, in words.
func badSnapshots(t *testing.T) {
	e := newEnv(t)
	e.snapshot("no-claim", "nobody", "e2e")
	e.claim(claim{Name: "waits", Class: "e2e-xfs"}) // for a pod: it has no disk
	e.snapshot("no-disk", "waits", "e2e")
	e.claim(claim{Name: "c", Class: "e2e-shared"})
	e.diskOf("c")
	e.snapshot("typo", "c", "e2e-typo")
	e.snapshot("s", "c", "e2e")
	e.ready("s")
	e.claim(claim{Name: "smaller", Class: "e2e-shared", Size: "310Mi", Snapshot: "s"})
	e.claim(claim{Name: "elsewhere", Class: "e2e-unlocked", Snapshot: "s"})
	e.claim(claim{Name: "smaller-clone", Class: "e2e-shared", Size: "310Mi", Clone: "c"})
	e.snapshotFails("no-claim", "cannot get claim")
	e.snapshotFails("no-disk", "waits")
	e.snapshotFails("typo", "freeze", "sometimes", "filesystem")
	e.eventually("PersistentVolumeClaim", "smaller", "ProvisioningFailed", "size")
	e.eventually("PersistentVolumeClaim", "smaller-clone", "ProvisioningFailed", "size")
	e.eventually("PersistentVolumeClaim", "elsewhere", "ProvisioningFailed", "datastore")
}
