package chart

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/vmdk-csi/vmdk-csi/internal/kubetest"
	"github.com/vmdk-csi/vmdk-csi/pkg/api/v1alpha1"
)

const lunValues = `
datastores:
  - {name: local, scope: node, path: /var/lib/vmdk-csi/local}
  - {name: file, kind: lun, path: /mnt/luns/a.img, fencing: lease-only}
  - {name: file2, kind: lun, path: /mnt/luns/b.img}
  - {name: net, kind: lun, scope: shared, path: "iscsi://10.0.0.1:3260/iqn.2003-01.org.example:t/0", fencing: lease-only}
`

func hostdOf(t *testing.T, out string) corev1.PodSpec {
	t.Helper()
	return objects[appsv1.DaemonSet](t, out, "DaemonSet")["vmdk-hostd"].Spec.Template.Spec
}

// A LUN is an argument, the directory of its file, the way to the other hostds and what they know each other by; hostd stays as
// powerless as it is, and the Datastore says what it is.
func TestLUNs(t *testing.T) {
	out := mustRender(t, lunValues)
	pod := hostdOf(t, out)
	c := pod.Containers[0]
	for _, want := range []string{
		"--datastore=local=/var/lib/vmdk-csi/local,scope=node",
		"--datastore=file=lun:/mnt/luns/a.img,fencing=lease-only",
		"--datastore=file2=lun:/mnt/luns/b.img,fencing=reservations",
		"--datastore=net=lun:iscsi://10.0.0.1:3260/iqn.2003-01.org.example:t/0,fencing=lease-only",
		"--listen-control=:9810", "--listen-nbd=:9809", "--advertise=$(POD_IP)", "--peers=dns:vmdk-hostd-peers.vmdk-csi.svc:9810",
		"--tls-ca-cert=/etc/vmdk-csi/ca/tls.crt", "--tls-ca-key=/etc/vmdk-csi/ca/tls.key",
	} {
		if !slices.Contains(c.Args, want) {
			t.Errorf("no %s in %v", want, c.Args)
		}
	}
	mounts := map[string]corev1.VolumeMount{}
	for _, m := range c.VolumeMounts {
		if _, twice := mounts[m.MountPath]; twice {
			t.Errorf("%s is mounted twice", m.MountPath)
		}
		mounts[m.MountPath] = m
	}
	if m := mounts["/mnt/luns"]; m.MountPropagation == nil || *m.MountPropagation != corev1.MountPropagationHostToContainer {
		t.Errorf("the LUNs' directory: %+v", m)
	}
	if m := mounts["/etc/vmdk-csi/ca"]; !m.ReadOnly {
		t.Errorf("the certificate authority: %+v", m)
	}
	if !harmless(c) || c.SecurityContext.Privileged != nil {
		t.Errorf("hostd has more rights than it needs: %+v", c.SecurityContext)
	}
	s := objects[corev1.Service](t, out, "Service")["vmdk-hostd-peers"].Spec
	if s.ClusterIP != corev1.ClusterIPNone || !s.PublishNotReadyAddresses || s.Selector["app.kubernetes.io/component"] != "hostd" || len(s.Ports) != 2 {
		t.Errorf("peers: %+v", s)
	}
	for _, p := range s.Ports {
		if !slices.ContainsFunc(c.Ports, func(cp corev1.ContainerPort) bool {
			return cp.Name == p.TargetPort.StrVal && cp.ContainerPort == p.Port
		}) {
			t.Errorf("no container has port %+v", p)
		}
	}
	ds := objects[v1alpha1.Datastore](t, out, "Datastore")
	if d := ds["file"].Spec; d.Kind != v1alpha1.KindLUN || d.Scope != v1alpha1.ScopeShared || d.LUN == nil || d.LUN.Path != "/mnt/luns/a.img" ||
		d.LUN.Fencing != "lease-only" || d.Path != "" {
		t.Errorf("%+v", d)
	}
	if d := ds["local"].Spec; d.Kind != v1alpha1.KindDirectory || d.LUN != nil {
		t.Errorf("%+v", d)
	}
}

