//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"text/template"
	"time"

	"github.com/vmdk-csi/vmdk-csi/test/cluster"
)

// Waits are generous: two cores run three nodes.
const (
	podTimeout  = 3 * time.Minute
	goneTimeout = 2 * time.Minute
)

// env is one test's namespace and what it made outside of it.
type env struct {
	t  *testing.T
	ns string
}

func newEnv(t *testing.T) *env {
	t.Helper()
	ns := strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name()))
	e := &env{t: t, ns: ns}
	e.kubectl("create", "namespace", ns)
	t.Cleanup(func() {
		if t.Failed() {
			e.dump()
		}
		// Pods before claims: a claim in use is only marked.
		_, _ = tryKubectl("-n", ns, "delete", "pod", "--all", "--now", "--wait", "--timeout=120s")
		_, _ = tryKubectl("-n", ns, "delete", "pvc", "--all", "--wait", "--timeout=120s")
		if out, err := tryKubectl("delete", "namespace", ns, "--wait", "--timeout=120s"); err != nil {
			t.Errorf("namespace %s stays: %s", ns, out)
		}
	})
	return e
}

func (e *env) dump() {
	for _, args := range [][]string{
		{"-n", e.ns, "get", "pods,pvc", "-o", "wide"},
		{"-n", e.ns, "get", "events", "--sort-by=.lastTimestamp"},
		{"get", "virtualdisks", "-o", "wide"},
	} {
		out, _ := tryKubectl(args...)
		e.t.Logf("$ kubectl %s\n%s", strings.Join(args, " "), out)
	}
}

func tryKubectl(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "kubectl", args...).CombinedOutput()
	return string(out), err
}

