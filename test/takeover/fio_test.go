package takeover

import (
	"fmt"
	"math/rand/v2"
	"os/exec"
	"testing"
	"time"
)

// between is the longest time between two deaths: long enough that requests are under way again.
const between = 700 * time.Millisecond

// killUnder kills n times at random moments while work runs, and returns its error.
func killUnder(t *testing.T, rnd *rand.Rand, h host, n int, work func(stop <-chan struct{}) error) {
	t.Helper()
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- work(stop) }()
	for range n {
		time.Sleep(time.Duration(rnd.Int64N(int64(between))))
		h.kill(t)
	}
	time.Sleep(between) // so that the last successor shows what it is worth
	close(stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// fio writes at depth 32 and reads back what it wrote, over and over, until stop: 4 KiB to 64 KiB at random places, each
// with a checksum of its content and place.
func fio(t *testing.T, path string, size int64, seed uint64) func(<-chan struct{}) error {
	bin, err := exec.LookPath("fio")
	if err != nil {
		t.Skip("fio is not installed (apt-get install fio)")
	}
	return func(stop <-chan struct{}) error {
		for round := 0; ; round++ {
			cmd := exec.Command(bin, "--name=verify", "--filename="+path, "--direct=1", "--ioengine=libaio", "--iodepth=32",
				"--rw=randwrite", "--bsrange=4k-64k", "--verify=crc32c", "--verify_fatal=1", "--verify_backlog=256",
				"--do_verify=1", "--fsync=200", fmt.Sprintf("--randseed=%d", seed+uint64(round)), fmt.Sprintf("--size=%d", size),
				"--io_size=24m")
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
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			rnd := seeded(t)
			d := newDisk(t, kind)
			h := &local{}
			r := attach(t, d, h, false)
			killUnder(t, rnd, h, kills(), fio(t, r.loop.Path(), d.size, rnd.Uint64()>>1))
			sum := r.sum(t)
			r.detach(t)
			d.verify(t, sum)
		})
	}
}
