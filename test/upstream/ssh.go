//go:build e2e

package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/vmdk-csi/vmdk-csi/test/cluster"
)

// nodeSSH is an ssh server in each node, for the tests that stop the kubelet over ssh. The servers end with their standard
// inputs, at the latest when this process does.
type nodeSSH struct {
	dir     string
	servers []*exec.Cmd
	inputs  []io.Closer
}

// serveSSH starts one server a node. The caller calls stop.
func serveSSH(ctx context.Context, bin string, out io.Writer) (*nodeSSH, error) {
	dir, err := os.MkdirTemp("", "nodessh-")
	if err != nil {
		return nil, err
	}
	s := &nodeSSH{dir: dir}
	program := filepath.Join(bin, "nodessh")
	if b, err := exec.CommandContext(ctx, program, "keygen", s.key()).CombinedOutput(); err != nil {
		return nil, errors.Join(fmt.Errorf("nodessh keygen: %w: %s", err, b), s.stop())
	}
	public, err := os.ReadFile(s.key() + ".pub")
	if err != nil {
		return nil, errors.Join(err, s.stop())
	}
	nodes, err := cluster.Nodes(ctx)
	if err != nil {
		return nil, errors.Join(err, s.stop())
	}
	for _, n := range nodes {
		if err := s.serve(ctx, n, program, public, out); err != nil {
			return nil, errors.Join(fmt.Errorf("ssh server in %s: %w", n, err), s.stop())
		}
	}
	return s, nil
}

func (s *nodeSSH) key() string { return filepath.Join(s.dir, "key") }

func (s *nodeSSH) serve(ctx context.Context, node, program string, public []byte, out io.Writer) error {
	if b, err := exec.CommandContext(ctx, "docker", "cp", program, node+":/usr/local/bin/nodessh").CombinedOutput(); err != nil {
		return fmt.Errorf("docker cp: %w: %s", err, b)
	}
	cmd := exec.Command("docker", "exec", "-i", node, "nodessh", "serve", ":22")
	cmd.Stdout, cmd.Stderr = out, out
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	s.servers, s.inputs = append(s.servers, cmd), append(s.inputs, in)
	_, err = in.Write(public)
	return err
}

func (s *nodeSSH) stop() error {
	var errs []error
	for i, in := range s.inputs {
		in.Close()
		errs = append(errs, s.servers[i].Wait())
	}
	return errors.Join(append(errs, os.RemoveAll(s.dir))...)
}
