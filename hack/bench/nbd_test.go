package main

import (
	"context"
	"os"
	"os/signal"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/cli/vmdkctl"
)

// TestMain makes the test binary be the server that the section nbd starts.
func TestMain(m *testing.M) {
	if asServer() {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
		code := vmdkctl.Main(ctx, os.Args[1:], os.Stdout, os.Stderr)
		stop()
		os.Exit(code)
	}
	os.Exit(m.Run())
}

func TestNBD(t *testing.T) {
	b := &bench{dir: t.TempDir(), quick: true, seed: 1}
	p, err := measureNBD(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range p.rows {
		if r.ours.n <= 0 || r.theirs.n <= 0 {
			t.Errorf("%+v measured nothing", r)
		}
	}
}
