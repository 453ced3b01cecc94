package kubetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	"sigs.k8s.io/yaml"
)

// namespace of the chart's service accounts in deploy/vmdk-csi.yaml.
const namespace = "vmdk-csi"

// Server is a running API.
type Server struct {
	// Config has all rights.
	Config *rest.Config
	env    *envtest.Environment
	// restarted is the API server after RestartAPI; the first one belongs to env.
	restarted *exec.Cmd
}

// Start starts an API for one test.
func Start(t testing.TB) *rest.Config {
	t.Helper()
	s, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Errorf("stop the API server: %v", err)
		}
	})
	return s.Config
}

// New starts an API; the caller stops it.
func New() (*Server, error) {
	root, err := repository()
	if err != nil {
		return nil, err
	}
	env := &envtest.Environment{
		CRDDirectoryPaths:     []string{filepath.Join(root, "charts", "vmdk-csi", "crds")},
		ErrorIfCRDPathMissing: true,
		// A machine that compiles something else meanwhile is slow.
		ControlPlaneStartTimeout: 3 * time.Minute, ControlPlaneStopTimeout: time.Minute,
	}
	apiserver := env.ControlPlane.GetAPIServer()
	if apiserver.Path, err = program(root, "VMDK_CSI_KUBE_BIN", "k8s", "kube-apiserver"); err != nil {
		return nil, err
	}
	etcd, err := program(root, "VMDK_CSI_ETCD_BIN", "etcd", "etcd")
	if err != nil {
		return nil, err
	}
	env.ControlPlane.Etcd = &envtest.Etcd{Path: etcd}
	// What is written here is lost with the test, so it need not reach a disk.
	env.ControlPlane.Etcd.Configure().Append("unsafe-no-fsync", "true")
	config, err := env.Start()
	if err != nil {
		// What it started before it gave up is running.
		return nil, errors.Join(fmt.Errorf("start kube-apiserver and etcd: %w", err), env.Stop())
	}
	s := &Server{Config: config, env: env}
	if err := s.grant(root); err != nil {
		return nil, fmt.Errorf("install the chart's roles: %w (and stop: %v)", err, s.Stop())
	}
	return s, nil
}

// Stop ends the processes and waits for them.
func (s *Server) Stop() error {
	s.endRestarted()
	return s.env.Stop()
}

// RestartAPI kills the API server for as long as down takes, and starts it again on the same address with the same content.
// (envtest would ask it politely, so that it first waits for the watches that the tests have open, and would give it new
// certificates.)
func (s *Server) RestartAPI(ctx context.Context, down func()) error {
	path := s.env.ControlPlane.GetAPIServer().Path
	pid, args, err := child(path, "--secure-port="+s.env.ControlPlane.GetAPIServer().SecureServing.Port)
	if err != nil {
		return err
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return err
	}
	s.endRestarted()
	down()
	// Its address is free when it is dead and was waited for, by envtest or by endRestarted.
	if err := poll(ctx, func() error {
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("the killed API server %d is still there", pid)
		}
		return nil
	}); err != nil {
		return err
	}
	s.restarted = exec.Command(path, args...)
	var output bytes.Buffer // read after a failure, when the process was waited for
	s.restarted.Stdout, s.restarted.Stderr = &output, &output
	if err := s.restarted.Start(); err != nil {
		s.restarted = nil
		return err
	}
	if err := s.ready(ctx); err != nil {
		s.endRestarted()
		return fmt.Errorf("%w\n%s", err, output.String())
	}
	return nil
}

func (s *Server) endRestarted() {
	if s.restarted == nil {
		return
	}
	_ = s.restarted.Process.Kill() // it may have ended
	_ = s.restarted.Wait()         // says that it was killed
	s.restarted = nil
}

func (s *Server) ready(ctx context.Context) error {
	c, err := kubernetes.NewForConfig(s.Config)
	if err != nil {
		return err
	}
	return poll(ctx, func() error {
		if _, err := c.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx); err != nil {
			return fmt.Errorf("the API server is not ready: %w", err)
		}
		return nil
	})
}

// poll repeats check until it succeeds, for two minutes at most.
func poll(ctx context.Context, check func() error) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}

