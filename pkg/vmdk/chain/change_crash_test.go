package chain_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx/sim"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// full tells that the crash suite runs, which leaves nothing to chance.
func full() bool { return os.Getenv("VMDK_CSI_CHAIN") == "full" && !raceDetector }

// someCases are all cases, or a few which change with the seed.
func someCases(seed uint64, n int) []changeCase {
	all := changeCases()
	if full() {
		return all
	}
	if !raceDetector {
		n *= 2
	}
	newRand(seed).Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all[:n]
}

// inStep makes a request between two pieces of a merge.
func inStep(h *changed) error { return h.step(h.r.IntN(3) == 0) }

// TestChangePowerLoss cuts the power at every operation of a snapshot or merge that runs between and beside requests. What
// is found must open, hold what was flushed or something later, and each parent that a snapshot keeps must be what the disk
// was.
func TestChangePowerLoss(t *testing.T) {
	defer chain.SetPiece(64<<10, 192<<10)()
	seed := seeded(t).Uint64()
	for _, k := range someCases(seed, 2) {
		t.Run(k.name, func(t *testing.T) {
			h := newChanged(t, k, seed)
			h.inside = inStep
			if err := h.live(); err != nil {
				t.Fatal(err)
			}
			limit, n := 4, 0
			if full() {
				limit = 24
			}
			if raceDetector {
				limit = 2
			}
			for cut := range h.FS.Crashes(limit, int64(seed)) {
				n++
				if err := changeVerify(cut, slices.Concat(h.setup, cut.Events()), len(h.want)); err != nil {
					t.Fatalf("%s: %v", cut.Cut(), err)
				}
			}
			if n < 50 || h.changes != 1 {
				t.Fatalf("only %d crashes were tried, %d changes", n, h.changes)
			}
			t.Logf("%d crashes", n)
		})
	}
}

// changeVerify opens what a crash left, twice.
func changeVerify(cut *sim.FS, events []any, size int) error {
	for range 2 {
		if err := verifyOnce(cut.Root(), size, func(got []byte) error { return allowed(got, events, crashCase{}) }); err != nil {
			return err
		}
	}
	return nil
}

func verifyOnce(d fsx.Dir, size int, judge func([]byte) error) error {
	m, err := loadManifest(d)
	if err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	if err := m.ready(d); err != nil {
		return err
	}
	c, err := chain.Open(d, m.Refs, chain.Options{})
	if err != nil {
		return err
	}
	got := make([]byte, size)
	_, err = c.ReadAt(got, 0)
	if err == nil {
		err = judge(got)
	}
	if err == nil {
		_, err = c.WriteAt(got[:512], 0) // it can be written, with the same content
	}
	if err = errors.Join(err, c.Close()); err != nil {
		return err
	}
	return verifyLinks(d, m)
}

// verifyLinks checks the structure of a closed chain and what its parents keep.
func verifyLinks(d fsx.Dir, m manifest) error {
	rep, err := chain.Check(context.Background(), d, m.Refs)
	if w, _ := rep.Worst(); err == nil && w >= vmdk.Warning && !onlyGrowth(rep) {
		err = fmt.Errorf("check: %v", rep.Problems)
	}
	if err != nil {
		return err
	}
	for i, sum := range m.Kept {
		if sum == [32]byte{} {
			continue
		}
		c, err := chain.Open(d, m.Refs[:i+1], chain.Options{ReadOnly: true})
		if err != nil {
			return fmt.Errorf("snapshot %d: %w", i, err)
		}
		got := make([]byte, c.Size())
		_, err = c.ReadAt(got, 0)
		if err = errors.Join(err, c.Close()); err != nil {
			return err
		}
		if sha256.Sum256(got) != sum {
			return fmt.Errorf("snapshot %d is not what the disk was", i)
		}
	}
	return nil
}

// TestChangeDeath lets the process die before every operation on the file system. The successor takes over by Pending and
// must find every acknowledged change, then do the change that was cut off, and close a clean chain.
func TestChangeDeath(t *testing.T) {
	defer chain.SetPiece(64<<10, 192<<10)()
	seed := seeded(t).Uint64()
	for _, k := range someCases(seed, 2) {
		t.Run(k.name, func(t *testing.T) {
			deaths, step := 0, 1
			if raceDetector {
				step = 9
			}
			for n := int(seed % uint64(step)); ; n += step {
				h := newChanged(t, k, seed)
				h.inside = inStep
				h.FS.FailFrom(n, syscall.EIO)
				if h.live() == nil {
					break
				}
				deaths++
				h.FS.Heal()
				h.d = h.FS.Root()
				if err := h.inherit(); err != nil {
					t.Fatalf("death at operation %d, in %s: %v", n, h.doing, err)
				}
			}
			if deaths < 30/step {
				t.Fatalf("only %d deaths", deaths)
			}
			t.Logf("%d deaths", deaths)
		})
	}
}

// inherit takes the disk over, twice, and finishes what was begun.
func (h *changed) inherit() error {
	in, off, n, fill := h.doing, h.off, h.n, h.fill
	for round := range 2 {
		m, err := loadManifest(h.d)
		if err != nil {
			return err
		}
		if h.m = m; h.changes == 0 && len(m.Refs) != h.k.links() {
			h.changes = 1 // the commit had happened, and the answer was lost
		}
		if err := h.open(h.opened); err != nil {
			return fmt.Errorf("take-over %d: %w", round, err)
		}
		if err := h.compare(off, n, fill); err != nil {
			return errors.Join(fmt.Errorf("take-over %d: %w", round, err), h.c.Abandon())
		}
		if round == 0 {
			if err := h.c.Abandon(); err != nil {
				return err
			}
		}
	}
	h.doing = in
	if _, err := h.c.ReadAt(h.want, 0); err != nil { // what was under way is now certain
		return err
	}
	if len(h.m.Refs) == h.k.links() && h.changes == 0 {
		h.inside = inStep
		if err := h.change(); err != nil {
			return fmt.Errorf("the change again: %w", err)
		}
		if err := h.compare(0, 0, 0); err != nil {
			return fmt.Errorf("after the change again: %w", err)
		}
	}
	if err := h.c.Close(); err != nil {
		return err
	}
	if n := len(h.pending.Load()); n > 0 {
		return fmt.Errorf("%d pending entries after a clean close", n)
	}
	return verifyLinks(h.d, h.m)
}

