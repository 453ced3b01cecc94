package crash

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx/sim"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
	"github.com/vmdk-csi/vmdk-csi/pkg/volume"
)

// failure is a way in which a file system operation goes wrong.
type failure struct {
	name string
	arm  func(fs *sim.FS, n int)
	dies bool // the process is over
}

var failures = []failure{
	{"EIO", func(fs *sim.FS, n int) { fs.FailAt(n, unix.EIO) }, false},
	{"ENOSPC", func(fs *sim.FS, n int) { fs.FailAt(n, unix.ENOSPC) }, false},
	{"lost answer", func(fs *sim.FS, n int) { fs.FailAfter(n, unix.EIO) }, false},
	{"process dies", func(fs *sim.FS, n int) { fs.FailFrom(n, unix.EIO) }, true},
}

// ending is what happens after a failure.
type ending int

const (
	nothing  ending = iota
	powers          // the power fails
	succeeds        // a new process takes over what was left and uses it, then the power fails
	releases        // the host takes the disk back from a worker that is gone, then the power fails
	adopts          // another worker takes the disk over and closes it unused, then the power fails
)

var endings = []ending{powers, succeeds, releases, adopts}

func (e ending) String() string {
	return [...]string{"", ", then the power fails", ", then a new process and a power failure", ", then a release and a power failure",
		", then a take-over and a power failure"}[e]
}

// injected is one run: in the last operation of s, the n-th file system operation fails.
type injected struct {
	s    sequence
	n    int // from the beginning of the recording
	f    failure
	then ending
	// without is a sync call to leave out. Then only what a power failure finds is judged: nothing else can differ.
	without string
}

func (i injected) String() string {
	return fmt.Sprintf("%s, %s at operation %d%s", i.s, i.f.name, i.n, i.then)
}

// injections are all of them, for sequences of up to two operations.
func injections() ([]injected, error) {
	var out []injected
	brief := short(2)
	slices.SortStableFunc(brief, func(a, b sequence) int { return len(a.ops) - len(b.ops) })
	only := os.Getenv("CRASH_ONLY") // e.g. "flush,expand"
	for _, s := range brief {
		if only != "" && only != strings.Join(s.ops, ",") {
			continue
		}
		w, _, from, err := s.run(nil, false)
		if err != nil {
			return nil, err
		}
		for n := from; n < w.fs.Ops(); n++ {
			for _, f := range failures {
				out = append(out, injected{s: s, n: n, f: f})
			}
		}
		w.die()
	}
	return out, nil
}

// run lets the operation fail, repeats it in the same process, and judges what a new process finds, and what is found
// if the machine then fails too.
func (i injected) run() error {
	w, from, _, err := i.s.run(i.arm, true)
	if err != nil {
		return err
	}
	defer func() { w.die() }()
	i.f.arm(w.fs, i.n)
	last := i.s.ops[len(i.s.ops)-1]
	err = w.do(last)
	if !i.f.dies {
		if rerr := i.repeat(w, last, err); rerr != nil {
			return rerr
		}
	}
	if i.without == "" {
		if jerr := i.judgeProcess(w, err); jerr != nil {
			return jerr
		}
	}
	from = max(from, w.fs.Failed()-1)
	var cerr error
	switch i.then {
	case nothing:
		return nil
	case succeeds:
		w.die()
		w.fs.Heal()
		events := w.fs.Survivor().Events()
		from = w.fs.Position()
		w.fs.Begin(event{op: "crash"})
		cerr = i.s.comeBack(w.fs, "boot-1", events)
	case releases:
		cerr = i.release(w)
	case adopts:
		if !i.f.dies || w.disk == nil {
			return nil // there is nothing to take over
		}
		w.fs.Heal()
		cerr = i.adopt(w, w.fs, func(*world) error { return nil })
	}
	if cerr != nil {
		return fmt.Errorf("after the error %v%s: %w", err, i.then, cerr)
	}
	return i.judge(w, from, err)
}

func (i injected) arm(fs *sim.FS) {
	if i.without != "" {
		fs.DropSync(i.without)
	}
}

// judgeProcess judges the error, and what processes find while the machine lives.
func (i injected) judgeProcess(w *world, err error) error {
	if err != nil && fault.KindOf(err) == fault.Internal && !errors.Is(err, unix.EIO) {
		return fmt.Errorf("an error without a kind: %w", err)
	}
	if i.f.name == "ENOSPC" && err != nil && !errors.Is(err, fault.NoSpace) && !errors.Is(err, fault.Poisoned) {
		return fmt.Errorf("a full file system is reported as %s: %w", fault.KindOf(err), err)
	}
	if i.f.dies {
		if terr := i.takeOver(w); terr != nil {
			return fmt.Errorf("take-over (I8): %w", terr)
		}
	}
	if verr := verify(w.fs.Survivor(), i.s.typ, "boot-1"); verr != nil {
		return fmt.Errorf("after the error %v, a new process finds: %w", err, verr)
	}
	return nil
}

