//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// full is a datastore that fills up under a pod, under snapshots (of a disk in use and of one that is not), in the middle of a
// copy and in the middle of a merge: each is told, nothing half-made stays in the way, and with room again everything goes on.
func full(t *testing.T) {
	e := newEnv(t)
	e.claim(claim{Name: "c", Class: "e2e-small-thin", Size: "32Mi"})
	e.pod(pod{Name: "p", Claim: "c"})
	e.running("p")
	d := e.diskOf("c")
	node := e.attachedOn(d.Name)
	e.claim(claim{Name: "idle", Class: "e2e-small-thin", Size: "16Mi"})
	want := strings.TrimSpace(e.runPod(pod{Name: "w", Claim: "idle", Node: node, Script: putFile + "put a 6000000; " + listing}))
	e.snapshot("before", "idle", "e2e")
	e.ready("before")
	e.detached(e.diskOf("idle").Name)
	const filler = "/var/lib/vmdk-csi/small/filler"
	defer e.host("docker", "exec", node, "rm", "-f", filler)
	// all but a little: a copy of more than 6 MB fails in the middle
	e.host("docker", "exec", node, "sh", "-c", "! dd if=/dev/zero of="+filler+" bs=64k 2>/dev/null; truncate -s -3M "+filler)
	e.claim(claim{Name: "full", Class: "e2e-small-full", Size: "16Mi", Snapshot: "before"})
	e.eventually("PersistentVolumeClaim", "full", "ProvisioningFailed", "no space left")
	e.host("docker", "exec", node, "sh", "-c", "! dd if=/dev/zero bs=4k 2>/dev/null >>"+filler)
	e.snapshot("in-use", "c", "e2e")
	e.snapshot("detached", "idle", "e2e")
	const write = "if dd if=/dev/urandom of=/data/$1 bs=1M count=8 conv=fsync 2>/dev/null; then echo WROTE; else echo FAILED; fi"
	if out := e.in("exec", "p", "--", "sh", "-c", write, "sh", "x1"); out != "FAILED" {
		t.Errorf("a write into a full datastore: %s", out)
	}
	e.snapshotFails("in-use", "no space left")
	e.snapshotFails("detached", "no space left")
	e.eventually("PersistentVolumeClaim", "c", "Warning DatastoreFull", "no space left")
	e.host("docker", "exec", node, "rm", "-f", filler)
	if out := e.in("exec", "p", "--", "sh", "-c", write, "sh", "x2"); out != "WROTE" {
		t.Errorf("a write after there was room again: %s", out)
	}
	e.pod(pod{Name: "full", Claim: "full", Script: listing})
	if got := strings.TrimSpace(e.done("full")); got != want {
		t.Errorf("the copy holds %q, want %q", got, want)
	}
	e.fullMerge(node, filler)
	for _, s := range []string{"in-use", "detached", "before"} {
		e.ready(s)
		e.deleteSnapshot(s)
	}
	e.links(d.Name, 1)
	if got := strings.TrimSpace(e.runPod(pod{Name: "r", Claim: "idle", Script: listing})); got != want {
		t.Errorf("the source holds %q, want %q", got, want)
	}
}

// fullMerge: what lies between two snapshots has to move into a neighbour, below or above, and for neither there is room.
func (e *env) fullMerge(node, filler string) {
	e.t.Helper()
	d := e.diskOf("c")
	e.ready("in-use")
	e.exec("p", "rm -f /data/x1; dd if=/dev/urandom of=/data/more bs=1M count=5 conv=fsync 2>/dev/null")
	e.snapshot("below", "c", "e2e")
	e.ready("below")
	e.exec("p", "dd if=/dev/urandom of=/data/blob bs=1M count=6 conv=fsync 2>/dev/null")
	want := e.exec("p", readSum)
	e.snapshot("above", "c", "e2e")
	e.ready("above")
	before := len(e.disk(d.Name).Status.Links)
	e.host("docker", "exec", node, "sh", "-c", "! dd if=/dev/zero of="+filler+" bs=64k 2>/dev/null; truncate -s -2M "+filler)
	e.deleteSnapshot("below")
	e.wait(podTimeout, "the merge of "+d.Name+" waits for room", func() (string, bool) {
		c := e.disk(d.Name).Status.Consolidation
		return fmt.Sprintf("%+v", c), c != nil && !c.Running && strings.Contains(c.Reason, "no space left")
	})
	if got := len(e.disk(d.Name).Status.Links); got < before {
		e.t.Errorf("%d links of %d: something was merged without room for it", got, before)
	}
	if got := e.exec("p", readSum); got != want {
		e.t.Errorf("the pod reads %s, it wrote %s", got, want)
	}
	e.host("docker", "exec", node, "rm", "-f", filler)
	e.links(d.Name, before-1)
	if got := e.exec("p", readSum); got != want {
		e.t.Errorf("after the merge the pod reads %s, it wrote %s", got, want)
	}
	e.deleteSnapshot("above")
}