func (h *changed) compare(off, n int64, fill byte) error {
	if h.c.Size() != int64(len(h.want)) {
		return fmt.Errorf("size %d, want %d", h.c.Size(), len(h.want))
	}
	got := make([]byte, len(h.want))
	if _, err := h.c.ReadAt(got, 0); err != nil {
		return err
	}
	for i, v := range got {
		if at := int64(i); v != h.want[i] && (v != fill || at < off || at >= off+n) {
			return fmt.Errorf("byte %d is %#x, acknowledged was %#x", i, v, h.want[i])
		}
	}
	return nil
}

// TestChangeDeathThenPowerLoss: the successor flushes and then the power fails: what the dead process wrote must have
// become durable, whichever link it wrote.
func TestChangeDeathThenPowerLoss(t *testing.T) {
	defer chain.SetPiece(64<<10, 192<<10)()
	seed := seeded(t).Uint64()
	for _, k := range changeCases() {
		if k.lower != k.links()-2 || k.dir != chain.Down || raceDetector && k.name != "sparse-1-down" {
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			step, deaths := 3, 0
			if full() {
				step = 1
			}
			if raceDetector {
				step = 11
			}
			for n := int(seed % uint64(step)); ; n += step {
				died, err := deathThenLoss(newChanged(t, k, seed), n, seed)
				if !died {
					break
				}
				deaths++
				if err != nil {
					t.Fatalf("death at operation %d: %v", n, err)
				}
			}
			if deaths < 40/step { // how many operations a change has depends on the seed
				t.Fatalf("only %d deaths", deaths)
			}
		})
	}
}

// deathThenLoss lets the process die at operation n, if it comes so far, and the power fail after its successor flushed.
func deathThenLoss(h *changed, n int, seed uint64) (died bool, err error) {
	h.inside = inStep
	h.FS.FailFrom(n, syscall.EIO)
	if h.live() == nil {
		return false, nil
	}
	h.FS.Heal()
	h.d = h.FS.Root()
	if err := h.inheritThenLose(int64(seed)); err != nil {
		return true, fmt.Errorf("in %s: %w", h.doing, err)
	}
	return true, nil
}

func (h *changed) inheritThenLose(seed int64) (err error) {
	if err := h.d.Sync(); err != nil { // the manifest that is found is durable
		return err
	}
	if h.m, err = loadManifest(h.d); err != nil {
		return err
	}
	off, n, fill := h.off, h.n, h.fill
	if err := h.open(h.opened); err != nil {
		return err
	}
	if err := h.compare(off, n, fill); err != nil {
		return errors.Join(err, h.c.Abandon())
	}
	want := make([]byte, len(h.want)) // what was under way is now certain
	if _, err := h.c.ReadAt(want, 0); err != nil {
		return err
	}
	if err := h.c.Flush(); err != nil {
		return err
	}
	h.Mark(change{flushed: true})
	if err := h.c.Abandon(); err != nil {
		return err
	}
	for cut := range h.FS.CrashesFrom(h.Position()-1, 24, seed) {
		err := verifyOnce(cut.Root(), len(want), func(got []byte) error {
			if !bytes.Equal(got, want) {
				return errors.New("what was flushed is lost")
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("%s: %w", cut.Cut(), err)
		}
	}
	return nil
}

// TestChangeEveryFailure lets the n-th operation fail, once. A change that fails without poison leaves a disk that goes on;
// then the change is repeated. A poisoned disk is opened again and judged as after a power loss.
func TestChangeEveryFailure(t *testing.T) {
	defer chain.SetPiece(64<<10, 192<<10)()
	seed := seeded(t).Uint64()
	for _, k := range someCases(seed, 1) {
		t.Run(k.name, func(t *testing.T) {
			failed, step := 0, 1
			if raceDetector {
				step = 9
			}
			for _, errno := range []error{syscall.EIO, syscall.ENOSPC} {
				for n := int(seed % uint64(step)); ; n += step {
					h := newChanged(t, k, seed)
					h.inside = inStep
					h.FS.FailAt(n, errno)
					err := h.live()
					if n > h.FS.Ops() {
						break
					}
					if err == nil {
						continue
					}
					failed++
					h.FS.Heal()
					if err := h.afterFailure(err, errno); err != nil {
						t.Fatalf("operation %d failed with %v in %s: %v", n, errno, h.doing, err)
					}
				}
			}
			if failed < 40/step {
				t.Fatalf("only %d failures were seen", failed)
			}
			t.Logf("%d failures", failed)
		})
	}
}

func (h *changed) afterFailure(err, errno error) error {
	if want := fault.KindOf(errno); !errors.Is(err, fault.Poisoned) && fault.KindOf(err) != want {
		return fmt.Errorf("kind %s, want %s or %s: %w", fault.KindOf(err), want, fault.Poisoned, err)
	}
	return changeVerify(h.FS, slices.Concat(h.setup, h.events), len(h.want))
}
