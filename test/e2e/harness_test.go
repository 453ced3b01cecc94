//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"text/template"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/vmdk-csi/vmdk-csi/pkg/api/v1alpha1"
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
		_, _ = tryKubectl("-n", ns, "delete", "volumesnapshot,pvc", "--all", "--wait", "--timeout=120s")
		// Long, because the snapshotter looks again at a snapshot that it could not make after five minutes at the latest.
		if out, err := tryKubectl("delete", "namespace", ns, "--wait", "--timeout=330s"); err != nil {
			t.Errorf("namespace %s stays: %s", ns, out)
		}
	})
	return e
}

// clients are for what is asked again and again: a kubectl for each look would cost the machine more than the tests do.
var clients = sync.OnceValues(func() (*kubeClients, error) {
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		return nil, err
	}
	config.QPS, config.Burst = 100, 200
	k, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	d, err := dynamic.NewForConfig(config)
	return &kubeClients{Clientset: k, objects: d}, err
})

type kubeClients struct {
	*kubernetes.Clientset
	objects dynamic.Interface
}

func (e *env) api() *kubeClients {
	e.t.Helper()
	c, err := clients()
	if err != nil {
		e.t.Fatal(err)
	}
	return c
}

// object reads an object that has no typed client; namespace "": a cluster's. Its absence is a failure of the test.
func (e *env) object(gvr schema.GroupVersionResource, namespace, name string) *unstructured.Unstructured {
	e.t.Helper()
	o, err := e.api().objects.Resource(gvr).Namespace(namespace).Get(e.t.Context(), name, metav1.GetOptions{})
	if err != nil {
		e.t.Fatalf("%s %s: %v", gvr.Resource, name, err)
	}
	return o
}

func (e *env) into(o *unstructured.Unstructured, typed any) {
	e.t.Helper()
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, typed); err != nil {
		e.t.Fatal(err)
	}
}

// phase of a pod; a pod that failed ends the test.
func (e *env) phase(podName string) string {
	e.t.Helper()
	p, err := e.api().CoreV1().Pods(e.ns).Get(e.t.Context(), podName, metav1.GetOptions{})
	if err != nil {
		e.t.Fatal(err)
	}
	if p.Status.Phase == corev1.PodFailed {
		e.t.Fatalf("pod %s failed: %s", podName, e.in("logs", podName))
	}
	return string(p.Status.Phase)
}

func (e *env) dump() {
	for _, args := range [][]string{
		{"-n", e.ns, "get", "pods,pvc,volumesnapshots", "-o", "wide"},
		{"-n", e.ns, "get", "events", "--sort-by=.lastTimestamp"},
		{"get", "virtualdisks,disksnapshots", "-o", "wide"},
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
	Snapshot, Clone         string // the VolumeSnapshot or claim that it gets its content from
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
  {{- if .Snapshot}}
  dataSource: {apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: {{.Snapshot}}}
  {{- end}}
  {{- if .Clone}}
  dataSource: {kind: PersistentVolumeClaim, name: {{.Clone}}}
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
		phase := e.phase(name)
		return phase, phase == "Running"
	})
}

