//go:build e2e

package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
)

// sharedDatastore is what two workers do with one datastore: a snapshot while the disk is attached to the other one, restore and
// clone there, one snapshot read on both at once, and the move of the claim. The workers share a kernel, where file locks
// look better than on a network; so it is done once more where nobody takes one.
func sharedDatastore(t *testing.T) {
	for _, class := range []string{"e2e-shared", "e2e-unlocked"} {
		t.Run(class, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t)
			w := e.workers()
			e.claim(claim{Name: "c", Class: class})
			e.pod(pod{Name: "a", Claim: "c", Node: w[0], Script: putFile + "put a 3000000\n" + listing + ">/tmp/said\n" + steadyWriter})
			e.running("a")
			e.advances("a", 3)
			onlyA := e.exec("a", "cat /tmp/said")
			e.snapshot("s", "c", "e2e-freeze")
			if ds := e.ready("s"); ds.Status.Consistency != "filesystem" {
				t.Errorf("consistency %q", ds.Status.Consistency)
			}
			e.exec("a", putFile+"put b 1000000")
			both := e.exec("a", listing)
			e.claim(claim{Name: "r", Class: class, Snapshot: "s", Size: "400Mi"})
			e.claim(claim{Name: "k", Class: class, Clone: "c"})
			e.claim(claim{Name: "ro", Class: class, Mode: "ReadOnlyMany", Snapshot: "s"})
			for _, name := range []string{"r", "k"} {
				e.pod(pod{Name: name, Claim: name, Node: w[1], Script: listing + "\necho mine >/data/mine\nwhile :; do sleep 1; done"})
			}
			e.manyReaders("ro", w, 2, onlyA)
			if got := strings.TrimSpace(e.said("r")); got != onlyA {
				t.Errorf("the restore on %s holds %q, want %q", w[1], got, onlyA)
			}
			if got := strings.TrimSpace(e.said("k")); got != both {
				t.Errorf("the clone on %s holds %q, want %q", w[1], got, both)
			}
			e.advances("a", 3)
			e.complete("a")
			e.moveToSecondNode(w, both)
		})
	}
}

// manyReaders has pods on every node read the claim at once, and none of them write.
func (e *env) manyReaders(claimName string, nodes []string, each int, want string) {
	e.t.Helper()
	var names []string
	for n, node := range nodes {
		for i := range each {
			name := fmt.Sprintf("%s-%d-%d", claimName, n, i)
			names = append(names, name)
			e.pod(pod{Name: name, Claim: claimName, Node: node, ReadOnly: true,
				Script: listing + "\nif (echo x >/data/x) 2>/dev/null; then echo WRITABLE; fi\nwhile :; do sleep 1; done"})
		}
	}
	for _, name := range names {
		if got := strings.TrimSpace(e.said(name)); got != want {
			e.t.Errorf("%s reads %q, want %q", name, got, want)
		}
	}
	d := e.diskOf(claimName)
	if n := len(d.Status.Attachments); n != len(nodes) {
		e.t.Errorf("%d attachments, want one on each of %v", n, nodes)
	}
	e.in(append([]string{"delete", "pod", "--now", "--wait=false"}, names...)...)
}

// moveToSecondNode: the second attach waits for the clean release of the first.
func (e *env) moveToSecondNode(w []string, want string) {
	e.t.Helper()
	d := e.diskOf("c")
	e.pod(pod{Name: "b", Claim: "c", Node: w[1], Script: listing + "; wc -l </data/log"})
	e.eventually("Pod", "b", "FailedAttachVolume", "used by pod(s) a")
	if got := e.phase("b"); got != "Pending" {
		e.t.Errorf("b is %s while a has the disk", got)
	}
	wrote := e.lines("a")
	e.deletePod("a")
	got := strings.Fields(e.done("b"))
	if len(got) < 2 || strings.Join(got[:len(got)-1], " ") != want {
		e.t.Fatalf("b on %s reads %q, a on %s wrote %q", w[1], got, w[0], want)
	}
	if n, err := strconv.Atoi(got[len(got)-1]); err != nil || n < wrote {
		e.t.Errorf("b reads %s lines, a had made %d durable", got[len(got)-1], wrote)
	}
	e.in("delete", "pod", "--all", "--now", "--wait", "--timeout=120s")
	e.host("xfs_repair", "-n", "-f", e.raw(d))
}