// release is what a host does that finds the disk held by itself, and no worker.
func (i injected) release(w *world) error {
	w.die()
	w.fs.Heal()
	w.fs.Begin(event{op: "crash"})
	next, err := open(w.fs, i.s.typ, "boot-1")
	if err != nil {
		return err
	}
	defer next.die()
	held, err := next.vols.Held(next.id())
	if err != nil || held.Epoch == 0 {
		if errors.Is(err, fault.NotFound) {
			return nil
		}
		return err
	}
	return next.vols.Release(ctx, next.id(), held.Epoch, true)
}

func (i injected) judge(w *world, from int, before error) error {
	if i.without != "" && w.fs.SyncSites()[i.without] == 0 {
		return nil // it was not reached
	}
	for cut := range w.fs.CrashesFrom(from, 3, seed) {
		if err := judged(i.s, cut, verify(cut, i.s.typ, "boot-2")); err != nil {
			return fmt.Errorf("after the error %v%s: %w", before, i.then, err)
		}
	}
	return nil
}

// repeat runs the operation again in the same process, which has no reason to fail but what the first failure poisoned.
func (i injected) repeat(w *world, op string, before error) error {
	w.fs.Heal()
	if before == nil {
		return nil
	}
	if err := w.do(op); err != nil && !errors.Is(err, fault.Poisoned) {
		return fmt.Errorf("%s failed with %v; repeated: %w", op, before, err)
	}
	return nil
}

// takeOver opens the disk of a process that died as its successor does: with its pending table, and nothing that was
// acknowledged is lost.
func (i injected) takeOver(w *world) error {
	if w.disk == nil {
		return nil
	}
	left := w.fs.Survivor()
	return i.adopt(w, left, func(next *world) error {
		p := after(left.Events())
		p.settle()
		if err := next.checkSize(p); err != nil {
			return err
		}
		return next.checkContent(p)
	})
}

// adopt ends w's worker and opens its disk on fs as its successor does; then it is looked at, and closed cleanly.
func (i injected) adopt(w *world, fs *sim.FS, look func(next *world) error) error {
	pending, epoch := w.disk.pending, w.disk.epoch
	_ = w.disk.Abandon()
	_ = w.disk.dir.Close()
	w.disk = nil
	next, err := open(fs, i.s.typ, "boot-1")
	if err != nil {
		return err
	}
	defer next.die()
	o, err := next.vols.Reopen(ctx, next.id(), epoch)
	if err != nil {
		return err
	}
	if err := o.Dir.Close(); err != nil {
		return err
	}
	dir, err := next.directory()
	if err != nil {
		return err
	}
	c, err := chain.Open(dir, volume.LooseRefs(o.Links), chain.Options{
		Direct: true, Pending: pending, Takeover: true, Format: vmdk.Thin, Locks: true,
	})
	if err != nil {
		return errors.Join(err, dir.Close())
	}
	next.disk = &attached{Chain: c, fs: fs, dir: dir, epoch: epoch, pending: pending}
	if err := look(next); err != nil {
		return err
	}
	return errors.Join(next.detach(), next.checkStructure(), next.checkReleased())
}

// TestEveryFailure: every file system operation of every sequence fails once in every way.
func TestEveryFailure(t *testing.T) {
	all, err := injections()
	if err != nil {
		t.Fatal(err)
	}
	if testing.Short() {
		k := int(seed)
		all = slices.DeleteFunc(all, func(injected) bool { k++; return k%61 != 0 })
	}
	var runs atomic.Int64
	err = forEach(all, func(i injected) error {
		runs.Add(1)
		// The power fails after three of nine.
		if e := (i.n + int(seed)) % 9; e < len(endings) {
			i.then = endings[e]
		}
		if err := i.run(); err != nil {
			return fmt.Errorf("%s: %w", i, err)
		}
		return nil
	})
	t.Logf("SEED=%d: %d of %d failures", seed, runs.Load(), len(all))
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 1000 && os.Getenv("CRASH_ONLY") == "" && !testing.Short() {
		t.Fatal("too few failures: the operations were not exercised")
	}
}