// done waits for the pod's script and returns what it printed.
func (e *env) done(name string) string {
	e.t.Helper()
	e.wait(podTimeout, "pod "+name+" ends", func() (string, bool) {
		phase := e.phase(name)
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

// disk is a VirtualDisk.
type disk = v1alpha1.VirtualDisk

// diskOf is the VirtualDisk behind a claim, once that is bound.
func (e *env) diskOf(claimName string) *disk {
	e.t.Helper()
	var volume string
	e.wait(podTimeout, "claim "+claimName+" is bound", func() (string, bool) {
		c, err := e.api().CoreV1().PersistentVolumeClaims(e.ns).Get(e.t.Context(), claimName, metav1.GetOptions{})
		if err != nil {
			e.t.Fatal(err)
		}
		volume = c.Spec.VolumeName
		return string(c.Status.Phase), c.Status.Phase == corev1.ClaimBound
	})
	pv, err := e.api().CoreV1().PersistentVolumes().Get(e.t.Context(), volume, metav1.GetOptions{})
	if err != nil {
		e.t.Fatal(err)
	}
	return e.disk(pv.Spec.CSI.VolumeHandle)
}

func (e *env) disk(id string) *disk {
	e.t.Helper()
	d := new(disk)
	e.into(e.object(v1alpha1.GroupVersion.WithResource("virtualdisks"), "", id), d)
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

// sharedRoots are the datastores that both workers reach, as this machine sees them.
func sharedRoots() map[string]string {
	return map[string]string{"shared": cluster.SharedDir(), "unlocked": filepath.Join(cluster.SharedDir(), "unlocked")}
}

// files is the disk's directory on this machine.
func (e *env) files(d *disk) string {
	e.t.Helper()
	root, shared := sharedRoots()[d.Spec.Datastore]
	if !shared {
		root = filepath.Join(cluster.StateDir(), d.Spec.Host)
	}
	return filepath.Join(root, "volumes", d.Name)
}

// raw is the detached disk's content as qemu-img reads it.
func (e *env) raw(d *disk) string {
	e.t.Helper()
	e.detached(d.Name)
	links := e.disk(d.Name).Status.Links
	dir := e.t.TempDir()
	out := filepath.Join(dir, "disk.raw")
	files := ""
	if d.Spec.Datastore == "lun" {
		// Of a copy: on this machine the owner's lock keeps others away, as it would not on another.
		files = filepath.Join(dir, "exported")
		e.host("cp", "--sparse=always", cluster.LUNFile(), filepath.Join(dir, "lun"))
		e.host(cluster.Vmdkctl(), "lun", "export", filepath.Join(dir, "lun"), d.Name, files)
	} else {
		files = e.files(d)
	}
	e.host("qemu-img", "convert", "-f", "vmdk", "-O", "raw", filepath.Join(files, links[len(links)-1].Name), out)
	return out
}

// host runs a program on this machine.
func (e *env) host(argv ...string) string {
	e.t.Helper()
	out, err := tryHost(argv...)
	if err != nil {
		e.t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return strings.TrimSpace(out)
}

func tryHost(argv ...string) (string, error) {
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	return string(out), err
}

// events are the messages of the object's events.
func (e *env) events(kind, name string) string {
	e.t.Helper()
	list, err := e.api().CoreV1().Events(e.ns).List(e.t.Context(),
		metav1.ListOptions{FieldSelector: "involvedObject.kind=" + kind + ",involvedObject.name=" + name})
	if err != nil {
		e.t.Fatal(err)
	}
	var b strings.Builder
	for _, ev := range list.Items {
		fmt.Fprintf(&b, "%s %s: %s\n", ev.Type, ev.Reason, ev.Message)
	}
	return b.String()
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

// workerPID is the process that serves the disk, as the node sees it, found by its own command line in /proc; "" if there is none.
func (e *env) workerPID(node, id string) string {
	e.t.Helper()
	cmd := exec.Command("docker", "exec", node, "sh", "-c", `w=di; for p in /proc/[0-9]*; do
  c=$(cat $p/cmdline 2>/dev/null | tr '\0' ' ') || continue
  case $c in *" ${w}sk "*" $1 "*) echo ${p#/proc/};; esac
done`, "sh", id)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		e.t.Fatalf("look for the worker on %s: %v\n%s", node, err, stderr.String())
	}
	pid, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return pid
}

// killWorker kills -9 the process that serves the disk. Without one the test would prove nothing.
func (e *env) killWorker(node, id string) {
	e.t.Helper()
	pid := e.workerPID(node, id)
	if pid == "" {
		e.t.Fatalf("no worker process serves %s on %s", id, node)
	}
	e.host("docker", "exec", node, "kill", "-9", pid)
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
