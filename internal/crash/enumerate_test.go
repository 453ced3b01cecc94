package crash

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx/sim"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

var (
	operations = []string{"create", "write", "flush", "expand", "delete"}
	types      = []host.DiskType{host.MonolithicFlat, host.TwoGbMaxExtentSparse}
)

func number(env string, otherwise int64) int64 {
	if n, err := strconv.ParseInt(os.Getenv(env), 10, 64); err == nil {
		return n
	}
	return otherwise
}

// seed decides which states of the large cuts are looked at.
var seed = number("SEED", time.Now().UnixNano()%1_000_000)

// sequence is the operations of one history on one type of disk; only crashes during the last operation are judged,
// because those before belong to a shorter sequence.
type sequence struct {
	typ host.DiskType
	ops []string
}

func (s sequence) String() string { return string(s.typ) + " " + strings.Join(s.ops, ",") }

// longest is how many operations a sequence has. A short run is for the race detector, which is ten times slower.
func longest() int {
	if testing.Short() {
		return 2
	}
	return 3
}

// sequences are all of length 1 to 3, a detach after those that leave the disk attached, and the making of a datastore.
func sequences() []sequence {
	var out []sequence
	for _, typ := range types {
		out = append(out, sequence{typ: typ, ops: []string{"open"}}, sequence{typ: typ, ops: []string{"open", "create"}})
		level := [][]string{{}}
		for range longest() {
			var next [][]string
			for _, head := range level {
				for _, op := range operations {
					next = append(next, append(head[:len(head):len(head)], op))
				}
			}
			for _, ops := range next {
				out = append(out, sequence{typ: typ, ops: ops})
				if last := ops[len(ops)-1]; last == "write" || last == "flush" {
					out = append(out, sequence{typ: typ, ops: append(ops[:len(ops):len(ops)], "detach")})
				}
			}
			level = next
		}
	}
	return sample(out)
}

// sample is a quarter of them in a short run, which is for the race detector: another one with each seed.
func sample[T any](all []T) []T {
	if !testing.Short() {
		return all
	}
	var some []T
	for i := int(seed % 4); i < len(all); i += 4 {
		some = append(some, all[i])
	}
	return some
}

// run executes the sequence and returns the position in the log, and the count of operations, at which the last
// operation begins. With stop it does not run that one.
func (s sequence) run(arm func(*sim.FS), stop bool) (w *world, from, ops int, err error) {
	if w, err = start(s.typ, s.ops[0]); err != nil {
		return nil, 0, 0, err
	}
	if arm != nil {
		arm(w.fs)
	}
	for i, op := range s.ops {
		from, ops = w.fs.Position(), w.fs.Ops()
		if stop && i == len(s.ops)-1 {
			break
		}
		if err := w.do(op); err != nil {
			w.die()
			return nil, 0, 0, fmt.Errorf("%s: operation %d, %s: %w", s, i+1, op, err)
		}
	}
	return w, from, ops, nil
}

// forEach runs do for all on all processors until one fails.
func forEach[T any](all []T, do func(T) error) error {
	var wg sync.WaitGroup
	var next atomic.Int64
	var mu sync.Mutex
	var first error
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				mu.Lock()
				stop := first != nil
				mu.Unlock()
				if stop || i >= len(all) {
					return
				}
				if err := do(all[i]); err != nil {
					mu.Lock()
					first = errors.Join(first, err)
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return first
}

// judge looks at every crash of the last operation of s. arm, if set, prepares the file system before.
func (s sequence) judge(limit int, arm func(*sim.FS)) (states int, sites map[string]int, err error) {
	w, from, _, err := s.run(arm, false)
	if err != nil {
		return 0, nil, err
	}
	sites = w.fs.SyncSites()
	w.die()
	for cut := range w.fs.CrashesFrom(from, limit, seed) {
		states++
		err := checkVisible(cut, s.typ)
		if err == nil {
			err = verify(cut, s.typ, "boot-2")
		}
		if err := judged(s, cut, err); err != nil {
			return states, sites, err
		}
	}
	return states, sites, nil
}

// judged says all that is needed to run a failure again.
func judged(s sequence, cut *sim.FS, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w\n  SEED=%d, state: %s\n  events: %v", s, err, seed, cut.Cut(), cut.Events())
}

// TestPowerLoss cuts the power everywhere in every sequence.
func TestPowerLoss(t *testing.T) {
	limit := int(number("CRASH_LIMIT", 8))
	all := sequences()
	var states, runs atomic.Int64
	err := forEach(all, func(s sequence) error {
		n, _, err := s.judge(limit, nil)
		states.Add(int64(n))
		runs.Add(1)
		return err
	})
	t.Logf("SEED=%d CRASH_LIMIT=%d: %d sequences, %d states after a power loss", seed, limit, runs.Load(), states.Load())
	if err != nil {
		t.Fatal(err)
	}
	if states.Load() < 10*int64(len(all)) {
		t.Fatal("too few states: the enumeration was not exercised")
	}
}
