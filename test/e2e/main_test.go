//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The cluster of the tests stands beside the demo's, never in its place.
const clusterName = "vmdk-csi-e2e"

const driverNamespace = "vmdk-csi"

// stateDir is where hack/kind keeps the directories that the nodes mount as datastores.
func stateDir() string {
	if d := os.Getenv("VMDK_CSI_STATE"); d != "" {
		return d
	}
	return "/var/lib/vmdk-csi-kind"
}

func sharedDir() string { return filepath.Join(stateDir(), "shared-e2e") }

func repo() string {
	wd, err := os.Getwd()
	if err != nil {
		panic(err)
	}
	return filepath.Join(wd, "..", "..")
}

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) (code int) {
	for k, v := range map[string]string{"CLUSTER": clusterName, "API_PORT": "6444", "VMDK_CSI_SHARED": sharedDir()} {
		os.Setenv(k, v)
	}
	if os.Getenv("VMDK_CSI_E2E_KEEP") == "" {
		defer func() {
			args := []string{"--wipe"}
			if code != 0 {
				args = nil // the files of the nodes are evidence
			}
			if err := script("hack/kind/down.sh", args...); err != nil {
				fmt.Fprintln(os.Stderr, "e2e: the cluster was not removed:", err)
				code = 1
			}
		}()
	}
	began := time.Now()
	if err := setup(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e: set-up failed:", err)
		dumpCluster()
		return 1
	}
	fmt.Printf("e2e: cluster and driver ready after %s\n", time.Since(began).Round(time.Second))
	code = m.Run()
	if code != 0 {
		dumpCluster()
	}
	return code
}

func setup() error {
	images, err := exec.Command(filepath.Join(repo(), "hack/images.sh")).Output()
	if err != nil {
		return fmt.Errorf("hack/images.sh: %w", err)
	}
	if err := script("hack/kind/up.sh", strings.Fields(string(images))...); err != nil {
		return err
	}
	if err := readEnvironment(); err != nil {
		return err
	}
	if err := mountSpecial(); err != nil {
		return err
	}
	if err := script("hack/install.sh", "--values", filepath.Join(repo(), "test/e2e/values.yaml")); err != nil {
		return err
	}
	if out, err := tryKubectl("apply", "-f", filepath.Join(repo(), "test/e2e/classes.yaml")); err != nil {
		return fmt.Errorf("storage classes: %w: %s", err, out)
	}
	return nil
}

// mountSpecial gives every node the file systems that are the datastores "small" and "frozen".
func mountSpecial() error {
	out, err := tryKubectl("get", "nodes", "-o", "jsonpath={.items[*].metadata.name}")
	if err != nil {
		return fmt.Errorf("nodes: %w: %s", err, out)
	}
	for _, n := range strings.Fields(out) {
		b, err := exec.Command("docker", "exec", n, "sh", "-c", `cd /var/lib/vmdk-csi; mkdir -p small frozen
grep -q " $PWD/small " /proc/mounts || mount -t tmpfs -o size=64m small small
grep -q " $PWD/frozen " /proc/mounts || mount -t tmpfs -o ro,size=64m frozen frozen`).CombinedOutput()
		if err != nil {
			return fmt.Errorf("mount the special file systems on %s: %w: %s", n, err, b)
		}
	}
	return nil
}

// readEnvironment takes over what hack/kind/env.sh prints: where the engine and the cluster are.
func readEnvironment() error {
	out, err := exec.Command(filepath.Join(repo(), "hack/kind/env.sh"), "--print").Output()
	if err != nil {
		return fmt.Errorf("hack/kind/env.sh --print: %w", err)
	}
	for _, l := range strings.Split(string(out), "\n") {
		l = strings.TrimPrefix(l, "export ")
		if k, v, ok := strings.Cut(l, "="); ok {
			os.Setenv(k, strings.ReplaceAll(strings.Trim(v, `"'`), "$PATH", os.Getenv("PATH")))
		}
	}
	return nil
}

func script(name string, args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(repo(), name), args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// dumpCluster prints what somebody wants to see who reads a failure in a log.
func dumpCluster() {
	for _, args := range [][]string{
		{"get", "nodes,pods,pvc,pv,virtualdisks,datastores,volumeattachments", "-A", "-o", "wide"},
		{"get", "events", "-A", "--sort-by=.lastTimestamp"},
		{"-n", driverNamespace, "logs", "-l", "app.kubernetes.io/name=vmdk-csi", "--all-containers", "--tail=80", "--prefix", "--max-log-requests=40"},
		{"get", "virtualdisks", "-o", "yaml"},
	} {
		fmt.Println("$ kubectl", strings.Join(args, " "))
		out, _ := exec.Command("kubectl", args...).CombinedOutput()
		os.Stdout.Write(out)
	}
}
