//go:build e2e

package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/test/cluster"
)

// restarts ends every component under a pod that writes, each in the middle of a snapshot and of a restore of the snapshot
// before, and each anew before the last one's work is done. Everything that was asked for comes about; then the claim is
// moved, which needs them all.
func restarts(t *testing.T) {
	e := newEnv(t)
	e.claim(claim{Name: "c", Class: "e2e-sparse"})
	e.pod(pod{Name: "p", Claim: "c", Script: steadyWriter})
	e.running("p")
	e.advances("p", 3)
	d := e.diskOf("c")
	node := e.attachedOn(d.Name)
	e.snapshot("s0", "c", "e2e-freeze")
	e.ready("s0")
	faults := []struct {
		name string
		do   func()
	}{
		{"worker killed", func() { e.killWorker(node, d.Name) }},
		{"hostd killed", func() { e.killProgram(node, "vmdk-hostd") }},
		{"node plugin killed", func() { e.killProgram(node, "vmdk-csi-node") }},
		{"controllers deleted", func() { e.deleteComponent("controller", "--grace-period=0", "--force") }},
		{"worker killed again", func() { e.killWorker(node, d.Name) }},
		{"node plugin deleted", func() { e.deleteComponent("node", "--field-selector", "spec.nodeName="+node) }},
		{"hostd deleted", func() {
			e.deleteComponent("hostd", "--grace-period=0", "--force", "--field-selector", "spec.nodeName="+node)
		}},
		// an upgrade: hostd surges, the successor takes every disk from its predecessor
		{"hostd upgraded", func() {
			e.kubectl("-n", cluster.DriverNamespace, "rollout", "restart", "daemonset", "-l", "app.kubernetes.io/component=hostd")
		}},
		{"API server stopped", func() {
			e.host("docker", "exec", cluster.Name+"-control-plane", "sh", "-c", `crictl ps -q --name kube-apiserver | xargs -r crictl stop >/dev/null`)
			e.wait(podTimeout, "the API server is back", func() (string, bool) {
				out, err := tryKubectl("get", "--raw", "/readyz")
				return out, err == nil && out == "ok"
			})
		}},
	}
	lines := map[string][2]int{}
	for i, f := range faults {
		began, snap := e.lines("p"), fmt.Sprintf("s%d", i+1)
		e.snapshot(snap, "c", "e2e-freeze")
		e.claim(claim{Name: fmt.Sprintf("r%d", i+1), Class: "e2e-copy-xfs", Snapshot: fmt.Sprintf("s%d", i)})
		f.do()
		t.Log(f.name)
		e.advances("p", 15)
		e.ready(snap)
		lines[snap] = [2]int{began, e.lines("p")}
	}
	e.kubectl("-n", cluster.DriverNamespace, "rollout", "status", "daemonset", "-l", "app.kubernetes.io/component=hostd", "--timeout=180s")
	e.complete("p")
	for i := 1; i < len(faults); i++ { // r<i+1> is of s<i>
		name := fmt.Sprintf("r%d", i+1)
		e.pod(pod{Name: name, Claim: name, Script: "awk '$1 != NR {print \"hole at\", NR; exit}' /data/log; wc -l </data/log"})
	}
	for i := 1; i < len(faults); i++ {
		name, between := fmt.Sprintf("r%d", i+1), lines[fmt.Sprintf("s%d", i)]
		out := strings.TrimSpace(e.done(name))
		if n, err := strconv.Atoi(out); err != nil || n < between[0] || n > between[1] {
			t.Errorf("%s, of the snapshot taken when %s, holds %q lines, want between %v", name, faults[i-1].name, out, between)
		}
	}
	e.deletePod("p")
	if out := strings.Fields(e.runPod(pod{Name: "q", Claim: "c", Script: "tail -1 /data/log"})); len(out) != 2 {
		t.Errorf("the second pod reads %q", out)
	}
	// A provisioner that could not reach the API server when a restore was done takes its finalizer off the snapshot with its next
	// look, five minutes later (external-provisioner, snapshot_finalizer_controller.go).
	e.in("delete", "pod,volumesnapshot", "--all", "--now", "--wait", "--timeout=400s")
	for i := range faults {
		e.in("delete", "pvc", fmt.Sprintf("r%d", i+1), "--wait=false")
	}
	e.detached(d.Name)
	e.links(d.Name, 1)
}

// deleteComponent deletes the driver's pods of one kind and waits for their successors.
func (e *env) deleteComponent(component string, args ...string) {
	e.t.Helper()
	sel := "app.kubernetes.io/component=" + component
	e.kubectl(append([]string{"-n", cluster.DriverNamespace, "delete", "pod", "-l", sel, "--wait=false"}, args...)...)
	e.wait(podTimeout, component+" is back", func() (string, bool) {
		out, err := tryKubectl("-n", cluster.DriverNamespace, "wait", "pod", "-l", sel, "--for=condition=Ready", "--timeout=5s")
		return out, err == nil
	})
}

// killProgram kills -9 the one process on the node that is the container's first and runs the program.
func (e *env) killProgram(node, program string) {
	e.t.Helper()
	out := e.host("docker", "exec", node, "sh", "-c", `for c in $(crictl ps -q --name "$1"); do
  pid=$(crictl inspect --output go-template --template '{{.info.pid}}' $c)
  case $(readlink /proc/$pid/exe) in */"$1") kill -9 $pid && echo $pid;; esac
done`, "sh", program)
	if strings.TrimSpace(out) == "" {
		e.t.Fatalf("no %s runs on %s: the test would prove nothing", program, node)
	}
}
