package chart

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/vmdk-csi/vmdk-csi/pkg/api/v1alpha1"
)

// helm finds the program that hack/tools/build.sh makes; without it the tests fail.
func helm(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("VMDK_CSI_HELM_BIN")
	if dir == "" {
		out, err := exec.Command("../../hack/tools/build.sh", "--path", "helm").Output()
		if err != nil {
			t.Fatalf("hack/tools/build.sh --path helm: %v", err)
		}
		dir = strings.TrimSpace(string(out))
	}
	path := filepath.Join(dir, "helm")
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("helm is not built (hack/tools/build.sh helm builds it): %v", err)
	}
	return path
}

func render(t *testing.T, values string) (string, error) {
	t.Helper()
	cmd := exec.Command(helm(t), "template", "vmdk-csi", ".", "--namespace", "vmdk-csi", "--values", "-")
	cmd.Stdin = strings.NewReader(values)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%w: %s", err, stderr.String())
	}
	return stdout.String(), nil
}

func mustRender(t *testing.T, values string) string {
	t.Helper()
	out, err := render(t, values)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// objects parses every object of one kind strictly: a field that the type does not have fails.
func objects[T any](t *testing.T, manifest, kind string) map[string]T {
	t.Helper()
	found := map[string]T{}
	for doc := range strings.SplitSeq(manifest, "\n---\n") {
		var head struct {
			Kind     string            `json:"kind"`
			Metadata metav1.ObjectMeta `json:"metadata"`
		}
		if err := yaml.Unmarshal([]byte(doc), &head); err != nil {
			t.Fatalf("%v in:\n%s", err, doc)
		}
		if head.Kind != kind {
			continue
		}
		var o T
		if err := yaml.UnmarshalStrict([]byte(doc), &o); err != nil {
			t.Fatalf("%s %s: %v", kind, head.Metadata.Name, err)
		}
		found[head.Metadata.Name] = o
	}
	return found
}

func TestEveryObjectParsesStrictly(t *testing.T) {
	out := mustRender(t, "{}")
	if n := len(objects[appsv1.Deployment](t, out, "Deployment")); n != 1 {
		t.Errorf("%d Deployments", n)
	}
	if n := len(objects[appsv1.DaemonSet](t, out, "DaemonSet")); n != 2 {
		t.Errorf("%d DaemonSets", n)
	}
	if n := len(objects[rbacv1.ClusterRole](t, out, "ClusterRole")); n != 2 {
		t.Errorf("%d ClusterRoles: vmdk-hostd must have none", n)
	}
	stores := objects[v1alpha1.Datastore](t, out, "Datastore")
	if len(stores) != 1 || stores["local"].Spec.Scope != v1alpha1.ScopeNode {
		t.Errorf("datastores: %+v", stores)
	}
}

func TestCSIDriver(t *testing.T) {
	d, ok := objects[storagev1.CSIDriver](t, mustRender(t, "{}"), "CSIDriver")["csi.vmdk-csi.io"]
	if !ok {
		t.Fatal("no CSIDriver")
	}
	s := d.Spec
	if !*s.AttachRequired || *s.PodInfoOnMount || *s.FSGroupPolicy != storagev1.FileFSGroupPolicy || !*s.StorageCapacity || *s.SELinuxMount ||
		!slices.Equal(s.VolumeLifecycleModes, []storagev1.VolumeLifecycleMode{storagev1.VolumeLifecyclePersistent}) {
		t.Errorf("%+v", s)
	}
}

// The privileges of the processes are the plan of the house: who may what.
func TestPrivileges(t *testing.T) {
	out := mustRender(t, "{}")
	controller := objects[appsv1.Deployment](t, out, "Deployment")["vmdk-csi-controller"].Spec.Template.Spec
	if !*controller.SecurityContext.RunAsNonRoot {
		t.Error("the controller runs as root")
	}
	for _, v := range controller.Volumes {
		if v.HostPath != nil {
			t.Errorf("the controller mounts the host's %s", v.HostPath.Path)
		}
	}
	for _, c := range controller.Containers {
		if !harmless(c) || !slices.Equal(c.SecurityContext.Capabilities.Drop, []corev1.Capability{"ALL"}) {
			t.Errorf("container %s of the controller: %+v", c.Name, c.SecurityContext)
		}
	}
	sets := objects[appsv1.DaemonSet](t, out, "DaemonSet")
	hostd := sets["vmdk-hostd"]
	if u := hostd.Spec.UpdateStrategy.RollingUpdate; u.MaxSurge.IntValue() != 1 || u.MaxUnavailable.IntValue() != 0 {
		t.Errorf("hostd's roll-out: %+v", u)
	}
	pod := hostd.Spec.Template.Spec
	if *pod.AutomountServiceAccountToken || pod.HostPID || pod.HostNetwork || pod.HostIPC {
		t.Errorf("hostd's pod: %+v", pod)
	}
	c := pod.Containers[0]
	if !harmless(c) || !slices.Equal(c.SecurityContext.Capabilities.Add, []corev1.Capability{"SYS_RESOURCE"}) {
		t.Errorf("hostd: %+v", c.SecurityContext)
	}
	if c.ReadinessProbe == nil || len(c.Resources.Limits) > 0 {
		t.Errorf("hostd needs a readiness probe for its roll-out, and no limit: %+v", c.Resources)
	}
	node := sets["vmdk-csi-node"].Spec.Template.Spec
	if !*node.Containers[0].SecurityContext.Privileged || node.HostPID || node.HostNetwork {
		t.Errorf("node: %+v", node)
	}
	for _, m := range node.Containers[0].VolumeMounts {
		if m.Name == "kubelet" && *m.MountPropagation != corev1.MountPropagationBidirectional {
			t.Errorf("mounts of the node plugin do not reach the kubelet: %+v", m)
		}
	}
	for name, r := range objects[rbacv1.ClusterRole](t, out, "ClusterRole") {
		for _, rule := range r.Rules {
			if slices.Contains(rule.Verbs, "*") || slices.Contains(rule.Resources, "*") || slices.Contains(rule.Resources, "secrets") {
				t.Errorf("%s may too much: %+v", name, rule)
			}
		}
	}
	without := objects[appsv1.DaemonSet](t, mustRender(t, "hostd: {ioFlusher: false}"), "DaemonSet")["vmdk-hostd"]
	if add := without.Spec.Template.Spec.Containers[0].SecurityContext.Capabilities.Add; len(add) > 0 {
		t.Errorf("ioFlusher=false still adds %v", add)
	}
}

func harmless(c corev1.Container) bool {
	s := c.SecurityContext
	return s != nil && !*s.AllowPrivilegeEscalation && *s.ReadOnlyRootFilesystem && slices.Contains(s.Capabilities.Drop, "ALL")
}

func TestDatastores(t *testing.T) {
	out := mustRender(t, `
datastores:
  - {name: local, scope: node, path: /var/lib/vmdk-csi/local}
  - {name: nfs, scope: shared, path: /mnt/nfs}
  - {name: odd, scope: node, path: /mnt/odd, hostPathType: Directory}
`)
	pod := objects[appsv1.DaemonSet](t, out, "DaemonSet")["vmdk-hostd"].Spec.Template.Spec
	types := map[string]corev1.HostPathType{}
	for _, v := range pod.Volumes {
		types[v.HostPath.Path] = *v.HostPath.Type
	}
	for path, want := range map[string]corev1.HostPathType{
		"/var/lib/vmdk-csi/local": corev1.HostPathDirectoryOrCreate,
		"/mnt/nfs":                corev1.HostPathDirectory,
		"/mnt/odd":                corev1.HostPathDirectory,
	} {
		if types[path] != want {
			t.Errorf("%s: %q, want %q", path, types[path], want)
		}
		if !slices.ContainsFunc(pod.Containers[0].VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == path }) {
			t.Errorf("%s is not mounted", path)
		}
	}
	if !slices.Contains(pod.Containers[0].Args, "--datastore=nfs=/mnt/nfs,scope=shared") {
		t.Errorf("arguments: %v", pod.Containers[0].Args)
	}
	if n := len(objects[v1alpha1.Datastore](t, out, "Datastore")); n != 3 {
		t.Errorf("%d Datastores", n)
	}
}

