package crash

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx/sim"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/volume"
)

// grown is how stories begin: what is there before the last step. Disks are a, b, c; the snapshots of a are a1, a2.
var grown = map[string]string{
	"detached":        "create a, write a, detach a",
	"attached":        "create a, write a",
	"snapped":         "create a, write a, detach a, snap a a1",
	"snapped live":    "create a, write a, snap a a1, write a",
	"two snaps":       "create a, write a, snap a a1, write a, snap a a2, write a, detach a",
	"two snaps live":  "create a, write a, snap a a1, write a, snap a a2, write a",
	"loose":           "create a, write a, snap a a1, write a, snap a a2, write a, detach a, unsnap a1",
	"loose live":      "create a, write a, snap a a1, write a, snap a a2, write a, unsnap a1",
	"head loose":      "create a, write a, snap a a1, write a, detach a, unsnap a1",
	"head loose live": "create a, write a, snap a a1, write a, unsnap a1, write a",
	"shared":          "create a, write a, snap a a1, write a, detach a, restore a1 b, write b, detach b",
	"retired":         "create a, write a, snap a a1, write a, snap a a2, write a, delete a",
	"grown":           "create a, write a, snap a a1, grow a, write a, detach a, unsnap a1",
	"grown live":      "create a, write a, snap a a1, grow a, write a, unsnap a1",
	"orphan":          "create a, write a, snap a a1, detach a, restore a1 b, write b, detach b, delete a, unsnap a1",
}

// endingsOf says which last steps make sense behind each beginning.
var endingsOf = map[string][]string{
	"detached":        {"snap a a1", "clone a b", "clone a b full"},
	"attached":        {"snap a a1", "clone a b", "clone a b full"},
	"snapped":         {"snap a a2", "restore a1 b", "restore a1 b larger", "clone a b", "unsnap a1", "delete a", "grow a", "attach a", "write a"},
	"snapped live":    {"snap a a2", "restore a1 b", "clone a b", "unsnap a1", "delete a", "grow a", "flush a", "detach a"},
	"two snaps":       {"unsnap a1", "unsnap a2", "restore a2 b", "delete a"},
	"two snaps live":  {"unsnap a2", "restore a1 b"},
	"loose":           {"merge a down", "merge a up", "restore a2 b", "delete a", "unsnap a2"},
	"loose live":      {"merge a down", "merge a up", "restore a2 b", "snap a a3"},
	"head loose":      {"merge a down", "merge a up", "snap a a2"},
	"head loose live": {"merge a down", "merge a up", "clone a b"},
	"shared":          {"delete a", "unsnap a1", "delete b", "merge b up", "clone b c", "snap b b1"},
	"retired":         {"unsnap a1", "unsnap a2", "restore a1 b", "merge a"},
	"grown":           {"merge a down", "merge a up", "snap a a2", "grow a"},
	"grown live":      {"merge a down", "merge a up", "snap a a2"},
	"orphan":          {"merge b", "write b", "delete b", "snap b b1"},
}

// stories are all of them, on both types of disks; CRASH_STORY=text keeps those that contain it.
func stories() []story {
	var out []story
	only := os.Getenv("CRASH_STORY")
	for _, typ := range types {
		for begin, steps := range grown {
			for _, end := range endingsOf[begin] {
				s := story{typ: typ, steps: append(strings.Split(steps, ", "), end)}
				if strings.Contains(s.String(), only) {
					out = append(out, s)
				}
			}
		}
	}
	sortStories(out)
	if !testing.Short() {
		return out
	}
	var some []story // under the race detector a few, others with each seed
	for i := int(seed % 13); i < len(out); i += 13 {
		some = append(some, out[i])
	}
	return some
}

// TestStoriesPowerLoss cuts the power everywhere in the last step of every story, and right behind its answer.
func TestStoriesPowerLoss(t *testing.T) {
	limit := int(number("CRASH_LIMIT", 6))
	all := stories()
	var states atomic.Int64
	err := forEach(all, func(s story) error {
		n, err := s.powerLoss(limit, nil)
		states.Add(int64(n))
		return err
	})
	t.Logf("SEED=%d: %d stories, %d states", seed, len(all), states.Load())
	if err != nil {
		t.Fatal(err)
	}
	if states.Load() < 5*int64(len(all)) || len(all) == 0 {
		t.Fatal("too few states: the enumeration was not exercised")
	}
}

func (s story) powerLoss(limit int, arm func(*sim.FS)) (states int, err error) {
	g, err := s.begin()
	if err != nil {
		return 0, err
	}
	defer g.die()
	if arm != nil {
		arm(g.fs)
	}
	from := g.fs.Position()
	if err := g.do(s.last()); err != nil {
		return 0, fmt.Errorf("%s: %w", s, err)
	}
	for cut := range g.fs.CrashesFrom(from, limit, seed) {
		states++
		if err := s.judged(cut, judgeGrove(cut, s.typ, "boot-2")); err != nil {
			return states, err
		}
	}
	return states, nil
}

// judged says all that is needed to run a failure again.
func (s story) judged(cut *sim.FS, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w\n  SEED=%d CRASH_STORY=%q, state: %s\n  deeds: %v", s, err, seed, s.String(), cut.Cut(), cut.Events())
}