func (e *env) kubectl(args ...string) string {
	e.t.Helper()
	out, err := tryKubectl(args...)
	if err != nil {
		e.t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(out)
}

// in runs kubectl in the test's namespace.
func (e *env) in(args ...string) string {
	e.t.Helper()
	return e.kubectl(append([]string{"-n", e.ns}, args...)...)
}

func (e *env) apply(manifest string) {
	e.t.Helper()
	cmd := exec.Command("kubectl", "-n", e.ns, "apply", "-f", "-")
	cmd.Stdin = strings.NewReader(manifest)
	if out, err := cmd.CombinedOutput(); err != nil {
		e.t.Fatalf("kubectl apply: %v\n%s\n%s", err, out, manifest)
	}
}

// claim is a PersistentVolumeClaim.
type claim struct {
	Name, Class, Size, Mode string
	Block                   bool
	Volume                  string // name of an existing PV
}

const claimTemplate = `apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: {{.Name}}}
spec:
  accessModes: [{{.Mode}}]
  storageClassName: "{{.Class}}"
  {{- if .Block}}
  volumeMode: Block
  {{- end}}
  {{- if .Volume}}
  volumeName: {{.Volume}}
  {{- end}}
  resources: {requests: {storage: {{.Size}}}}
`

func (e *env) claim(c claim) {
	e.t.Helper()
	if c.Mode == "" {
		c.Mode = "ReadWriteOnce"
	}
	if c.Size == "" {
		c.Size = "320Mi"
	}
	e.apply(render(e.t, claimTemplate, c))
}

// pod is a pod with one container, one claim and a shell script.
type pod struct {
	Name, Claim, Node, Script string
	Block, ReadOnly           bool
	FSGroup                   int
	User                      int
}

// The image and its shell are what examples/ use.
const podTemplate = `apiVersion: v1
kind: Pod
metadata: {name: {{.Name}}}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  {{- if .Node}}
  nodeSelector: {kubernetes.io/hostname: {{.Node}}}
  {{- end}}
  {{- if .FSGroup}}
  securityContext: {fsGroup: {{.FSGroup}}, runAsUser: {{.User}}}
  {{- end}}
  containers:
  - name: main
    image: docker.io/library/busybox:1.37
    imagePullPolicy: IfNotPresent
    command: [sh, -ec]
    args:
    - |
      {{.Script}}
    {{- if .Block}}
    volumeDevices: [{name: v, devicePath: /dev/disk}]
    {{- else}}
    volumeMounts: [{name: v, mountPath: /data}]
    {{- end}}
  volumes:
  - name: v
    persistentVolumeClaim: {claimName: {{.Claim}}{{if .ReadOnly}}, readOnly: true{{end}}}
`

func render(t *testing.T, text string, data any) string {
	t.Helper()
	var b bytes.Buffer
	if err := template.Must(template.New("").Parse(text)).Execute(&b, data); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func (e *env) pod(p pod) {
	e.t.Helper()
	if p.Script == "" {
		p.Script = "while :; do sleep 1; done"
	}
	p.Script = strings.ReplaceAll(strings.TrimSpace(p.Script), "\n", "\n      ")
	e.apply(render(e.t, podTemplate, p))
}

func (e *env) running(name string) {
	e.t.Helper()
	e.wait(podTimeout, "pod "+name+" runs", func() (string, bool) {
		phase := e.in("get", "pod", name, "-o", "jsonpath={.status.phase}")
		if phase == "Failed" {
			e.t.Fatalf("pod %s failed: %s", name, e.in("logs", name))
		}
		return phase, phase == "Running"
	})
}

// done waits for the pod's script and returns what it printed.
func (e *env) done(name string) string {
	e.t.Helper()
	e.wait(podTimeout, "pod "+name+" ends", func() (string, bool) {
		phase := e.in("get", "pod", name, "-o", "jsonpath={.status.phase}")
		if phase == "Failed" {
			e.t.Fatalf("pod %s failed: %s", name, e.in("logs", name))
		}
		return phase, phase == "Succeeded"
	})
	return e.in("logs", name)
}

// runPod makes the pod, waits for its script, deletes it and returns the output.
func (e *env) runPod(p pod) string {
	e.t.Helper()
	e.pod(p)
	out := e.done(p.Name)
	e.deletePod(p.Name)
	return out
}

func (e *env) deletePod(name string) {
	e.t.Helper()
	e.in("delete", "pod", name, "--now", "--wait", "--timeout=120s")
}

func (e *env) exec(podName, script string) string {
	e.t.Helper()
	return e.in("exec", podName, "--", "sh", "-ec", script)
}

// wait polls until ok; what it saw last is in the failure.
func (e *env) wait(timeout time.Duration, what string, probe func() (saw string, ok bool)) {
	e.t.Helper()
	deadline := time.Now().Add(timeout)
	for {
		saw, ok := probe()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			e.t.Fatalf("not within %s: %s; last seen: %s", timeout, what, saw)
		}
		time.Sleep(300 * time.Millisecond)
	}
}

// disk is what the test needs of a VirtualDisk.
type disk struct {
	Metadata struct{ Name string }
	Spec     struct {
		Datastore, Host string
		Claims          []struct{ Node string }
	}
	Status struct {
		Phase       string
		SizeBytes   int64
		Attachments []struct {
			Host      string
			WorkerPID int
			Restarts  int
		}
		Conditions []struct{ Type, Status, Reason, Message string }
	}
}

// diskOf is the VirtualDisk behind a bound claim.
func (e *env) diskOf(claimName string) disk {
	e.t.Helper()
	e.wait(podTimeout, "claim "+claimName+" is bound", func() (string, bool) {
		p := e.in("get", "pvc", claimName, "-o", "jsonpath={.status.phase}")
		return p, p == "Bound"
	})
	pv := e.in("get", "pvc", claimName, "-o", "jsonpath={.spec.volumeName}")
	return e.disk(e.kubectl("get", "pv", pv, "-o", "jsonpath={.spec.csi.volumeHandle}"))
}

func (e *env) disk(id string) disk {
	e.t.Helper()
	var d disk
	if err := json.Unmarshal([]byte(e.kubectl("get", "virtualdisk", id, "-o", "json")), &d); err != nil {
		e.t.Fatal(err)
	}
	return d
}

// attachedOn is the node that has the disk; the object may say so a moment after the pod runs.
func (e *env) attachedOn(id string) (node string) {
	e.t.Helper()
	e.wait(time.Minute, "disk "+id+" is attached", func() (string, bool) {
		a := e.disk(id).Status.Attachments
		if len(a) == 1 {
			node = a[0].Host
		}
		return fmt.Sprint(a), node != ""
	})
	return node
}

// detached waits until no host has the disk and none is to have it.
func (e *env) detached(id string) {
	e.t.Helper()
	e.wait(goneTimeout, "disk "+id+" is detached", func() (string, bool) {
		d := e.disk(id)
		return fmt.Sprint(d.Status.Attachments, d.Spec.Claims), len(d.Status.Attachments)+len(d.Spec.Claims) == 0
	})
}

// files is the disk's directory on this machine.
func (e *env) files(d disk) string {
	e.t.Helper()
	root := filepath.Join(cluster.StateDir(), d.Spec.Host)
	if d.Spec.Datastore == "shared" {
		root = cluster.SharedDir()
	}
	return filepath.Join(root, "volumes", d.Metadata.Name)
}

// raw is the detached disk's content as qemu-img reads it.
func (e *env) raw(d disk) string {
	e.t.Helper()
	e.detached(d.Metadata.Name)
	out := filepath.Join(e.t.TempDir(), "disk.raw")
	e.host("qemu-img", "convert", "-f", "vmdk", "-O", "raw", filepath.Join(e.files(d), "disk.vmdk"), out)
	return out
}

// host runs a program on this machine.
func (e *env) host(argv ...string) string {
	e.t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		e.t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// events are the messages of the object's events.
func (e *env) events(kind, name string) string {
	e.t.Helper()
	return e.in("get", "events", "--field-selector", "involvedObject.kind="+kind+",involvedObject.name="+name,
		"-o", "jsonpath={range .items[*]}{.type} {.reason}: {.message}{\"\\n\"}{end}")
}

func (e *env) eventually(kind, name string, want ...string) {
	e.t.Helper()
	e.wait(90*time.Second, fmt.Sprintf("an event of %s %s says %q", kind, name, want), func() (string, bool) {
		got := e.events(kind, name)
		for _, w := range want {
			if !strings.Contains(got, w) {
				return got, false
			}
		}
		return got, true
	})
}

// workers are the names of the worker nodes.
func (e *env) workers() []string {
	e.t.Helper()
	return strings.Fields(e.kubectl("get", "nodes", "-l", "!node-role.kubernetes.io/control-plane", "-o", "jsonpath={.items[*].metadata.name}"))
}

// killWorker kills -9 the process that serves the disk, by its pid, which it finds by its own command line in /proc of
// the node. It returns false when there is none.
func (e *env) killWorker(node, id string) bool {
	e.t.Helper()
	cmd := exec.Command("docker", "exec", node, "sh", "-c", `w=di; for p in /proc/[0-9]*; do
  c=$(cat $p/cmdline 2>/dev/null | tr '\0' ' ') || continue
  case $c in *" ${w}sk "*" $1 "*) kill -9 ${p#/proc/} && echo ${p#/proc/};; esac
done`, "sh", id)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		e.t.Fatalf("kill worker on %s: %v\n%s", node, err, stderr.String())
	}
	return strings.TrimSpace(string(out)) != ""
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
