package main

import (
	"context"
	"os"
	"os/signal"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMain makes the test binary be the processes that sections start.
func TestMain(m *testing.M) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	code, ok := asOther(ctx)
	stop()
	if !ok {
		code = m.Run()
	}
	os.Exit(code)
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
