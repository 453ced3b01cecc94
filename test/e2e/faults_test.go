//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// steadyWriter appends a numbered line with an fsync, several times a second, and keeps going whatever happens around it.
const steadyWriter = `i=0
while :; do
  i=$((i+1))
  echo "$i $(date +%s)" | dd of=/data/log oflag=append conv=notrunc,fsync 2>/dev/null || { echo "WRITE $i FAILED"; exit 1; }
  echo $i
  sleep 0.1
done`

// lines is how far the writer has come.
func (e *env) lines(podName string) int {
	e.t.Helper()
	tail := int64(1)
	out, err := e.api().CoreV1().Pods(e.ns).GetLogs(podName, &corev1.PodLogOptions{TailLines: &tail}).DoRaw(e.t.Context())
	if err != nil {
		e.t.Fatal(err)
	}
	f := strings.Fields(string(out))
	if len(f) == 0 {
		return 0
	}
	n, err := strconv.Atoi(f[len(f)-1])
	if err != nil {
		e.t.Fatalf("%s: %s", podName, strings.Join(f, " "))
	}
	return n
}

func (e *env) advances(podName string, by int) {
	e.t.Helper()
	from := e.lines(podName)
	e.wait(time.Minute, podName+" goes on writing", func() (string, bool) {
		n := e.lines(podName)
		return strconv.Itoa(n), n >= from+by
	})
}

// complete checks that the log holds every line from 1 on, once.
func (e *env) complete(podName string) {
	e.t.Helper()
	out := e.exec(podName, `awk '$1 != NR {print "line " NR " holds " $0; exit}' /data/log; wc -l </data/log`)
	if f := strings.Fields(out); len(f) != 1 {
		e.t.Errorf("the log has a hole or a double: %s", out)
	}
}

// workerDies is the heart of the demo: kill -9 of the disk's worker under a pod that writes, on a flat and on a
// sparse disk.
func workerDies(t *testing.T) {
	for _, class := range []string{"e2e-xfs", "e2e-sparse"} {
		t.Run(class, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t)
			e.claim(claim{Name: "c", Class: class})
			e.pod(pod{Name: "p", Claim: "c", Script: steadyWriter})
			e.running("p")
			e.advances("p", 5)
			d := e.diskOf("c")
			node := e.attachedOn(d.Name)
			for range 3 {
				e.killWorker(node, d.Name)
				e.advances("p", 10)
			}
			e.complete("p")
			e.wait(time.Minute, "the restarts are counted on the object", func() (string, bool) {
				a := e.disk(d.Name).Status.Attachments
				return fmt.Sprint(a), len(a) == 1 && a[0].Restarts >= 3
			})
		})
	}
}

// badParameters: what a user did wrong stands on the claim, in words.
func badParameters(t *testing.T) {
	for _, tc := range []struct {
		name, class, size string
		want              []string
	}{
		{"missing-datastore", "e2e-nowhere", "64Mi", []string{"ProvisioningFailed", "nowhere"}},
		{"too-small", "e2e-xfs-now", "10Mi", []string{"ProvisioningFailed", "smallest size", "300 MiB"}},
		{"read-only-datastore", "e2e-frozen", "64Mi", []string{"ProvisioningFailed", "read-only"}},
		{"unknown-format", "e2e-typo", "64Mi", []string{"ProvisioningFailed", "diskFormat", "thinn", "eagerzeroedthick"}},
		{"unknown-transport", "e2e-fc", "64Mi", []string{"ProvisioningFailed", "transport", "fc", "san, hotadd, nbd"}},
		{"too-large", "e2e-shared", "90Ti", []string{"ProvisioningFailed", "62"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t)
			e.claim(claim{Name: "c", Class: tc.class, Size: tc.size})
			e.eventually("PersistentVolumeClaim", "c", tc.want...)
		})
	}
}

// transportOrder: a directory does what it can of an order, and says why not the rest.
func transportOrder(t *testing.T) {
	e := newEnv(t)
	e.claim(claim{Name: "c", Class: "e2e-order", Size: "64Mi"})
	e.pod(pod{Name: "p", Claim: "c"})
	e.running("p")
	d := e.diskOf("c")
	e.reachedBy(d.Name, e.attachedOn(d.Name), "hotadd", "san")
	e.eventually("PersistentVolumeClaim", "c", "Normal TransportFallback", "by hotadd; not by san", "block maps need a LUN")

	// Hosts that share a LUN lend each other their directories, and a node itself.
	e.claim(claim{Name: "net", Class: "e2e-nbd", Size: "64Mi"})
	e.pod(pod{Name: "w", Claim: "net", Script: "echo over nbd >/data/file; sync; sleep 1000"})
	e.running("w")
	n := e.diskOf("net")
	e.reachedBy(n.Name, e.attachedOn(n.Name), "nbd")
	e.deletePod("w")
	if out := e.runPod(pod{Name: "r", Claim: "net", Script: "cat /data/file"}); strings.TrimSpace(out) != "over nbd" {
		t.Errorf("the second pod reads %q", out)
	}
}

