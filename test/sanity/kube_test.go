package sanity

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"github.com/vmdk-csi/vmdk-csi/internal/kubetest"
	apiv1 "github.com/vmdk-csi/vmdk-csi/pkg/api/v1alpha1"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/kube"
)

// startKube runs what a cluster runs, but pods: API server, controller, hostd, node plugin; each of ours with the rights
// that the chart gives it.
func startKube(t *testing.T, dir string) endpoints {
	t.Helper()
	server, err := kubetest.New()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	client, err := kube.Connect(server.Config)
	if err == nil {
		err = kubetest.AddNodes(ctx, server.Config, "node-a")
	}
	if err == nil {
		store := &apiv1.Datastore{ObjectMeta: metav1.ObjectMeta{Name: "local"}, Spec: apiv1.DatastoreSpec{Scope: apiv1.ScopeNode}}
		err = client.Create(ctx, store)
	}
	if err != nil {
		t.Fatal(errors.Join(err, server.Stop()))
	}
	store := filepath.Join(dir, "store")
	if err := os.Mkdir(store, 0o700); err != nil {
		t.Fatal(err)
	}
	nodeEnd, controllerEnd := filepath.Join(dir, "node.sock"), filepath.Join(dir, "controller.sock")
	hostd := startHostd(t, dir, store)
	node := start(t, "vmdk-csi-node", "--kubeconfig="+kubeconfig(t, server.Config, dir, "vmdk-csi-node"), "--node-name=node-a",
		"--hostd="+filepath.Join(dir, "hostd.sock"), "--endpoint=unix://"+nodeEnd, "--plugin-dir="+filepath.Join(dir, "plugin"),
		"--link-dir="+filepath.Join(dir, "by-id"), "--v=2")
	controller := start(t, "vmdk-csi-controller", "--kubeconfig="+kubeconfig(t, server.Config, dir, "vmdk-csi-controller"),
		"--endpoint=unix://"+controllerEnd, "--v=2")
	listening(t, node, nodeEnd)
	listening(t, controller, controllerEnd)
	await(t, "the node reports its datastore", func(ctx context.Context) (bool, error) {
		all, err := kube.NewClient(kube.ClientParams{API: client}).Datastores(ctx)
		return err == nil && len(all) == 1 && len(all[0].Hosts) == 1 && all[0].Hosts[0].Ready, err
	})
	return endpoints{node: nodeEnd, controller: controllerEnd, left: func() ([]string, error) { return filesIn(store) }, stop: func() error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		var disks apiv1.VirtualDiskList
		err := client.List(ctx, &disks)
		for _, d := range disks.Items {
			err = errors.Join(err, errors.New("left behind: VirtualDisk "+d.Name))
		}
		var snapshots apiv1.DiskSnapshotList
		err = errors.Join(err, client.List(ctx, &snapshots))
		for _, s := range snapshots.Items {
			err = errors.Join(err, errors.New("left behind: DiskSnapshot "+s.Name))
		}
		return errors.Join(err, controller.stop(), node.stop(), hostd.stop(), server.Stop(),
			emptyDirs(filepath.Join(dir, "plugin", "volumes"), filepath.Join(dir, "by-id")))
	}}
}

// kubeconfig is a file with which a program has the rights of one of the chart's service accounts.
func kubeconfig(t *testing.T, config *rest.Config, dir, account string) string {
	t.Helper()
	as := kubetest.As(config, account)
	path := filepath.Join(dir, account+".kubeconfig")
	c := api.NewConfig()
	c.Clusters["test"] = &api.Cluster{Server: as.Host, CertificateAuthorityData: as.CAData}
	c.AuthInfos["test"] = &api.AuthInfo{ClientCertificateData: as.CertData, ClientKeyData: as.KeyData, Token: as.BearerToken,
		Impersonate: as.Impersonate.UserName, ImpersonateGroups: as.Impersonate.Groups}
	c.Contexts["test"] = &api.Context{Cluster: "test", AuthInfo: "test"}
	c.CurrentContext = "test"
	if err := clientcmd.WriteToFile(*c, path); err != nil {
		t.Fatal(err)
	}
	return path
}

func await(t *testing.T, what string, ready func(context.Context) (bool, error)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		ok, err := ready(ctx)
		if ok {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not within a minute: %v", what, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
