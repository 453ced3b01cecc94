package worker

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// TestStopEndsAGrowth: a stop does not wait for the hours that a growth takes.
func TestStopEndsAGrowth(t *testing.T) {
	r := newRig(t)
	h := start(t, supervisor(t, "endless growth"), r)
	grown := make(chan error, 1)
	go func() {
		_, err := h.Grow(within(t, 2*long), 16384)
		grown <- err
	}()
	eventually(t, "the growth runs", func() bool {
		_, err := os.Stat(filepath.Join(r.dir, "growing"))
		return err == nil
	})
	if err := h.Stop(within(t, long)); err != nil {
		t.Error(err)
	}
	if err := errors.Join(h.Kill(), <-grown); fault.KindOf(err) != fault.Unavailable || !strings.Contains(err.Error(), "stopped") {
		t.Errorf("Grow: %v", err)
	}
}

// TestStopIsHeardLater: a stop that fails after its caller gave up is told to whoever stops the disk again.
func TestStopIsHeardLater(t *testing.T) {
	for _, ended := range []bool{true, false} { // when it is stopped again
		r := newRig(t)
		h := start(t, supervisor(t, "slow poison"), r)
		if err := h.Stop(within(t, 50*time.Millisecond)); fault.KindOf(err) != fault.Timeout {
			t.Fatalf("Stop: %v", err)
		}
		if err := os.WriteFile(filepath.Join(r.dir, "go on"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if ended {
			<-h.Done()
		}
		for range 2 {
			if err := h.Stop(within(t, long)); err == nil || !strings.Contains(err.Error(), unix.EIO.Error()) {
				t.Errorf("ended %v: Stop again: %v", ended, err)
			}
		}
	}
}
