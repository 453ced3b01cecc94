//go:build e2e

package e2e

import (
	"os/exec"
	"strings"
	"testing"
	"time"
)

// freezeOfHungFileSystem: the process that serves the disk is stopped, so the pod's file system cannot come to a stand. The freeze is
// given up at its deadline; once the disk serves again the snapshot is taken all the same, and the pod goes on.
func freezeOfHungFileSystem(t *testing.T) {
	e := newEnv(t)
	e.claim(claim{Name: "c", Class: "e2e-ext4"})
	e.pod(pod{Name: "p", Claim: "c", Script: steadyWriter})
	e.running("p")
	e.advances("p", 3)
	d := e.diskOf("c")
	node := e.attachedOn(d.Name)
	pid := e.workerPID(node, d.Name)
	e.host("docker", "exec", node, "kill", "-STOP", pid)
	goOn := func() { _ = exec.Command("docker", "exec", node, "kill", "-CONT", pid).Run() }
	defer goOn()
	e.snapshot("s", "c", "e2e-hasty")
	e.wait(time.Minute, "the driver is asked for the snapshot", func() (string, bool) {
		saw, _ := tryKubectl("get", "disksnapshots", "-o", "jsonpath={.items[*].spec.disk}")
		return saw, strings.Contains(saw, d.Name)
	})
	time.Sleep(5 * time.Second) // the deadline is 3 s; there is nothing to look at from outside until it has passed
	goOn()
	ds := e.ready("s")
	if ds.Status.Consistency != "crash" {
		t.Errorf("the snapshot is %q although the file system did not stand still in time", ds.Status.Consistency)
	}
	e.advances("p", 10)
	e.complete("p")
	e.copyFrom(claim{Name: "r", Class: "e2e-copy-ext4", Snapshot: "s"}, "awk '$1 != NR {print \"hole at\", NR; exit}' /data/log; wc -l </data/log")
	if got := strings.Fields(e.said("r")); len(got) != 1 {
		t.Errorf("restored: %q", got)
	}
}
