package crash

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx/sim"
)

// second is a life after a crash: the host comes back, takes up what it finds, and the power fails again.
func (s sequence) second(cut *sim.FS, limit int, arm func(*sim.FS)) (states int, sites map[string]int, err error) {
	events := cut.Events()
	cut.Record()
	for _, e := range events {
		cut.Begin(e)
	}
	cut.Begin(event{op: "crash"})
	if arm != nil {
		arm(cut)
	}
	from := cut.Position()
	if err := s.comeBack(cut, "boot-2", events); err != nil {
		return 0, nil, fmt.Errorf("%s: after the state %s: %w", s, cut.Cut(), err)
	}
	sites = cut.SyncSites()
	for again := range cut.CrashesFrom(from, limit, seed) {
		states++
		if err := judged(s, again, verify(again, s.typ, "boot-3")); err != nil {
			return states, sites, fmt.Errorf("%w\n  the crash before: %s", err, cut.Cut())
		}
	}
	return states, sites, nil
}

// comeBack repeats what an orchestrator repeats after a crash: the request that had no answer, then the use of the disk.
func (s sequence) comeBack(fs *sim.FS, boot string, events []any) error {
	p := after(events)
	w, err := open(fs, s.typ, boot)
	if err != nil {
		return err
	}
	defer w.die()
	w.fs.Mark(event{op: "open", done: true, uuid: w.store.UUID()})
	w.step, w.stamp, w.size = 4, 100, max(p.size, mib)
	ops := []string{"write", "detach"}
	switch last := s.ops[len(s.ops)-1]; {
	case last == "delete":
		ops = []string{"delete"}
	case last == "expand" && p.growing > 0 && p.disk == present:
		ops = []string{"expand", "write", "detach"}
		w.size = p.growing - mib
	case last == "create" || last == "open":
		ops = []string{"create", "write", "detach"}
	}
	for _, op := range ops {
		if err := w.do(op); err != nil {
			return fmt.Errorf("%s: %w", op, err)
		}
	}
	return nil
}

// some picks count of the crashes of the last operation of s, always the same ones for a seed.
func (s sequence) some(count int) ([]*sim.FS, error) {
	w, from, _, err := s.run(nil, false)
	if err != nil {
		return nil, err
	}
	w.die()
	h := fnv.New64a()
	h.Write([]byte(s.String()))
	rng := rand.New(rand.NewPCG(uint64(seed), h.Sum64()))
	var picked []*sim.FS
	n := 0
	for cut := range w.fs.CrashesFrom(from, 6, seed) { // reservoir sampling
		n++
		if len(picked) < count {
			picked = append(picked, cut)
		} else if i := rng.IntN(n); i < count {
			picked[i] = cut
		}
	}
	return picked, nil
}

// TestPowerLossDuringRecovery: the second power loss finds what the first one left, taken up half-way.
func TestPowerLossDuringRecovery(t *testing.T) {
	limit := max(3, int(number("CRASH_LIMIT", 8))/2)
	var states atomic.Int64
	err := forEach(short(longest()-1), func(s sequence) error {
		cuts, err := s.some(2)
		if err != nil {
			return err
		}
		for _, c := range cuts {
			n, _, err := s.second(c, limit, nil)
			states.Add(int64(n))
			if err != nil {
				return err
			}
		}
		return nil
	})
	t.Logf("SEED=%d: %d states after a second power loss", seed, states.Load())
	if err != nil {
		t.Fatal(err)
	}
	if n := states.Load(); n == 0 || n < 200 && !testing.Short() {
		t.Fatal("too few states: the recovery was not exercised")
	}
}

// short are the sequences of up to n operations.
func short(n int) []sequence {
	var out []sequence
	for _, s := range sequences() {
		if len(s.ops) <= n {
			out = append(out, s)
		}
	}
	return out
}