// Without a LUN there is nothing of all that.
func TestNoLUN(t *testing.T) {
	out := mustRender(t, "{}")
	c := hostdOf(t, out).Containers[0]
	_, peers := objects[corev1.Service](t, out, "Service")["vmdk-hostd-peers"]
	if peers || len(objects[corev1.Secret](t, out, "Secret")) != 0 || len(c.Ports) != 1 ||
		strings.Contains(strings.Join(c.Args, " "), "--listen") {
		t.Errorf("%v %v", c.Args, c.Ports)
	}
}

// A device of the node is opened by a privileged container alone.
func TestDeviceLUN(t *testing.T) {
	c := hostdOf(t, mustRender(t, "datastores: [{name: a, kind: lun, path: /dev/disk/by-id/wwn-0x6001}]")).Containers[0]
	s := c.SecurityContext
	if s.Privileged == nil || !*s.Privileged || s.AllowPrivilegeEscalation != nil || !*s.ReadOnlyRootFilesystem {
		t.Errorf("%+v", s)
	}
	if !slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == "/dev" }) {
		t.Errorf("no /dev: %+v", c.VolumeMounts)
	}
}

func TestOwnCertificateAuthority(t *testing.T) {
	out := mustRender(t, lunValues+"hostd: {caSecret: mine, runAsUser: 1000, runAsGroup: 1000}\n")
	if n := len(objects[corev1.Secret](t, out, "Secret")); n != 0 {
		t.Errorf("%d Secrets beside the own one", n)
	}
	pod := hostdOf(t, out)
	for _, v := range pod.Volumes {
		if v.Secret != nil && (v.Secret.SecretName != "mine" || *v.Secret.DefaultMode != 0o440 || *pod.SecurityContext.FSGroup != 1000) {
			t.Errorf("%+v %+v", v.Secret, pod.SecurityContext)
		}
	}
}

// The secrets of iSCSI targets are a file of a Secret, and in no argument.
func TestLUNCredentials(t *testing.T) {
	out := mustRender(t, `
datastores: [{name: net, kind: lun, path: "iscsi://vmdk@10.0.0.1/iqn.2003-01.org.example:t/0"}]
hostd: {lunCredentialsSecret: chap}
`)
	pod := hostdOf(t, out)
	if !slices.Contains(pod.Containers[0].Args, "--lun-credentials=/etc/vmdk-csi/luns/credentials.json") ||
		!slices.Contains(pod.Containers[0].Args, "--datastore=net=lun:iscsi://vmdk@10.0.0.1/iqn.2003-01.org.example:t/0,fencing=reservations") {
		t.Errorf("%v", pod.Containers[0].Args)
	}
	i := slices.IndexFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Name == "credentials" })
	if i < 0 || pod.Volumes[i].Secret.SecretName != "chap" ||
		!slices.ContainsFunc(pod.Containers[0].VolumeMounts, func(m corev1.VolumeMount) bool {
			return m.Name == "credentials" && m.ReadOnly && m.MountPath == "/etc/vmdk-csi/luns"
		}) {
		t.Errorf("%+v", pod.Volumes)
	}
}