// TestStoriesFailures: in the last step of every story each file system operation fails once in every way. A process that
// lives may repeat the step; a successor of one that died finds everything that was acknowledged (I8), repeats the step, and
// all can be used and deleted; and so it can after a power failure right behind the death.
func TestStoriesFailures(t *testing.T) {
	var runs atomic.Int64
	all, err := storyFailures()
	if err != nil {
		t.Fatal(err)
	}
	// Deaths are enumerated; of the errors a sample that the seed decides, with CRASH_EVERY=1 each of them.
	every := map[bool]int{true: 1, false: int(number("CRASH_EVERY", 9))}
	if testing.Short() {
		every = map[bool]int{true: 29, false: 197}
	}
	err = forEach(all, func(f storyFailure) error {
		if (f.n+int(seed))%every[f.f.dies] != 0 {
			return nil
		}
		runs.Add(1)
		return f.run()
	})
	t.Logf("SEED=%d: %d of %d failures", seed, runs.Load(), len(all))
	if err != nil {
		t.Fatal(err)
	}
	if runs.Load() == 0 || os.Getenv("CRASH_STORY") == "" && !testing.Short() && len(all) < 1000 {
		t.Fatal("too few failures: the steps were not exercised")
	}
}

// storyFailure is one run: the n-th file system operation, counted over the whole story, fails.
type storyFailure struct {
	s story
	n int
	f failure
}

func (f storyFailure) String() string {
	return fmt.Sprintf("%s, %s at operation %d", f.s, f.f.name, f.n)
}

func storyFailures() ([]storyFailure, error) {
	var out []storyFailure
	for _, s := range stories() {
		g, err := s.begin()
		if err != nil {
			return nil, err
		}
		from := g.fs.Ops()
		err = g.do(s.last())
		for n := from; n < g.fs.Ops(); n++ {
			for _, f := range failures {
				out = append(out, storyFailure{s, n, f})
			}
		}
		g.die()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s, err)
		}
	}
	return out, nil
}

func (f storyFailure) run() error {
	g, err := f.s.begin()
	if err != nil {
		return err
	}
	defer func() { g.die() }()
	f.f.arm(g.fs, f.n)
	serr := g.do(f.s.last())
	wrong := func(err error, what string) error {
		if err == nil {
			return nil
		}
		return fmt.Errorf("%s: %s after the error %v: %w\n  SEED=%d, deeds %v", f, what, serr, err, seed, g.fs.Survivor().Events())
	}
	if f.f.dies {
		return wrong(f.succeed(g), "a successor")
	}
	if serr != nil && fault.KindOf(serr) == fault.Internal && !errors.Is(serr, unix.EIO) {
		return wrong(serr, "an error without a kind")
	}
	if f.f.name == "ENOSPC" && serr != nil && !errors.Is(serr, fault.NoSpace) && !errors.Is(serr, fault.Poisoned) {
		return wrong(serr, "a full file system has another name")
	}
	g.fs.Heal()
	if serr != nil {
		err := g.do(f.s.last())
		// Who has a poisoned disk attached, or one whose descriptors could not be written after a merge, is told to detach it.
		told := errors.Is(err, fault.Precondition) && (errors.Is(serr, fault.Poisoned) || strings.HasPrefix(f.s.last(), "merge"))
		if err != nil && !errors.Is(err, fault.Poisoned) && !told {
			return wrong(err, "the step, repeated,")
		}
	}
	return wrong(judgeGrove(g.fs.Survivor(), f.s.typ, "boot-1"), "a new process")
}

// succeed is the life after a process that died: its attached disks are taken over with their pending tables, nothing that
// was acknowledged is lost, the step is repeated; then the power may fail.
func (f storyFailure) succeed(g *grove) error {
	left := g.fs.Survivor()
	events := left.Events()
	left.Record()
	for _, e := range events {
		left.Begin(e)
	}
	from := left.Position()
	next, err := plant(left, f.s.typ, "boot-1")
	if err != nil {
		return err
	}
	defer next.die()
	next.step, next.stamp = g.step, g.stamp
	if err := f.adopt(g, next, told(events)); err != nil {
		return err
	}
	if err := next.do(f.s.last()); err != nil && !errors.Is(err, fault.NotFound) {
		return fmt.Errorf("repeat: %w", err)
	}
	if err := judgeGrove(left.Survivor(), f.s.typ, "boot-1"); err != nil {
		return fmt.Errorf("a third process: %w", err)
	}
	if (f.n+int(seed))%5 != 0 {
		return nil
	}
	for cut := range left.CrashesFrom(from, 2, seed) {
		if err := judgeGrove(cut, f.s.typ, "boot-2"); err != nil {
			return fmt.Errorf("power loss %s: %w", cut.Cut(), err)
		}
	}
	return nil
}

// adopt takes over what a dead process had attached.
func (f storyFailure) adopt(g, next *grove, l *ledger) error {
	l.settle()
	for name, s := range g.open {
		_ = s.Abandon()
		_ = s.dir.Close()
		delete(g.open, name)
		o, err := next.vols.Reopen(ctx, host.DiskID(name), s.epoch)
		if errors.Is(err, fault.NotFound) && l.disks[name].there != present {
			continue
		}
		if err != nil {
			return fmt.Errorf("reopen %s: %w", name, err)
		}
		if _, err := next.serve(name, o, volume.LooseRefs(o.Links), s.pending, true); err != nil {
			return fmt.Errorf("take %s over: %w", name, err)
		}
		if err := next.checkDisk(l.disks[name], name); err != nil {
			return fmt.Errorf("I8: disk %s: %w", name, err)
		}
	}
	return nil
}
