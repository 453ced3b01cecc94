package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/vmdk-csi/vmdk-csi/test/cluster"
)

// kind is the cluster of test/cluster as a fixture. It is made and removed by this same program in a process of its own (-cluster),
// so that an interrupt ends the scripts and all that they started.
type kind struct {
	log  string
	done chan struct{} // closed when output and err are final
	out  []byte
	err  error
}

func newKind(log string) *kind { return &kind{log: log} }

func (k *kind) begin(ctx context.Context) {
	k.done = make(chan struct{})
	os.Remove(k.log)
	go func() {
		defer close(k.done)
		k.out, k.err = k.do(ctx, "up")
	}()
}

func (k *kind) ready() ([]string, error) {
	<-k.done
	return strings.Split(strings.TrimSpace(string(k.out)), "\n"), k.err
}

func (k *kind) environment() []string { return []string{cluster.GivenEnvironment()} }

func (k *kind) end(passed bool) error {
	<-k.done
	// Also after an interrupt: nothing may stay.
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	what := "down"
	if passed {
		what = "wipe"
	}
	out, err := k.do(ctx, what)
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}

func (k *kind) do(ctx context.Context, what string) ([]byte, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	cmd := start(ctx, []string{self, "-cluster", what}, nil)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err = cmd.Run(); err != nil {
		err = fmt.Errorf("the cluster: %s: %w", what, err)
	}
	f, openErr := os.OpenFile(k.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if openErr != nil {
		return out.Bytes(), openErr
	}
	defer f.Close()
	_, _ = f.Write(out.Bytes())
	return out.Bytes(), err
}

// clusterCommand is the other end of do.
func clusterCommand(ctx context.Context, what string) error {
	switch what {
	case "up":
		return cluster.Up(ctx, os.Stdout)
	case "down", "wipe":
		return cluster.Down(ctx, os.Stdout, what == "wipe")
	default:
		return fmt.Errorf("-cluster is %q; it can be up, down or wipe", what)
	}
}