// Locks are left out only where that is said.
func TestFileLocks(t *testing.T) {
	out := mustRender(t, `
datastores:
  - {name: a, scope: node, path: /a}
  - {name: b, scope: shared, path: /b, fileLocks: false}
  - {name: c, scope: shared, path: /c, fileLocks: true}
`)
	args := objects[appsv1.DaemonSet](t, out, "DaemonSet")["vmdk-hostd"].Spec.Template.Spec.Containers[0].Args
	for _, want := range []string{"--datastore=a=/a,scope=node", "--datastore=b=/b,scope=shared,locks=off", "--datastore=c=/c,scope=shared"} {
		if !slices.Contains(args, want) {
			t.Errorf("no %s in %v", want, args)
		}
	}
}

// What snapshots need is there when they are wanted, and not before: a cluster without their definitions would refuse it.
func TestSnapshots(t *testing.T) {
	type class struct {
		metav1.TypeMeta   `json:",inline"`
		metav1.ObjectMeta `json:"metadata"`
		Driver            string            `json:"driver"`
		DeletionPolicy    string            `json:"deletionPolicy"`
		Parameters        map[string]string `json:"parameters"`
	}
	may := func(out, group, resource string) bool {
		for _, r := range objects[rbacv1.ClusterRole](t, out, "ClusterRole")["vmdk-csi-controller"].Rules {
			if slices.Contains(r.APIGroups, group) && slices.Contains(r.Resources, resource) {
				return true
			}
		}
		return false
	}
	without := mustRender(t, "{}")
	if strings.Contains(without, "snapshot.storage.k8s.io") || strings.Contains(without, "csi-snapshotter") {
		t.Error("snapshots are installed and not wanted")
	}
	if !may(without, "vmdk-csi.io", "disksnapshots") {
		t.Error("the controller cannot make DiskSnapshots")
	}
	out := mustRender(t, `
snapshotter: {enabled: true}
volumeSnapshotClasses:
  - {name: frozen, default: true, deletionPolicy: Retain, parameters: {freeze: filesystem, freezeDeadline: 5s}}
  - {name: plain}
`)
	classes := objects[class](t, out, "VolumeSnapshotClass")
	frozen, plain := classes["frozen"], classes["plain"]
	if frozen.Annotations["snapshot.storage.kubernetes.io/is-default-class"] != "true" || frozen.DeletionPolicy != "Retain" ||
		frozen.Parameters["freezeDeadline"] != "5s" || plain.Driver != "csi.vmdk-csi.io" || plain.DeletionPolicy != "Delete" {
		t.Errorf("%+v", classes)
	}
	for _, r := range []string{"volumesnapshots", "volumesnapshotclasses", "volumesnapshotcontents", "volumesnapshotcontents/status"} {
		if !may(out, "snapshot.storage.k8s.io", r) {
			t.Errorf("no rights to %s", r)
		}
	}
	if _, err := render(t, "volumeSnapshotClasses: [{name: a}]"); err == nil || !strings.Contains(err.Error(), "snapshotter.enabled") {
		t.Errorf("classes without the snapshotter: %v", err)
	}
}

