//go:build e2e

package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/test/cluster"
)

// lunMoves: what one node writes straight to the LUN another reads there, and so does vmdkctl, from the LUN alone.
func lunMoves(t *testing.T) {
	e := newEnv(t)
	w := e.workers()
	const size = 64 << 20
	e.claim(claim{Name: "raw", Class: "e2e-lun", Size: "64Mi", Block: true})
	e.claim(claim{Name: "c", Class: "e2e-lun"})
	// Something else in every block, none of it zeros.
	fill := fmt.Sprintf("i=0; while [ $i -lt 64 ]; do seq $((i*200000)) $((i*200000+200000)) | head -c 1048576; i=$((i+1)); done | dd of=/dev/disk bs=1M iflag=fullblock conv=fsync 2>/dev/null; head -c %d /dev/disk | sha256sum", size)
	e.pod(pod{Name: "rawa", Claim: "raw", Node: w[0], Block: true, Script: fill})
	e.pod(pod{Name: "a", Claim: "c", Node: w[0], Script: putFile + "put a 3000000\nput b 1000\n" + listing + "\nwhile :; do sleep 1; done"})
	wrote := strings.Fields(e.done("rawa"))[0]
	want := strings.TrimSpace(e.said("a"))
	d, raw := e.diskOf("c"), e.diskOf("raw")
	e.reachedBy(d.Name, w[0], "san")
	e.in("delete", "pod", "a", "rawa", "--now", "--wait", "--timeout=120s")
	e.pod(pod{Name: "b", Claim: "c", Node: w[1], Script: listing + "\nwhile :; do sleep 1; done"})
	e.pod(pod{Name: "rawb", Claim: "raw", Node: w[1], Block: true, Script: fmt.Sprintf("head -c %d /dev/disk | sha256sum", size)})
	if got := strings.TrimSpace(e.said("b")); got != want {
		t.Errorf("%s reads %q, %s wrote %q", w[1], got, w[0], want)
	}
	if got := strings.Fields(e.done("rawb"))[0]; got != wrote {
		t.Errorf("%s reads %s, %s wrote %s", w[1], got, w[0], wrote)
	}
	e.reachedBy(d.Name, w[1], "san")
	e.in("delete", "pod", "--all", "--now", "--wait", "--timeout=120s")
	e.host("xfs_repair", "-n", "-f", e.raw(d))
	sum := sha256.Sum256(mustRead(t, e.raw(raw)))
	if got := hex.EncodeToString(sum[:]); got != wrote {
		t.Errorf("qemu-img reads %s out of the LUN, the pod wrote %s", got, wrote)
	}
}

// lunSnapshots: a snapshot makes its disk's head be reached over NBD, consolidation makes it be reached on the LUN again, both
// under a load that verifies what it wrote, and both told on the claim.
func lunSnapshots(t *testing.T) {
	e := newEnv(t)
	e.claim(claim{Name: "c", Class: "e2e-lun"})
	e.pod(pod{Name: "p", Claim: "c", Script: putFile + "put a 3000000\n" + listing + "\nwhile :; do sleep 1; done"})
	want := strings.TrimSpace(e.said("p"))
	d := e.diskOf("c")
	node := e.attachedOn(d.Name)
	e.reachedBy(d.Name, node, "san")
	load := e.fio("p")
	load.turns(1)
	e.snapshot("s", "c", "e2e")
	e.ready("s")
	e.reachedBy(d.Name, node, "nbd", "san")
	e.eventually("PersistentVolumeClaim", "c", "Normal TransportFallback", "by nbd, before by san")
	e.wait(90*time.Second, "the object says that it is for the snapshot", func() (string, bool) {
		a := e.disk(d.Name).Status.Attachments
		return fmt.Sprintf("%+v", a), len(a) == 1 && len(a[0].SkippedTransports) > 0 && strings.Contains(a[0].SkippedTransports[0].Reason, "has snapshots")
	})
	load.turns(1)
	e.claim(claim{Name: "r", Class: "e2e-lun", Snapshot: "s"})
	e.pod(pod{Name: "r", Claim: "r", Script: listing + "\nwhile :; do sleep 1; done"})
	if got := strings.TrimSpace(e.said("r")); got != want {
		t.Errorf("the restored disk holds %q, want %q", got, want)
	}
	e.in("delete", "pod", "r", "--now", "--wait", "--timeout=120s")
	e.deleteClaim("r")
	e.deleteSnapshot("s")
	e.links(d.Name, 1)
	e.reachedBy(d.Name, node, "san")
	e.eventually("PersistentVolumeClaim", "c", "Normal TransportRestored", "by san again, before by nbd")
	load.turns(1)
	load.end()
	if got := e.exec("p", listing); got != want {
		t.Errorf("the pod reads %q, it wrote %q", got, want)
	}
	if got := e.disk(d.Name).Status.Attachments[0].Restarts; got != 0 {
		t.Errorf("the worker was restarted %d times: changing the transport needs no death", got)
	}
}