// The certificate authority can issue certificates, and is the same after an upgrade: the others would not know who has another.
func TestCertificateAuthorityIsKept(t *testing.T) {
	first := objects[corev1.Secret](t, mustRender(t, lunValues), "Secret")["vmdk-hostd-ca"]
	block, _ := pem.Decode(first.Data["tls.crt"])
	if block == nil || first.Type != corev1.SecretTypeTLS {
		t.Fatalf("%+v", first)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil || !cert.IsCA || cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		t.Fatalf("%+v %v", cert, err)
	}
	if key, _ := pem.Decode(first.Data["tls.key"]); key == nil {
		t.Fatal("no key")
	}
	kubeconfig := kubeconfigOf(t, kubetest.Start(t))
	upgrade := func() corev1.Secret {
		t.Helper()
		cmd := exec.Command(helm(t), "template", "vmdk-csi", ".", "--namespace", "vmdk-csi", "--is-upgrade", "--dry-run=server", "--values", "-",
			"--kubeconfig", kubeconfig)
		cmd.Stdin = strings.NewReader(lunValues)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v: %s", err, stderr.String())
		}
		return objects[corev1.Secret](t, string(out), "Secret")["vmdk-hostd-ca"]
	}
	if got := upgrade(); bytes.Equal(got.Data["tls.key"], first.Data["tls.key"]) {
		t.Fatal("two installations have the same key")
	}
	for _, args := range [][]string{
		{"create", "namespace", "vmdk-csi"},
		{"-n", "vmdk-csi", "create", "secret", "tls", "vmdk-hostd-ca", "--cert", write(t, first.Data["tls.crt"]), "--key", write(t, first.Data["tls.key"])},
	} {
		cmd := exec.Command(filepath.Join(kubectlDir(t), "kubectl"), append([]string{"--kubeconfig", kubeconfig}, args...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	if got := upgrade(); !bytes.Equal(got.Data["tls.key"], first.Data["tls.key"]) || !bytes.Equal(got.Data["tls.crt"], first.Data["tls.crt"]) {
		t.Error("an upgrade makes another certificate authority")
	}
}

func kubectlDir(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("VMDK_CSI_KUBE_BIN"); dir != "" {
		return dir
	}
	out, err := exec.Command("../../hack/tools/build.sh", "--path", "k8s").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

func write(t *testing.T, data []byte) string {
	t.Helper()
	f := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(f, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return f
}

func kubeconfigOf(t *testing.T, c *rest.Config) string {
	t.Helper()
	f := filepath.Join(t.TempDir(), "kubeconfig")
	err := clientcmd.WriteToFile(clientcmdapi.Config{
		Clusters:  map[string]*clientcmdapi.Cluster{"c": {Server: c.Host, CertificateAuthorityData: c.CAData}},
		AuthInfos: map[string]*clientcmdapi.AuthInfo{"u": {ClientCertificateData: c.CertData, ClientKeyData: c.KeyData}},
		Contexts:  map[string]*clientcmdapi.Context{"x": {Cluster: "c", AuthInfo: "u"}}, CurrentContext: "x",
	}, f)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestSchemaRefusesLUNs(t *testing.T) {
	for _, tc := range []struct{ values, says string }{
		{"datastores: [{name: a, kind: san, path: /dev/sdb}]", "kind"},
		{"datastores: [{name: a, kind: lun}]", "path"},
		{"datastores: [{name: a, kind: lun, scope: node, path: /dev/sdb}]", "scope"},
		{"datastores: [{name: a, kind: lun, path: /dev/sdb, fencing: none}]", "fencing"},
		{"datastores: [{name: a, kind: lun, path: /dev/sdb, fileLocks: false}]", "fileLocks"},
		{"datastores: [{name: a, kind: lun, path: /lun}]", "path"},
		{"datastores: [{name: a, kind: lun, path: /mnt/../dev/sdb}]", "path"},
		{"datastores: [{name: a, kind: lun, path: 'iscsi://user:secret@10.0.0.1/iqn/0'}]", "path"},
		{"datastores: [{name: a, kind: lun, path: '/dev/sdb,fencing=x'}]", "path"},
		{"datastores: [{name: a, scope: node, path: /a, fencing: lease-only}]", "fencing"},
		{"datastores: [{name: a, path: /a}]", "scope"},
		{"storageClasses: [{name: a, parameters: {transport: 'san:fc'}}]", "transport"},
		{"storageClasses: [{name: a, parameters: {transport: ''}}]", "transport"},
	} {
		_, err := render(t, tc.values)
		if err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: got %v, want a refusal that says %q", tc.values, err, tc.says)
		}
	}
	mustRender(t, "storageClasses: [{name: a, parameters: {transport: 'san:hotadd:nbd'}}]")
}

// Without a LUN the hostds talk to each other when they are to lend disks in directories, and only then.
func TestLend(t *testing.T) {
	const stores = "datastores: [{name: nfs, scope: shared, path: /mnt/nfs}]\n"
	for values, want := range map[string]bool{stores: false, stores + "hostd: {lend: true}\n": true} {
		out := mustRender(t, values)
		c := hostdOf(t, out).Containers[0]
		_, peers := objects[corev1.Service](t, out, "Service")["vmdk-hostd-peers"]
		_, ca := objects[corev1.Secret](t, out, "Secret")["vmdk-hostd-ca"]
		if slices.Contains(c.Args, "--tls-ca-cert=/etc/vmdk-csi/ca/tls.crt") != want || peers != want || ca != want || !harmless(c) {
			t.Errorf("%s: %v, peers %v, authority %v", values, c.Args, peers, ca)
		}
	}
}