func TestOptions(t *testing.T) {
	out := mustRender(t, `
storageClasses:
  - {name: fast, default: true, parameters: {datastore: local, csi.storage.k8s.io/fstype: xfs}, allowVolumeExpansion: false, mountOptions: [noatime]}
  - {name: plain}
snapshotter: {enabled: true}
podMonitor: {enabled: true, labels: {release: prometheus}}
controller: {replicas: 1, podLabels: {team: storage}}
tests: {enabled: false}
image: {registry: registry.example/vmdk, tag: v9}
`)
	classes := objects[storagev1.StorageClass](t, out, "StorageClass")
	fast, plain := classes["fast"], classes["plain"]
	if fast.Annotations["storageclass.kubernetes.io/is-default-class"] != "true" || *fast.AllowVolumeExpansion || fast.MountOptions[0] != "noatime" ||
		*plain.VolumeBindingMode != storagev1.VolumeBindingWaitForFirstConsumer || !*plain.AllowVolumeExpansion {
		t.Errorf("%+v", classes)
	}
	pod := objects[appsv1.Deployment](t, out, "Deployment")["vmdk-csi-controller"].Spec.Template
	if len(pod.Spec.Containers) != 5 || pod.Labels["team"] != "storage" || pod.Spec.Containers[0].Image != "registry.example/vmdk/vmdk-csi-controller:v9" {
		t.Errorf("%+v", pod)
	}
	for _, kind := range []string{"PodDisruptionBudget", "Pod", "Service"} {
		if n := len(objects[map[string]any](t, out, kind)); n != 0 {
			t.Errorf("%d objects of kind %s, want none", n, kind)
		}
	}
	if len(objects[map[string]any](t, out, "PodMonitor")) != 1 {
		t.Error("no PodMonitor")
	}
	images := map[string]string{}
	for _, c := range pod.Spec.Containers[1:] {
		images[c.Name] = c.Image
	}
	for name, tag := range map[string]string{"csi-provisioner": "v6.3.0", "csi-attacher": "v4.13.0", "csi-resizer": "v2.3.0", "csi-snapshotter": "v8.7.0"} {
		if images[name] != "registry.k8s.io/sig-storage/"+name+":"+tag {
			t.Errorf("%s: image %s", name, images[name])
		}
	}
}

