package cli

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestPace(t *testing.T) {
	if Pace(0) != nil {
		t.Error("no limit is a limit")
	}
	pace := Pace(10 << 20)
	begin := time.Now()
	for range 5 {
		if err := pace(t.Context(), 1<<20); err != nil {
			t.Fatal(err)
		}
	}
	// The first piece does not wait, each other one for the one before.
	if d := time.Since(begin); d < 400*time.Millisecond {
		t.Errorf("5 MiB at 10 MiB/s took %v", d)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	slow := Pace(1)
	if err := slow(t.Context(), 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := slow(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}
