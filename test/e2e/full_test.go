//go:build e2e

package e2e

import (
	"strings"
	"testing"
)

// full is a datastore that fills up under a pod, a snapshot and copies: each is told, nothing half-made stays in the way, and with
// room again everything goes on.
func full(t *testing.T) {
	e := newEnv(t)
	e.claim(claim{Name: "c", Class: "e2e-small-thin", Size: "24Mi"})
	e.pod(pod{Name: "p", Claim: "c"})
	e.running("p")
	d := e.diskOf("c")
	node := e.attachedOn(d.Name)
	e.exec("p", putFile+"put a 6000000")
	e.snapshot("before", "c", "e2e")
	e.ready("before")
	want := e.exec("p", listing)
	const filler = "/var/lib/vmdk-csi/small/filler"
	defer e.host("docker", "exec", node, "rm", "-f", filler)
	// all but a little: the copy of 6 MB fails in the middle
	e.host("docker", "exec", node, "sh", "-c", "! dd if=/dev/zero of="+filler+" bs=64k 2>/dev/null; truncate -s -2M "+filler)
	e.claim(claim{Name: "full", Class: "e2e-small-full", Size: "24Mi", Snapshot: "before"})
	e.eventually("PersistentVolumeClaim", "full", "ProvisioningFailed", "no space left")
	e.host("docker", "exec", node, "sh", "-c", "! dd if=/dev/zero bs=4k 2>/dev/null >>"+filler)
	e.snapshot("in-vain", "c", "e2e")
	e.snapshotFails("in-vain", "no space left")
	const write = "if dd if=/dev/urandom of=/data/$1 bs=1M count=8 conv=fsync 2>/dev/null; then echo WROTE; else echo FAILED; fi"
	if out := e.in("exec", "p", "--", "sh", "-c", write, "sh", "x1"); out != "FAILED" {
		t.Errorf("a write into a full datastore: %s", out)
	}
	e.eventually("PersistentVolumeClaim", "c", "Warning DatastoreFull", "no space left")
	e.host("docker", "exec", node, "rm", "-f", filler)
	if out := e.in("exec", "p", "--", "sh", "-c", write, "sh", "x2"); out != "WROTE" {
		t.Errorf("a write after there was room again: %s", out)
	}
	e.ready("in-vain")
	e.pod(pod{Name: "full", Claim: "full", Script: listing})
	if got := strings.TrimSpace(e.done("full")); got != want {
		t.Errorf("the copy holds %q, want %q", got, want)
	}
	if got := e.exec("p", listing); got != want {
		t.Errorf("the source holds %q, want %q", got, want)
	}
	e.deleteSnapshot("in-vain")
	e.deleteSnapshot("before")
	e.links(d.Name, 1)
}