func TestSchemaRefuses(t *testing.T) {
	for _, tc := range []struct{ values, says string }{
		{"datastore: []", "datastore"},
		{"datastores: []", "datastores"},
		{"datastores: [{name: a, scope: cluster, path: /a}]", "scope"},
		{"datastores: [{name: a, scope: node, path: relative}]", "path"},
		{"datastores: [{name: a, scope: node, path: /a/../etc}]", "path"},
		{"datastores: [{name: A_B, scope: node, path: /a}]", "name"},
		{"datastores: [{name: a, scope: node, path: /a, size: 1}]", "size"},
		{"storageClasses: [{name: a, parameters: {diskFormat: thick}}]", "diskFormat"},
		{"storageClasses: [{name: a, parameters: {diskformat: thin}}]", "diskformat"},
		{"storageClasses: [{name: a, parameters: {cloneMode: half}}]", "cloneMode"},
		{"storageClasses: [{name: a, parameters: {csi.storage.k8s.io/fstype: ntfs}}]", "fstype"},
		{"volumeSnapshotClasses: [{name: a, parameters: {freeze: all}}]", "freeze"},
		{"volumeSnapshotClasses: [{name: a, parameters: {freezeDeadline: soon}}]", "freezeDeadline"},
		{"volumeSnapshotClasses: [{name: a, deletionPolicy: Keep}]", "deletionPolicy"},
		{"datastores: [{name: a, scope: node, path: /a, fileLocks: sometimes}]", "fileLocks"},
		{"controller: {replicas: 0}", "replicas"},
		{"node: {kubeletdir: /x}", "kubeletdir"},
		{"hostd: {ioFlusher: maybe}", "ioFlusher"},
		{"image: {pullPolicy: Sometimes}", "pullPolicy"},
	} {
		_, err := render(t, tc.values)
		if err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: got %v, want a refusal that says %q", tc.values, err, tc.says)
		}
	}
}

// The examples parse strictly, and use the driver, and the image that every cluster of this project has.
func TestExamples(t *testing.T) {
	files, err := filepath.Glob("../../examples/*.yaml")
	if err != nil || len(files) < 6 {
		t.Fatalf("%v %v", files, err)
	}
	image := regexp.MustCompile(`image: (\S+)`)
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, sc := range objects[storagev1.StorageClass](t, string(text), "StorageClass") {
			if sc.Provisioner != "csi.vmdk-csi.io" {
				t.Errorf("%s: provisioner %s", f, sc.Provisioner)
			}
		}
		objects[corev1.Pod](t, string(text), "Pod")
		objects[corev1.PersistentVolumeClaim](t, string(text), "PersistentVolumeClaim")
		objects[appsv1.Deployment](t, string(text), "Deployment")
		for _, m := range image.FindAllStringSubmatch(string(text), -1) {
			if m[1] != "docker.io/library/busybox:1.37" {
				t.Errorf("%s: image %s is not one that the cluster without a registry has", f, m[1])
			}
		}
		if strings.Contains(string(text), "image:") && !strings.Contains(string(text), "imagePullPolicy: IfNotPresent") {
			t.Errorf("%s: no imagePullPolicy", f)
		}
	}
}

func TestGeneratedFilesAreCurrent(t *testing.T) {
	helm(t)
	out, err := exec.Command("../../hack/generate.sh", "--check").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}
