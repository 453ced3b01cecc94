package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const (
	// Name is kind's name of the cluster; its nodes are called after it.
	Name = "vmdk-csi-e2e"
	// DriverNamespace is where the chart is installed.
	DriverNamespace = "vmdk-csi"

	// givenVariable tells a suite that the cluster is up and is somebody else's to remove.
	givenVariable = "VMDK_CSI_E2E_CLUSTER"
	// keepVariable is for people: the cluster stays up after the suite, and the next run uses it again.
	keepVariable = "VMDK_CSI_E2E_KEEP"
)

// GivenEnvironment is for the process of a suite whose cluster the caller looks after.
func GivenEnvironment() string { return givenVariable + "=given" }

// StateDir is where hack/kind keeps the directories that the nodes mount as datastores.
func StateDir() string {
	if d := os.Getenv("VMDK_CSI_STATE"); d != "" {
		return d
	}
	return "/var/lib/vmdk-csi-kind"
}

// SharedDir is the shared datastore, of this cluster alone.
func SharedDir() string { return filepath.Join(StateDir(), "shared-e2e") }

// LUNFile is the LUN that the nodes share: a file, in a directory of its own, so that it can be hidden from a node.
func LUNFile() string { return filepath.Join(SharedDir(), "lun", "lun.img") }

// LUNDir is LUNFile's directory as the nodes see it.
const LUNDir = "/var/lib/vmdk-csi/shared/lun"

// Vmdkctl is the program, once the cluster is up.
func Vmdkctl() string { return filepath.Join(StateDir(), "vmdkctl") }

// Repo is the root of the tree: the nearest directory above the working directory with a go.mod.
func Repo() string {
	wd, err := os.Getwd()
	if err != nil {
		panic(err)
	}
	for dir := wd; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			panic("no go.mod above " + wd)
		}
	}
}

// environment is what the scripts under hack/kind are told.
func environment() []string {
	return []string{"CLUSTER=" + Name, "API_PORT=6444", "VMDK_CSI_SHARED=" + SharedDir()}
}

// Up brings the cluster up with the driver as the tree is now. out is given the scripts' output.
func Up(ctx context.Context, out io.Writer) error {
	images, err := script(ctx, out, "hack/images.sh")
	if err != nil {
		return err
	}
	if _, err := script(ctx, out, "hack/kind/up.sh", strings.Fields(images)...); err != nil {
		return err
	}
	env, err := readEnvironment(ctx, out)
	if err != nil {
		return err
	}
	if err := mountSpecial(ctx, env); err != nil {
		return err
	}
	if err := makeLUN(ctx); err != nil {
		return err
	}
	tag, err := script(ctx, out, "hack/images.sh", "--version")
	if err != nil {
		return err
	}
	if err := os.Setenv("VMDK_CSI_LOADED", strings.TrimSpace(tag)); err != nil {
		return fmt.Errorf("set VMDK_CSI_LOADED: %w", err)
	}
	if _, err := script(ctx, out, "hack/install.sh", "--values", filepath.Join(Repo(), "test/e2e/values.yaml")); err != nil {
		return err
	}
	if b, err := run(ctx, env, "kubectl", "apply", "-f", filepath.Join(Repo(), "test/e2e/classes.yaml")); err != nil {
		return fmt.Errorf("storage classes: %w: %s", err, b)
	}
	return nil
}

// Down removes the cluster; wipe also what its nodes wrote, which is evidence after a failure.
func Down(ctx context.Context, out io.Writer, wipe bool) error {
	var args []string
	if wipe {
		args = []string{"--wipe"}
	}
	_, err := script(ctx, out, "hack/kind/down.sh", args...)
	return err
}

// Load loads images (docker-archives) into the nodes.
func Load(ctx context.Context, out io.Writer, archives ...string) error {
	_, err := script(ctx, out, "hack/kind/load.sh", archives...)
	return err
}

// Enter brings the cluster up, unless it is given, and sets this process's environment so that kubectl and docker reach it.
func Enter(ctx context.Context, out io.Writer) error {
	if os.Getenv(givenVariable) == "" {
		if err := Up(ctx, out); err != nil {
			return err
		}
	}
	env, err := readEnvironment(ctx, out)
	if err != nil {
		return err
	}
	for _, kv := range append(environment(), env...) {
		k, v, _ := strings.Cut(kv, "=")
		if err := os.Setenv(k, v); err != nil {
			return fmt.Errorf("set %s: %w", k, err)
		}
	}
	return nil
}

// Leave removes the cluster, unless it is given or is to be kept.
func Leave(ctx context.Context, out io.Writer, passed bool) error {
	if os.Getenv(givenVariable) != "" || os.Getenv(keepVariable) != "" {
		return nil
	}
	return Down(ctx, out, passed)
}

// Nodes are the names of the cluster's nodes. Call it after Enter.
func Nodes(ctx context.Context) ([]string, error) {
	out, err := exec.CommandContext(ctx, "kubectl", "get", "nodes", "-o", "jsonpath={.items[*].metadata.name}").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("nodes: %w: %s", err, out)
	}
	return strings.Fields(string(out)), nil
}