// fullDatastore: a thick disk that does not fit leaves nothing behind, and says so on the claim.
func fullDatastore(t *testing.T) {
	e := newEnv(t)
	e.claim(claim{Name: "c", Class: "e2e-small", Size: "512Mi"})
	e.pod(pod{Name: "p", Claim: "c"})
	e.wait(2*time.Minute, "the claim or the pod says that there is no room", func() (string, bool) {
		got := e.events("PersistentVolumeClaim", "c") + e.events("Pod", "p")
		return got, strings.Contains(got, "did not have enough free storage") || strings.Contains(got, "full") ||
			strings.Contains(got, "no space") || strings.Contains(got, "NoSpace") || strings.Contains(got, "free")
	})
	e.in("delete", "pod", "p", "--now", "--wait")
	e.in("delete", "pvc", "c", "--wait")
}

// damagedFiles: a disk whose manifest or descriptor is damaged is not attached, the pod's events say which file it is and
// what to do, and once the file is whole again the same pod starts.
func damagedFiles(t *testing.T) {
	e := newEnv(t)
	flip := func(b []byte) []byte { b[len(b)/2] ^= 0x20; return b }
	cases := []struct {
		name, file string
		damage     func([]byte) []byte
		want       string
	}{
		{"manifest", "manifest-*.json", flip, "manifest-"},
		{"descriptor", "disk.vmdk", func(b []byte) []byte { return bytes.Replace(b, []byte("createType"), []byte("createTipe"), 1) }, "disk.vmdk"},
	}
	whole := map[string][]byte{}
	putBack := func() {
		for path, b := range whole {
			if err := os.WriteFile(path, b, 0o644); err != nil {
				t.Error(err)
			}
		}
	}
	defer putBack() // else the disk could not be deleted
	for _, tc := range cases {
		e.claim(claim{Name: tc.name, Class: "e2e-shared"})
		e.runPod(pod{Name: "w-" + tc.name, Claim: tc.name, Script: "echo " + tc.name + " >/data/f"})
		d := e.diskOf(tc.name)
		e.detached(d.Name)
		names, err := filepath.Glob(filepath.Join(e.files(d), tc.file))
		if err != nil || len(names) == 0 {
			t.Fatalf("no %s in %s", tc.file, e.files(d))
		}
		path := names[len(names)-1]
		whole[path] = mustRead(t, path)
		if err := os.WriteFile(path, tc.damage(bytes.Clone(whole[path])), 0o644); err != nil {
			t.Fatal(err)
		}
		e.pod(pod{Name: tc.name, Claim: tc.name, Script: "cat /data/f"})
	}
	for _, tc := range cases {
		e.eventually("Pod", tc.name, "Failed", tc.want)
	}
	putBack()
	for _, tc := range cases {
		if got := e.done(tc.name); strings.TrimSpace(got) != tc.name {
			t.Errorf("after the %s was put back: %q", tc.name, got)
		}
	}
}

// wrongFileSystem: a disk that holds ext4 is not formatted anew because a volume says xfs.
func wrongFileSystem(t *testing.T) {
	e := newEnv(t)
	e.claim(claim{Name: "c", Class: "e2e-ext4"})
	e.runPod(pod{Name: "w", Claim: "c", Script: "echo precious >/data/f"})
	d := e.diskOf("c")
	e.detached(d.Name)
	var pv map[string]any
	name := e.in("get", "pvc", "c", "-o", "jsonpath={.spec.volumeName}")
	if err := json.Unmarshal([]byte(e.kubectl("get", "pv", name, "-o", "json")), &pv); err != nil {
		t.Fatal(err)
	}
	spec := pv["spec"].(map[string]any)
	csi := spec["csi"].(map[string]any)
	csi["fsType"] = "xfs"
	other := map[string]any{"apiVersion": "v1", "kind": "PersistentVolume",
		"metadata": map[string]any{"name": "wrong-" + e.ns},
		"spec": map[string]any{"accessModes": []string{"ReadWriteOnce"}, "capacity": spec["capacity"], "csi": csi, "storageClassName": "",
			"persistentVolumeReclaimPolicy": "Retain", "nodeAffinity": spec["nodeAffinity"],
			"claimRef": map[string]any{"namespace": e.ns, "name": "x"}}}
	b, err := json.Marshal(other)
	if err != nil {
		t.Fatal(err)
	}
	e.apply(string(b))
	t.Cleanup(func() { _, _ = tryKubectl("delete", "pv", "wrong-"+e.ns, "--wait=false") })
	e.claim(claim{Name: "x", Volume: "wrong-" + e.ns})
	e.pod(pod{Name: "p", Claim: "x"})
	e.eventually("Pod", "p", "FailedMount", "ext4", "xfs")
	e.deletePod("p")
	if got := e.runPod(pod{Name: "r", Claim: "c", Script: "cat /data/f"}); strings.TrimSpace(got) != "precious" {
		t.Errorf("the content is %q", got)
	}
}

// podDeletedWhileStaging: pods that come and go faster than a disk is staged leave nothing behind.
func podDeletedWhileStaging(t *testing.T) {
	e := newEnv(t)
	e.claim(claim{Name: "c", Class: "e2e-xfs"})
	for i := range 4 {
		name := "p" + strconv.Itoa(i)
		e.pod(pod{Name: name, Claim: "c"})
		time.Sleep(time.Duration(i) * 700 * time.Millisecond) // a different moment of staging each time
		e.in("delete", "pod", name, "--now", "--wait", "--timeout=120s")
	}
	out := e.runPod(pod{Name: "last", Claim: "c", Script: "echo ok >/data/f; cat /data/f"})
	if strings.TrimSpace(out) != "ok" {
		t.Errorf("the last pod: %q", out)
	}
	e.detached(e.diskOf("c").Name)
}