// child finds this process's own child that runs program with an argument that no other has. It looks at own children alone: another process's files in /proc
// may not answer at all, when that process is stuck in the kernel.
func child(program, argument string) (pid int, args []string, err error) {
	lists, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		return 0, nil, err
	}
	for _, list := range lists {
		pids, err := os.ReadFile(list)
		if err != nil {
			continue // a thread that ended meanwhile
		}
		for _, p := range strings.Fields(string(pids)) {
			if exe, err := os.Readlink(filepath.Join("/proc", p, "exe")); err != nil || exe != program {
				continue
			}
			line, err := os.ReadFile(filepath.Join("/proc", p, "cmdline"))
			if err != nil {
				return 0, nil, err
			}
			args := strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")[1:]
			if !slices.Contains(args, argument) {
				continue
			}
			pid, err := strconv.Atoi(p)
			return pid, args, err
		}
	}
	return 0, nil, fmt.Errorf("no child of this process runs %s with %s", program, argument)
}

// As is a client configuration with the rights of one of the chart's service accounts.
func As(config *rest.Config, serviceAccount string) *rest.Config {
	c := rest.CopyConfig(config)
	c.Impersonate = rest.ImpersonationConfig{
		UserName: "system:serviceaccount:" + namespace + ":" + serviceAccount,
		Groups:   []string{"system:serviceaccounts", "system:serviceaccounts:" + namespace, "system:authenticated"},
	}
	return c
}

// AddNodes makes Node objects, ready ones.
func AddNodes(ctx context.Context, config *rest.Config, names ...string) error {
	c, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	for _, name := range names {
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}}}
		if _, err := c.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
			return err
		}
	}
	return nil
}

// grant installs the cluster roles of the static manifest, which is the rendered chart.
func (s *Server) grant(root string) error {
	manifest, err := os.ReadFile(filepath.Join(root, "deploy", "vmdk-csi.yaml"))
	if err != nil {
		return err
	}
	c, err := kubernetes.NewForConfig(s.Config)
	if err != nil {
		return err
	}
	ctx := context.Background()
	for doc := range strings.SplitSeq(string(manifest), "\n---\n") {
		var kind metav1.TypeMeta
		if err := yaml.Unmarshal([]byte(doc), &kind); err != nil {
			return err
		}
		switch kind.Kind {
		case "ClusterRole":
			var role rbacv1.ClusterRole
			if err = yaml.Unmarshal([]byte(doc), &role); err == nil {
				_, err = c.RbacV1().ClusterRoles().Create(ctx, &role, metav1.CreateOptions{})
			}
		case "ClusterRoleBinding":
			var binding rbacv1.ClusterRoleBinding
			if err = yaml.Unmarshal([]byte(doc), &binding); err == nil {
				_, err = c.RbacV1().ClusterRoleBindings().Create(ctx, &binding, metav1.CreateOptions{})
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// repository is the directory of the module that this file belongs to.
func repository() (string, error) {
	_, file, _, ok := runtime.Caller(0)
	root := filepath.Join(filepath.Dir(file), "..", "..")
	if !ok || !filepath.IsAbs(file) { // built with -trimpath: tests run in their package's directory
		wd, err := os.Getwd()
		if err != nil {
			return "", err
		}
		for root = wd; ; root = filepath.Dir(root) {
			if _, err := os.Stat(filepath.Join(root, "go.mod")); err == nil {
				break
			}
			if root == filepath.Dir(root) {
				return "", fmt.Errorf("no go.mod above %s", wd)
			}
		}
	}
	return root, nil
}

// program finds a program that hack/tools/build.sh makes.
func program(root, variable, group, name string) (string, error) {
	dir := os.Getenv(variable)
	if dir == "" {
		out, err := exec.Command(filepath.Join(root, "hack", "tools", "build.sh"), "--path", group).Output()
		if err != nil {
			return "", fmt.Errorf("where is %s: hack/tools/build.sh --path %s: %w", name, group, err)
		}
		dir = strings.TrimSpace(string(out))
	}
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%s is not built (hack/tools/build.sh %s builds it): %w", name, group, err)
	}
	return path, nil
}