// InNetwork is what to put before a command that must reach the nodes' own addresses. A private engine has a network
// namespace, in which alone they can be reached.
func InNetwork() []string {
	b, err := os.ReadFile(filepath.Join(StateDir(), "engine", "init"))
	if err != nil || os.Getenv("DOCKER_HOST") == "" {
		return nil
	}
	return []string{"nsenter", "--net", "--target", strings.Fields(string(b) + " 0")[0]}
}

// mountSpecial gives every node the file systems that are the datastores "small" and "frozen".
func mountSpecial(ctx context.Context, env []string) error {
	names, err := run(ctx, env, "kubectl", "get", "nodes", "-o", "jsonpath={.items[*].metadata.name}")
	if err != nil {
		return fmt.Errorf("nodes: %w: %s", err, names)
	}
	for _, n := range strings.Fields(string(names)) {
		b, err := run(ctx, env, "docker", "exec", n, "sh", "-c", `cd /var/lib/vmdk-csi; mkdir -p small frozen
grep -q " $PWD/small " /proc/mounts || mount -t tmpfs -o size=64m small small
grep -q " $PWD/frozen " /proc/mounts || mount -t tmpfs -o ro,size=64m frozen frozen`)
		if err != nil {
			return fmt.Errorf("mount the special file systems on %s: %w: %s", n, err, b)
		}
	}
	return nil
}

// lunSize is enough for what the tests have on the LUN at once.
const lunSize = 3 << 30

// makeLUN makes the LUN that the datastore "lun" is on. One that a kept cluster uses stays as it is.
func makeLUN(ctx context.Context) error {
	build := exec.CommandContext(ctx, "go", "build", "-o", Vmdkctl(), "./cmd/vmdkctl")
	build.Dir, build.Env = Repo(), append(os.Environ(), "CGO_ENABLED=0")
	if b, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build vmdkctl: %w: %s", err, b)
	}
	if _, err := run(ctx, nil, Vmdkctl(), "lun", "check", LUNFile()); err == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(LUNFile()), 0o755); err != nil {
		return fmt.Errorf("the LUN's directory: %w", err)
	}
	// Not a new file: a node that has the old one open would go on with that.
	f, err := os.OpenFile(LUNFile(), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("the LUN: %w", err)
	}
	if err := errors.Join(f.Truncate(0), f.Truncate(lunSize), f.Close()); err != nil {
		return fmt.Errorf("the LUN: %w", err)
	}
	if b, err := run(ctx, nil, Vmdkctl(), "lun", "format", LUNFile()); err != nil {
		return fmt.Errorf("format the LUN: %w: %s", err, b)
	}
	return nil
}

// readEnvironment is what hack/kind/env.sh prints: where the engine and the cluster are.
func readEnvironment(ctx context.Context, out io.Writer) ([]string, error) {
	text, err := script(ctx, out, "hack/kind/env.sh", "--print")
	if err != nil {
		return nil, err
	}
	var env []string
	for _, l := range strings.Split(text, "\n") {
		if kv, ok := strings.CutPrefix(l, "export "); ok {
			k, v, _ := strings.Cut(kv, "=")
			env = append(env, k+"="+strings.ReplaceAll(strings.Trim(v, `"'`), "$PATH", os.Getenv("PATH")))
		}
	}
	return env, nil
}

func run(ctx context.Context, env []string, name string, args ...string) ([]byte, error) {
	// The program is looked for in the PATH of env.
	cmd := exec.CommandContext(ctx, "/usr/bin/env", append([]string{name}, args...)...)
	cmd.Env = append(os.Environ(), env...)
	return cmd.CombinedOutput()
}

// script runs a script of the tree and returns what it printed.
func script(ctx context.Context, out io.Writer, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute)
	defer cancel()
	var stdout strings.Builder
	cmd := exec.CommandContext(ctx, filepath.Join(Repo(), name), args...)
	cmd.Env = append(os.Environ(), environment()...)
	cmd.Stdout, cmd.Stderr = io.MultiWriter(out, &stdout), out
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	return stdout.String(), nil
}

// Dump prints what somebody wants to see who reads a failure in a log.
func Dump(out io.Writer) {
	for _, args := range [][]string{
		{"get", "nodes,pods,pvc,pv,virtualdisks,datastores,volumeattachments", "-A", "-o", "wide"},
		{"get", "events", "-A", "--sort-by=.lastTimestamp"},
		{"-n", DriverNamespace, "logs", "-l", "app.kubernetes.io/name=vmdk-csi", "--all-containers", "--tail=80", "--prefix", "--max-log-requests=40"},
		{"get", "virtualdisks", "-o", "yaml"},
	} {
		fmt.Fprintln(out, "$ kubectl", strings.Join(args, " "))
		b, _ := exec.Command("kubectl", args...).CombinedOutput()
		_, _ = out.Write(b)
	}
}