// lunHidden: a node that sees the LUN no more reaches its disks over the network, and says why; it finds back when it sees it again.
func lunHidden(t *testing.T) {
	e := newEnv(t)
	node := e.workers()[1]
	e.claim(claim{Name: "c", Class: "e2e-lun"})
	e.pod(pod{Name: "p", Claim: "c", Node: node, Script: steadyWriter})
	e.running("p")
	e.advances("p", 5)
	d := e.diskOf("c")
	e.reachedBy(d.Name, node, "san")
	show := e.hideLUN(node)
	// What has the LUN open keeps it: a path that fails is what a new process meets.
	e.killWorker(node, d.Name)
	e.reachedBy(d.Name, node, "nbd", "san")
	e.eventually("PersistentVolumeClaim", "c", "Warning TransportFallback", "the LUN is missing")
	e.advances("p", 10)
	e.wait(time.Minute, "the datastore says that the node has no SAN", func() (string, bool) {
		out := e.kubectl("get", "datastore", "lun", "-o", `jsonpath={range .status.hosts[?(@.host=="`+node+`")].transports[*]}{.transport}={.usable} {.reason}{"\n"}{end}`)
		return out, strings.Contains(out, "san=false") && strings.Contains(out, "nbd=true") && strings.Contains(out, "the LUN is missing")
	})
	e.pod(pod{Name: "q", Claim: "q", Node: node, Script: putFile + "put a 2000000; " + listing})
	e.claim(claim{Name: "q", Class: "e2e-lun"})
	want := strings.TrimSpace(e.done("q")) // one that never had SAN
	show()
	e.reachedBy(d.Name, node, "san")
	e.eventually("PersistentVolumeClaim", "c", "Normal TransportRestored")
	e.advances("p", 10)
	e.complete("p")
	e.deletePod("q")
	if got := strings.TrimSpace(e.runPod(pod{Name: "q2", Claim: "q", Node: e.workers()[0], Script: listing})); got != want {
		t.Errorf("%s reads over SAN %q, %s wrote over NBD %q", e.workers()[0], got, node, want)
	}
}

// lunServerDies: the metadata server's hostd is killed under pods on both nodes, one of which it attached itself. Another host serves the
// LUN, a load on each node verifies what it wrote, nobody loses what was acknowledged, and everything can be asked for again.
func lunServerDies(t *testing.T) {
	e := newEnv(t)
	w := e.workers()
	for i, node := range w {
		name := fmt.Sprint("p", i)
		e.claim(claim{Name: name, Class: "e2e-lun"})
		e.pod(pod{Name: name, Claim: name, Node: node, Script: steadyWriter})
	}
	// One whose requests go through the server: it has a snapshot.
	for i := range w {
		e.running(fmt.Sprint("p", i))
	}
	e.snapshot("s", "p0", "e2e")
	e.ready("s")
	e.reachedBy(e.diskOf("p0").Name, w[0], "nbd", "san")
	loads := []*fioLoad{e.fio("p0"), e.fio("p1")}
	owner := e.lunOwner()
	if !slices.Contains(w, owner) {
		t.Fatalf("the LUN is owned by %q, the workers are %v", owner, w)
	}
	e.killProgram(owner, "vmdk-hostd")
	e.wait(time.Minute, "another host owns the LUN", func() (string, bool) {
		now := e.lunOwner()
		return now, now != owner
	})
	for i := range w {
		e.advances(fmt.Sprint("p", i), 15)
		e.complete(fmt.Sprint("p", i))
		loads[i].turns(1)
	}
	e.deleteSnapshot("s")
	for i := range w {
		d := e.diskOf(fmt.Sprint("p", i))
		e.links(d.Name, 1)
		e.reachedBy(d.Name, w[i], "san")
	}
	// The other way, politely.
	owner = e.lunOwner()
	e.deleteComponent("hostd", "--field-selector", "spec.nodeName="+owner)
	for i := range w {
		e.advances(fmt.Sprint("p", i), 15)
		e.complete(fmt.Sprint("p", i))
		loads[i].end()
	}
	e.in("delete", "pod", "--all", "--now", "--wait", "--timeout=180s")
	for i := range w {
		e.host("xfs_repair", "-n", "-f", e.raw(e.diskOf(fmt.Sprint("p", i))))
	}
	e.host(cluster.Vmdkctl(), "lun", "check", cluster.LUNFile())
}

