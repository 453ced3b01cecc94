package takeover

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// between is the longest time between a sign of life and the next death.
const between = 500 * time.Millisecond

// killUnder kills n times at random moments while work runs on r's device, and returns when work has ended. Before every
// death, and after the last, the device must have done some requests: a successor shows what it is worth.
func killUnder(t *testing.T, rnd *rand.Rand, r *rig, n int, work func(stop <-chan struct{}) error) {
	t.Helper()
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- work(stop) }()
	for range n {
		if !r.busy(t) {
			break
		}
		time.Sleep(time.Duration(rnd.Int64N(int64(between))))
		r.host.kill(t)
	}
	r.busy(t)
	close(stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// busy waits until the block device has completed 100 requests more than when it was called.
func (r *rig) busy(t *testing.T) bool {
	t.Helper()
	completed := func() int {
		b, err := os.ReadFile(fmt.Sprintf("/sys/block/loop%d/stat", r.loop.Number)) // Documentation/block/stat.rst
		f := strings.Fields(string(b))
		if err != nil || len(f) < 5 {
			t.Fatalf("%q, %v", b, err)
		}
		reads, _ := strconv.Atoi(f[0])
		writes, _ := strconv.Atoi(f[4])
		return reads + writes
	}
	for from, deadline := completed(), time.Now().Add(waitLong); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if completed() >= from+100 {
			return true
		}
	}
	t.Errorf("%s does nothing any more", r.loop.Path())
	return false
}

// fio writes at depth 32 and reads back what it wrote, over and over, until stop: 4 KiB to 64 KiB at random places, each
// with a checksum of its content and place.
func fio(t *testing.T, path string, size int64, seed uint64) func(<-chan struct{}) error {
	bin, err := exec.LookPath("fio")
	if err != nil {
		t.Skip("fio is not installed (apt-get install fio)")
	}
	dir := t.TempDir() // for what fio leaves where it runs
	return func(stop <-chan struct{}) error {
		for round := 0; ; round++ {
			cmd := exec.Command(bin, "--name=verify", "--filename="+path, "--direct=1", "--ioengine=libaio", "--iodepth=32",
				"--rw=randwrite", "--bsrange=4k-64k", "--verify=crc32c", "--verify_fatal=1", "--verify_backlog=256",
				"--do_verify=1", "--verify_state_save=0", "--fsync=200", fmt.Sprintf("--randseed=%d", seed+uint64(round)), fmt.Sprintf("--size=%d", size),
				"--io_size=24m")
			cmd.Dir = dir
			out, err := cmd.CombinedOutput()
			if err != nil {
				return fmt.Errorf("fio: %w\n%s", err, out)
			}
			select {
			case <-stop:
				if round == 0 {
					t.Log("fio finished one round only")
				}
				return nil
			default:
			}
		}
	}
}

// TestWorkerUnderFio: a worker dies while fio verifies on the raw block device.
func TestWorkerUnderFio(t *testing.T) {
	need(t)
	var resent uint64
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			rnd := seeded(t)
			d := newDisk(t, kind)
			h := &local{}
			r := attach(t, d, h, false)
			killUnder(t, rnd, r, kills(), fio(t, r.loop.Path(), d.size, rnd.Uint64()>>1))
			sum := r.sum(t)
			r.detach(t)
			d.verify(t, sum)
			t.Logf("%d requests taken over", h.resent)
			resent += h.resent
		})
	}
	if resent == 0 {
		t.Error("no death met a request in flight: nothing was proved")
	}
}
