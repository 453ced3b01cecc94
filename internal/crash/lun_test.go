package crash

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx/sim"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/store"
)

const lunName = "lun"

// makeLUN puts a formatted LUN into an empty file system.
func makeLUN(fs *sim.FS) error {
	lun, err := fs.Root().Open(lunName, fsx.ReadWrite|fsx.Create|fsx.Exclusive)
	if err != nil {
		return err
	}
	if err := lun.Truncate(64 * mib); err != nil {
		return err
	}
	_, err = store.Format(lun, store.FormatOptions{ExtentSize: 64 << 10, AreaSize: 64 << 10})
	return errors.Join(err, lun.Close())
}

// rootOf is where the datastore of a file system is: on its LUN if it has one.
func rootOf(fs *sim.FS) (fsx.Dir, fsx.File, error) {
	lun, err := fs.Root().Open(lunName, fsx.ReadWrite)
	if errors.Is(err, fault.NotFound) {
		return fs.Root(), nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	r, err := store.Check(lun)
	if err == nil && len(r.Problems) > 0 {
		err = fmt.Errorf("the store on the LUN: %v", r.Problems)
	}
	if err != nil {
		return nil, nil, errors.Join(err, lun.Close())
	}
	s, err := store.Open(lun, store.Options{})
	if err != nil {
		return nil, nil, errors.Join(err, lun.Close())
	}
	return s.Root(), lun, nil
}

func closeLUN(lun fsx.File) error {
	if lun == nil {
		return nil
	}
	return lun.Close()
}

// lunStories are those with the most different last steps, on a LUN.
func lunStories() []story {
	var out []story
	for _, s := range stories() {
		s.lun = true
		last := strings.Fields(s.last())[0]
		if last == "snap" || last == "merge" || last == "restore" || last == "delete" || last == "grow" {
			out = append(out, s)
		}
	}
	return out
}

// TestStoriesOnLUN cuts the power below the store on a LUN that a datastore is on: after every write to the LUN in the last step
// of a story. Nothing in the engine knows of it.
func TestStoriesOnLUN(t *testing.T) {
	every := int(number("CRASH_EVERY", 3))
	var some []story
	for i, s := range lunStories() {
		if (i+int(seed))%every == 0 || testing.Short() {
			some = append(some, s)
		}
	}
	some = append(some, story{typ: types[0], lun: true, steps: []string{"create a"}})
	limit := int(number("CRASH_LIMIT", 3))
	var states atomic.Int64
	err := forEach(some, func(s story) error {
		n, err := s.powerLoss(limit, nil)
		states.Add(int64(n))
		return err
	})
	t.Logf("SEED=%d: %d stories, %d states", seed, len(some), states.Load())
	if err != nil {
		t.Fatal(err)
	}
	if states.Load() < 5*int64(len(some)) {
		t.Fatal("too few states: the enumeration was not exercised")
	}
}

// TestStoriesOnLUNNeedSyncs: each sync of a commit below is missed by some story when it is left out.
func TestStoriesOnLUNNeedSyncs(t *testing.T) {
	s := story{typ: types[0], lun: true, steps: []string{"create a", "write a"}}
	g, err := s.begin()
	if err != nil {
		t.Fatal(err)
	}
	if err := g.do("flush a"); err != nil {
		t.Fatal(err)
	}
	sites := g.fs.SyncSites()
	g.die()
	needed := 0
	for site := range sites {
		// These disks allocate with every step, so each flush is a commit; the sync of a file that has all its places is
		// missed in the store's own test.
		if !strings.HasPrefix(site, "pkg/san/store/commit.go") && !strings.HasPrefix(site, "pkg/san/store/store.go") {
			continue
		}
		needed++
		missed := false
		for _, steps := range []string{"create a", "create a, write a, flush a", "create a, write a, snap a a1", "create a, write a, flush a, write a, flush a"} {
			s := story{typ: host.MonolithicFlat, lun: true, steps: strings.Split(steps, ", ")}
			_, err := s.powerLoss(8, func(fs *sim.FS) { fs.DropSync(site) })
			missed = missed || err != nil
		}
		if !missed {
			t.Errorf("nothing goes wrong without the sync at %s", site)
		}
	}
	if needed != 2 {
		t.Errorf("syncs at %v only", sites)
	}
}