// reachedBy waits until the node reaches the disk by the transport and tells that it does not by those behind.
func (e *env) reachedBy(id, node, transport string, skipped ...string) {
	e.t.Helper()
	e.wait(time.Minute, fmt.Sprintf("%s is reached on %s by %s", id, node, transport), func() (string, bool) {
		for _, a := range e.disk(id).Status.Attachments {
			var names []string
			for _, s := range a.SkippedTransports {
				names = append(names, s.Transport)
			}
			// hotadd is skipped for ever on a LUN, where nbd serves.
			names = slices.DeleteFunc(names, func(n string) bool { return n == "hotadd" })
			if a.Host == node && a.Transport == transport && slices.Equal(names, skipped) {
				return "", true
			}
		}
		return fmt.Sprintf("%+v", e.disk(id).Status.Attachments), false
	})
}

// lunOwner is the host that the LUN itself names.
func (e *env) lunOwner() string {
	e.t.Helper()
	out := e.host(cluster.Vmdkctl(), "transports", cluster.LUNFile())
	_, rest, ok := strings.Cut(out, "owned by ")
	if !ok {
		return out
	}
	return strings.Fields(rest)[0]
}

// hideLUN covers the LUN's directory on a node with an empty one, and returns what takes that away.
func (e *env) hideLUN(node string) (show func()) {
	e.t.Helper()
	e.host("docker", "exec", node, "mount", "-t", "tmpfs", "-o", "size=64k", "hidden", cluster.LUNDir)
	shown := false
	show = func() {
		if !shown {
			shown = true
			e.host("docker", "exec", node, "umount", cluster.LUNDir)
		}
	}
	e.t.Cleanup(show)
	return show
}

// fioLoad is fio on this machine, writing into a pod's file system and verifying it, turn after turn.
type fioLoad struct {
	e    *env
	stop chan struct{}
	turn chan struct{}
	done chan error
	over bool
}

func (e *env) fio(podName string) *fioLoad {
	e.t.Helper()
	root := e.podRoot(podName)
	l := &fioLoad{e: e, stop: make(chan struct{}), turn: make(chan struct{}, 1000), done: make(chan error, 1)}
	file := filepath.Join(root, "data", "fio")
	go func() {
		for seed := 1; ; seed++ {
			select {
			case <-l.stop:
				l.done <- nil
				return
			default:
			}
			out, err := fioTurn(file, seed)
			if err != nil {
				l.done <- fmt.Errorf("fio, turn %d: %w\n%s", seed, err, out)
				return
			}
			l.turn <- struct{}{}
		}
	}()
	e.t.Cleanup(l.end)
	return l
}

// turns waits for the end of n turns that began after the call.
func (l *fioLoad) turns(n int) {
	l.e.t.Helper()
	for len(l.turn) > 0 {
		<-l.turn
	}
	for range n + 1 {
		select {
		case <-l.turn:
		case err := <-l.done:
			l.over = true
			l.e.t.Fatal(err)
		case <-time.After(2 * time.Minute):
			l.e.t.Fatal("fio does not come to the end of a turn in 2 minutes")
		}
	}
}

func (l *fioLoad) end() {
	if l.over {
		return
	}
	l.over = true
	close(l.stop)
	if err := <-l.done; err != nil {
		l.e.t.Error(err)
	}
}

func fioTurn(file string, seed int) (string, error) {
	return tryHost("fio", "--name=load", "--filename="+file, "--rw=randwrite", "--bs=4k", "--size=24m", "--direct=1", "--ioengine=libaio", "--iodepth=8",
		"--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", fmt.Sprint("--randseed=", seed), "--rate_iops=1500", "--minimal")
}

// podRoot is the root directory of a pod's container on this machine, by the process whose arguments hold the test's namespace.
func (e *env) podRoot(podName string) string {
	e.t.Helper()
	mark := "# " + e.ns + "/" + podName
	e.exec(podName, "echo '"+mark+"' >/tmp/mark")
	roots, err := filepath.Glob("/proc/[0-9]*/root/tmp/mark")
	if err != nil {
		e.t.Fatal(err)
	}
	for _, m := range roots {
		if b, err := os.ReadFile(m); err == nil && strings.TrimSpace(string(b)) == mark {
			return strings.TrimSuffix(m, "/tmp/mark")
		}
	}
	e.t.Fatalf("no process of pod %s on this machine", podName)
	return ""
}
